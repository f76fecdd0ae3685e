#!/usr/bin/env bash
# One machine, one process per GPU (or RANKS processes): bash one_node.sh -c manifests/breast.toml
# Start it again after a stop: it goes on. RANKS=12 for the paper's 11 encoders and 1 aggregator.
set -euo pipefail
exec python -m pretrain.launch --standalone --nproc-per-node "${RANKS:-gpu}" -m pretrain train "$@" --resume
