"""One optimisation step over 45,056 tiles, the largest slide of the paper's breast experiment, on this machine.

    python -m tests.benchmarks.giant_step --tile-px 64      five minutes on 2 cores
    python -m tests.benchmarks.giant_step --tile-px 224     about an hour on 2 quiet cores (7,800 CPU seconds), 6.8 GB of tiles

ResNet18 + GMA as in the paper; nothing is resident, so every tile is encoded twice. The record goes to
`build/bench/giant_step_<px>.json`: seconds by phase, peak memory, loss, and the change of the weights.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ingest.atomic import atomic_file
from ingest.progress import progress_line
from pretrain.aggregator import build_aggregator
from pretrain.config import AggregatorConfig, EncoderConfig, StepConfig, TaskConfig
from pretrain.encoder import build_encoder, num_features
from pretrain.heads import Heads
from pretrain.share import normalise
from pretrain.step import Models, ready_models, slide_step
from pretrain.team import Team, make_team
from pretrain.update import clip_gradients, reduce_gradients, trained_parameters
from tests.benchmarks.memory import peak_memory_bytes

GIANT_TILES = 45_056  # 11 devices x 4,096 tiles: Campanella et al. 2024, breast cancer detection
LEARNING_RATE = 5e-5  # its peak learning rate


def main() -> None:
    parser = argparse.ArgumentParser(description="One optimisation step over a giant slide")
    parser.add_argument("--tile-px", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=GIANT_TILES)
    parser.add_argument("--chunk-tiles", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=None, help="default build/bench/giant_step_<px>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = giant_step(options.tiles, options.tile_px, options.chunk_tiles, progress=True)
    output = options.output or Path("build/bench") / f"giant_step_{options.tile_px}.json"
    with atomic_file(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def giant_step(num_tiles: int, tile_px: int, chunk_tiles: int, progress: bool = False) -> dict[str, object]:
    """One whole step, optimiser included; memory is the peak of this process, with and without the tiles themselves."""
    team = make_team("single", device="cpu")
    config = StepConfig(resident_tiles=0, chunk_tiles=chunk_tiles)
    models = paper_models(team, config)
    parameters = list(trained_parameters([models.encoder, models.aggregator, models.heads]))
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    tiles_K3HW = invented_tiles(num_tiles, tile_px)
    before = [parameter.detach().clone() for parameter in parameters]
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    counter = Counter(2 * num_tiles) if progress else None
    result = slide_step(
        models, tiles_K3HW, (num_tiles,), torch.tensor([1.0]), team, config, seed=1, slide="giant",
        prepare=normalise if counter is None else counter.prepare,
    )  # fmt: skip
    update = reduce_gradients(models, team, config, [result], step=1)
    clip_gradients(models, update, 1.0)
    optimiser.step()
    elapsed_seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
    change = sum(float((now.detach() - was).square().sum()) for now, was in zip(parameters, before, strict=True)) ** 0.5
    peak_bytes = peak_memory_bytes()
    return {
        "num_tiles": num_tiles, "tile_px": tile_px, "chunk_tiles": chunk_tiles, "resident_tiles": 0,
        "encoder": "resnet18", "aggregator": "gma",
        "seconds": round(elapsed_seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),  # of all threads: tells a quiet machine from a busy one
        "seconds_by_phase": {phase: round(seconds, 1) for phase, seconds in result.seconds.items()},
        "peak_bytes": peak_bytes, "tile_bytes": tiles_K3HW.numel(), "peak_without_tiles_bytes": peak_bytes - tiles_K3HW.numel(),
        "loss": result.loss, "gradient_norm": update.norm, "weight_change": change,
        "num_threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip


def paper_models(team: Team, config: StepConfig) -> Models:
    """ResNet18 + GMA with one task, random weights."""
    torch.manual_seed(0)
    encoder_config = EncoderConfig(name="resnet18")
    aggregator = build_aggregator(AggregatorConfig(), num_features(encoder_config))
    heads = Heads(aggregator.num_features, (TaskConfig(),))
    given = Models(encoder=build_encoder(encoder_config), aggregator=aggregator, heads=heads)
    return ready_models(given, team, config)


def invented_tiles(num_tiles: int, tile_px: int) -> Tensor:
    """uint8 [T, 3, px, px] noise around a colour of each tile, in the memory order of the reader ([T, px, px, 3])."""
    generator = torch.Generator().manual_seed(3)
    tiles_KHW3 = torch.empty(num_tiles, tile_px, tile_px, 3, dtype=torch.uint8)
    noise_HW3 = torch.randint(0, 64, (tile_px, tile_px, 3), dtype=torch.uint8, generator=generator)
    colours_K3 = torch.randint(0, 192, (num_tiles, 1, 1, 3), dtype=torch.uint8, generator=generator)
    torch.add(colours_K3, noise_HW3, out=tiles_KHW3)
    return tiles_KHW3.permute(0, 3, 1, 2)


@dataclass(slots=True)
class Counter:
    """Prints how far the step is, now and then."""

    total: int
    done: int = 0
    started_at: float = field(default_factory=time.monotonic)
    printed_at: float = field(default_factory=time.monotonic)

    def prepare(self, tiles_K3HW: Tensor, tile_ids: Tensor, generator: torch.Generator) -> Tensor:
        now = time.monotonic()
        if self.done and now - self.printed_at > 20:
            self.printed_at = now
            line = progress_line("giant step, passes over tiles", self.done, self.total, now - self.started_at)
            print(line, file=sys.stderr, flush=True)
        self.done += len(tiles_K3HW)
        return normalise(tiles_K3HW, tile_ids, generator)


if __name__ == "__main__":
    main()
