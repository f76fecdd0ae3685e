"""What planning an epoch costs, and whether memory grows while training.

    python -m tests.benchmarks.bench_training

Writes `build/bench/training.json`:
    epoch_plan_seconds     to plan an epoch of 6,525 slides of 45,056 tiles on one rank: the order, and for every slide the tiles
                           of this rank, one after the other as the loop does (<= 1; the slowest rank of 12 counts)
    epoch_plan_mb          the most memory of that at any moment, without the manifest (<= 50)
    cohort_mb              the manifest of the 13,050 slides from which they are drawn, as every rank holds it
    rss_slope_kb_per_step  growth of the resident memory of trainer and reader over 200 steps (pages of files left out), after 80
                           to warm up, with validation, checkpoint and TensorBoard at the end of every epoch (<= 20; it may fall)

Seconds are CPU seconds of one thread, so that other work on the machine does not count.
"""

import argparse
import gc
import json
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ingest.atomic import atomic_file
from ingest.geometry import TileGrid, pack_mask
from pretrain.cohort import CohortSlide
from pretrain.config import DataConfig, PretrainConfig
from pretrain.loader import SharePlan, plan_share
from pretrain.loop import epoch_updates, train
from pretrain.start import open_run
from pretrain.team import Team, make_team
from tests.benchmarks.giant_step import GIANT_TILES
from tests.small_cohort import with_settings, write_small_cohort

LIMITS = {"epoch_plan_seconds": 1.0, "epoch_plan_mb": 50.0, "rss_slope_kb_per_step": 20.0}
# Half of the slides are drawn for an epoch, 11 ranks encode: Campanella et al. 2024, breast cancer.
NUM_SLIDES, NUM_RANKS = 13_050, 12
NUM_ROWS, NUM_COLUMNS = 300, 250  # 60 % of the grid is tissue
WARM_STEPS, NUM_STEPS, NUM_COPIES = 80, 200, 10  # each of the 4 training slides so often: 40 steps in an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of planning an epoch, growth of memory while training")
    parser.add_argument("--output", type=Path, default=Path("build/bench/training.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = plan_cost() | memory_slope()
    record["limits_held"] = all(float(record[name]) <= limit for name, limit in LIMITS.items())
    with atomic_file(options.output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def plan_cost() -> dict[str, Any]:
    tracemalloc.start()
    slides = giant_cohort()
    cohort_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    config = PretrainConfig(data=DataConfig(slides_per_epoch=0.5))
    seconds, peaks = [], []
    for rank in (0, 1, NUM_RANKS - 1):
        team = rank_of_the_paper(rank)
        started_at = time.process_time()
        num_planned = sum(1 for _ in planned(slides, config, team))
        seconds.append(time.process_time() - started_at)
        assert num_planned == NUM_SLIDES // 2, num_planned
        tracemalloc.start()
        deque(planned(slides, config, team), maxlen=config.data.slides_ahead + 1)  # what the feed holds at a time
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return {
        "epoch_plan_seconds": round(max(seconds), 3), "epoch_plan_mb": round(max(peaks) / 1e6, 2),
        "cohort_mb": round(cohort_bytes / 1e6, 1), "num_slides_planned": NUM_SLIDES // 2, "num_tiles_per_slide": GIANT_TILES,
    }  # fmt: skip


def planned(slides: list[CohortSlide], config: PretrainConfig, team: Team) -> Iterator[SharePlan]:
    for update in epoch_updates(slides, config, team, epoch=0):
        for slide in update:
            yield plan_share(slide, team, config.sample, config.run.seed, 0)


def giant_cohort() -> list[CohortSlide]:
    grid = TileGrid(width_px=NUM_COLUMNS * 224, height_px=NUM_ROWS * 224, slide_mpp=0.5, tile_size_px=224, tile_mpp=0.5)
    generator = np.random.default_rng(0)
    slides = []
    for number in range(NUM_SLIDES):
        mask = np.zeros(NUM_ROWS * NUM_COLUMNS, dtype=np.bool_)
        start = int(generator.integers(len(mask) - GIANT_TILES))
        mask[start : start + GIANT_TILES] = True
        slides.append(CohortSlide(
            slide_key=f"slide{number}", specimen_key=f"part{number}", case_key=f"case{number}", patient_key=f"patient{number}",
            path=Path(f"/slides/slide{number}.svs"), grid=grid, mask=pack_mask(mask.reshape(NUM_ROWS, NUM_COLUMNS)),
            num_tiles=GIANT_TILES, split="train", weight=1.0, targets=(float(number % 2),),
        ))  # fmt: skip
    return slides


def rank_of_the_paper(rank: int) -> Team:
    """Rank 0 aggregates, 1 to 11 encode."""
    return replace(make_team("single", device="cpu"), layout="dedicated", rank=rank, world_size=NUM_RANKS,
                   encoder_ranks=tuple(range(1, NUM_RANKS)))  # fmt: skip


def memory_slope() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        num_epochs = (WARM_STEPS + NUM_STEPS) // (4 * NUM_COPIES)
        config = with_settings(
            write_small_cohort(Path(folder)),
            run={"num_epochs": num_epochs, "keep_checkpoints": 2},
            step={"timeout_seconds": 1800.0},
        )
        resident_kb: list[float] = []
        with open_run(config, resume=False) as run:
            copies = [replace(slide, slide_key=f"{slide.slide_key}_{number}") for slide in run.cohort.slides
                      for number in range(NUM_COPIES if slide.split == "train" else 1)]  # fmt: skip
            run = replace(run, cohort=replace(run.cohort, slides=tuple(copies)))
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            assert run.record is not None, "one process records"
            write = run.record.step

            def step(number: int, line: dict[str, Any]) -> None:
                write(number, line)
                gc.collect()
                resident_kb.append(sum(own_memory_kb(process.pid) for process in processes))

            run.record.step = step  # type: ignore[method-assign, assignment]
            train(run)
    kept = np.array(resident_kb[WARM_STEPS:])
    slope = np.polyfit(np.arange(len(kept)), kept, 1)[0]
    return {
        "rss_slope_kb_per_step": round(float(slope), 2), "num_steps_measured": len(kept),
        "rss_first_mb": round(kept[0] / 1024, 1), "rss_last_mb": round(kept[-1] / 1024, 1), "num_processes": len(processes),
    }  # fmt: skip


def own_memory_kb(pid: int) -> int:
    """Resident memory without pages of files: the kernel takes those of libraries back when it likes (22 MB in 200 steps here)."""
    lines = (Path("/proc") / str(pid) / "status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


if __name__ == "__main__":
    main()
