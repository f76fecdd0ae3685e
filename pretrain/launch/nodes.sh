#!/usr/bin/env bash
# Several machines: the same command on each, with the name of one of them, where the ranks meet.
#   NODES=3 MEET_AT=gpu01:29500 bash nodes.sh -c manifests/breast.toml
# Only the node of rank 0 writes the run folder; every node reads manifest, vault and slides. On some clusters NCCL and gloo must be
# told the network: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 (see `ip -brief address`).
set -euo pipefail
exec python -m pretrain.launch --nnodes "${NODES:?number of machines}" --nproc-per-node "${RANKS:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "${MEET_AT:?host:port of one of the machines}" --rdzv-id "${RUN_ID:-fullslide}" \
    ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} -m pretrain train "$@" --resume
