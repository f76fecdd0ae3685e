"""What `evaluate features` costs over the bare network, tiles being in memory.

    python -m tests.benchmarks.bench_features

Writes `build/bench/features.json`. All figures come from one run:
    features_over_bare_forward      tiles/s of encoding a slide, rounding it and writing its files, over tiles/s of a bare loop
                                    of encoder forward passes on tiles that are already normalised (>= 0.95)
    features_*_tiles_per_second     medians

CPU seconds of this process with one thread, so that other work on the machine does not count (reading is another process); the
two kinds alternate and the median round of each counts.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.feature_layout import FeatureStore, write_features
from evaluate.features import FeaturesConfig, encode_tiles, feature_store, prepare_encoder
from evaluate.frozen import FrozenEncoder, open_encoder
from evaluate.tile_blocks import Scan, plan_blocks, read_blocks
from ingest.atomic import atomic_file
from ingest.geometry import TileGrid, pack_mask
from pretrain.augment import normalise
from tests.benchmarks.rounds import cpu_seconds_in_turn
from tests.slides import write_textured_svs

LIMIT = 0.95
NUM_COLUMNS, NUM_ROWS, TILE_PX = 16, 8, 224
CONFIG = FeaturesConfig(device="cpu", block_tiles=96, chunk_tiles=32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of features over the bare network")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="resnet18:random")
    parser.add_argument("--output", type=Path, default=Path("build/bench/features.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = open_encoder(options.encoder)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(encoder, options.rounds, Path(folder))
    record["limits_held"] = record["features_over_bare_forward"] >= LIMIT
    with atomic_file(options.output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def measure(encoder: FrozenEncoder, num_rounds: int, folder: Path) -> dict[str, float]:
    scan = textured_scan(folder)
    store = feature_store(encoder, [scan], folder / "features", CONFIG)
    prepare_encoder(encoder, CONFIG, TILE_PX)
    tiles_KHW3 = read_all(scan)
    prepared = normalised(encoder, tiles_KHW3)
    kinds: dict[str, Callable[[], None]] = {
        "bare": lambda: bare_forward(encoder, prepared),
        "features": lambda: extract_from_memory(encoder, scan, tiles_KHW3, store),
    }
    seconds = cpu_seconds_in_turn(kinds, num_rounds)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "features_over_bare_forward": middle["bare"] / middle["features"],
        "features_tiles_per_second": scan.num_tiles / middle["features"],
        "features_bare_tiles_per_second": scan.num_tiles / middle["bare"],
        "features_num_tiles": scan.num_tiles,
    }


def bare_forward(encoder: FrozenEncoder, prepared: list[Tensor]) -> None:
    with torch.inference_mode():
        for chunk in prepared:
            encoder.module(chunk)


def extract_from_memory(encoder: FrozenEncoder, scan: Scan, tiles_KHW3: NDArray[np.uint8], store: FeatureStore) -> None:
    features = encode_tiles(encoder, tiles_KHW3, torch.device("cpu"), CONFIG).numpy()
    write_features(store, scan, features)


def normalised(encoder: FrozenEncoder, tiles_KHW3: NDArray[np.uint8]) -> list[Tensor]:
    chunks = torch.split(torch.from_numpy(tiles_KHW3).permute(0, 3, 1, 2), CONFIG.chunk_tiles)
    return [normalise(chunk.float().div_(255), encoder.mean, encoder.std) for chunk in chunks]


def read_all(scan: Scan) -> NDArray[np.uint8]:
    tiles = np.empty((scan.num_tiles, TILE_PX, TILE_PX, 3), np.uint8)
    for block in read_blocks(plan_blocks([scan], scan.num_tiles), block_tiles=scan.num_tiles, tile_size_px=TILE_PX):
        assert block.tiles_KHW3 is not None, block.problem
        tiles[:] = block.tiles_KHW3
    return tiles


def textured_scan(folder: Path) -> Scan:
    """A 20x slide of a texture like stained tissue, every cell of it tissue."""
    path = folder / "slide.svs"
    size = (NUM_COLUMNS * TILE_PX, NUM_ROWS * TILE_PX)
    write_textured_svs(path, size, 0.5, downsamples=(1,))
    grid = TileGrid(width_px=size[0], height_px=size[1], slide_mpp=0.5, tile_size_px=TILE_PX, tile_mpp=0.5)
    mask = np.ones((grid.num_rows, grid.num_columns), np.bool_)
    return Scan(
        slide_key="slide", patient_key="patient", path=path, grid=grid, mask=pack_mask(mask), num_tiles=grid.num_cells
    )


if __name__ == "__main__":
    main()
