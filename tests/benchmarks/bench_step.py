"""What the step costs over the bare network, and whether memory grows with the slide.

    python -m tests.benchmarks.bench_step

Writes `build/bench/step.json`. All ratios come from one run:
    step_resident_over_bare      step time, everything resident, over a bare loop of encoder forward + backward (<= 1.05)
    step_recomputed_over_bare    step time, everything recomputed, over the same loop (<= 1.40; 4/3 is the arithmetic)
    step_memory_45056_over_4096  peak memory without the tile array at 45,056 tiles over that at 4,096 (<= 1.10)

Times are CPU seconds of one thread, so that other work on the machine does not count; the three kinds alternate and the
fastest round of each counts.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ingest.atomic import atomic_file
from pretrain.config import StepConfig
from pretrain.share import normalise
from pretrain.step import Models, slide_step
from pretrain.team import make_team
from tests.benchmarks.giant_step import GIANT_TILES, giant_step, invented_tiles, paper_models
from tests.benchmarks.rounds import cpu_seconds_in_turn

LIMITS = {"step_resident_over_bare": 1.05, "step_recomputed_over_bare": 1.40, "step_memory_45056_over_4096": 1.10}
TIME_TILES, TIME_PX, TIME_CHUNK = 192, 96, 32
MEMORY_TILES, MEMORY_PX, MEMORY_CHUNK = (4096, GIANT_TILES), 32, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the step over the bare network")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("build/bench/step.json"))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # one measurement in a process of its own
    options = parser.parse_args()
    if options.memory_of is not None:
        print(json.dumps(giant_step(options.memory_of, MEMORY_PX, MEMORY_CHUNK)))
        return
    record = time_ratios(options.rounds) | memory_ratio()
    record["limits_held"] = all(float(record[name]) <= limit for name, limit in LIMITS.items())
    with atomic_file(options.output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def time_ratios(num_rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    team = make_team("single", device="cpu")
    resident = StepConfig(resident_tiles=TIME_TILES, chunk_tiles=TIME_CHUNK)
    recomputed = StepConfig(resident_tiles=0, chunk_tiles=TIME_CHUNK)
    models = paper_models(team, resident)
    tiles_K3HW = invented_tiles(TIME_TILES, TIME_PX)

    def step(config: StepConfig) -> None:
        slide_step(models, tiles_K3HW, (TIME_TILES,), torch.tensor([1.0]), team, config, seed=1, slide="bench")

    kinds: dict[str, Callable[[], None]] = {
        "bare": lambda: bare_loop(models, tiles_K3HW),
        "resident": lambda: step(resident),
        "recomputed": lambda: step(recomputed),
    }
    seconds = cpu_seconds_in_turn(kinds, num_rounds)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "step_resident_over_bare": best["resident"] / best["bare"],
        "step_recomputed_over_bare": best["recomputed"] / best["bare"],
    } | {f"step_{name}_cpu_seconds": value for name, value in best.items()}


def bare_loop(models: Models, tiles_K3HW: Tensor) -> None:
    """Encoder forward and backward over the tiles in the same chunks: no slide, no aggregator."""
    assert models.encoder is not None, "one process holds everything"
    models.encoder.train()
    for chunk in torch.split(tiles_K3HW, TIME_CHUNK):
        prepared = normalise(chunk, torch.arange(len(chunk)), torch.Generator())
        features = models.encoder(prepared.contiguous(memory_format=torch.channels_last))
        features.backward(torch.ones_like(features))


def memory_ratio() -> dict[str, float]:
    """Peaks of two processes of their own.

    Their large arrays are mapped one by one, so that freed memory goes back to the system and the peak is that of live arrays:
    left to itself, glibc raises its threshold to 32 MB and keeps holes of 100 to 200 MB, another number in every run.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    peaks = []
    for num_tiles in MEMORY_TILES:
        command = [sys.executable, "-m", "tests.benchmarks.bench_step", "--memory-of", str(num_tiles)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        peaks.append(float(json.loads(answer)["peak_without_tiles_bytes"]))
    small, large = peaks
    return {
        "step_memory_45056_over_4096": large / small,
        "step_memory_4096_bytes": small,
        "step_memory_45056_bytes": large,
    }


if __name__ == "__main__":
    main()
