"""Linear probe and nearest neighbours of several encoders on labelled tiles, all on the same folds of whole patients."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluate.features import FeaturesConfig, encode_tiles, prepare_encoder
from evaluate.frozen import FrozenEncoder, require_geometry
from evaluate.labelled_tiles import LabelledTiles, num_place_blocks, place_blocks
from evaluate.linear_probe import Fold, ProbeScores, linear_probe, nearest_neighbours, patient_folds
from evaluate.probe_config import ProbeConfig
from evaluate.probe_result import ProbeRow, probe_row
from evaluate.roc import Floats
from evaluate.tile_blocks import read_blocks
from ingest.errors import InputError
from ingest.progress import track


def probe_tiles(
    encoders: Mapping[str, FrozenEncoder], tiles: LabelledTiles, config: ProbeConfig, features: FeaturesConfig
) -> list[ProbeRow]:
    """Linear probe and nearest neighbours of each encoder on the same folds."""
    folds = patient_folds(tiles.labels, tiles.patients, config.num_folds, config.seed)
    rows = []
    for name, encoder in encoders.items():
        values = tile_features(encoder, tiles, features, f"tiles through {name}")
        rows += _tile_rows(name, values, tiles, folds, config)
    if config.colour_baseline and tiles.images is not None:
        rows += _tile_rows("colour", colour_features(tiles.images), tiles, folds, config)
    return rows


def tile_features(encoder: FrozenEncoder, tiles: LabelledTiles, config: FeaturesConfig, title: str) -> Floats:
    """[n, F] of the labelled tiles.

    Raises:
        InputError: a slide with labelled tiles cannot be read.
    """
    if tiles.images is not None:
        device = prepare_encoder(encoder, config, tiles.images.shape[1])
        step = config.block_tiles
        parts = [
            encode_tiles(encoder, tiles.images[first : first + step], device, config).numpy()
            for first in track(range(0, len(tiles.images), step), -(-len(tiles.images) // step), title)
        ]
        return np.concatenate(parts).astype(np.float64)
    grid = tiles.places[0][0].grid
    require_geometry(encoder, grid.tile_size_px, grid.tile_mpp)
    device = prepare_encoder(encoder, config, grid.tile_size_px)
    found: dict[tuple[str, int], NDArray[np.float32]] = {}
    blocks = read_blocks(place_blocks(tiles, config.block_tiles), block_tiles=config.block_tiles,
                         tile_size_px=grid.tile_size_px, reader=config.reader, num_threads=config.reader_threads,
                         timeout_seconds=config.timeout_seconds)  # fmt: skip
    for block in track(blocks, num_place_blocks(tiles, config.block_tiles), title):
        if block.tiles_KHW3 is None:
            raise InputError(
                f"slide {block.scan.slide_key}: {block.problem}; leave its tiles out of the table of labels"
            )
        encoded = encode_tiles(encoder, block.tiles_KHW3, device, config).numpy()
        found.update(
            ((block.scan.slide_key, int(index)), row) for index, row in zip(block.tile_indices, encoded, strict=True)
        )
    return np.stack([found[scan.slide_key, index] for scan, index in tiles.places]).astype(np.float64)


def colour_features(images: NDArray[np.uint8]) -> Floats:
    """[n, 16] mean, deviation and three percentiles of red, green and blue, and mean saturation: what needs no network."""
    pixels = images.reshape(len(images), -1, 3)
    saturation = (pixels.max(axis=2).astype(np.float64) - pixels.min(axis=2)).mean(axis=1)
    percentiles = np.percentile(pixels, [10, 50, 90], axis=1).transpose(1, 0, 2).reshape(len(images), -1)
    return np.column_stack([pixels.mean(axis=1), pixels.std(axis=1), percentiles, saturation])


def tiles_sentence(tiles: LabelledTiles, config: ProbeConfig) -> str:
    left_out = ", ".join(f"{reason} {count}" for reason, count in tiles.left_out.items()) or "none"
    return (f"Tiles: {len(tiles.labels):,}, {int(tiles.labels.sum()):,} positive, of {len(set(tiles.patients)):,} patients, in "
            f"{config.num_folds} folds of whole patients; left out: {left_out}.")  # fmt: skip


def _tile_rows(
    name: str, values: Floats, tiles: LabelledTiles, folds: Sequence[Fold], config: ProbeConfig
) -> list[ProbeRow]:
    ways: dict[str, Callable[[], ProbeScores]] = {
        "linear": lambda: linear_probe(values, tiles.labels, tiles.patients, folds, config.costs, config.num_inner_folds,
                                       config.seed),
        "neighbours": lambda: nearest_neighbours(values, tiles.labels, tiles.patients, folds, config.num_neighbours),
    }  # fmt: skip
    rows = []
    for method, compute in ways.items():
        scores = compute()
        frame = pd.DataFrame({
            "slide_key": [f"tile{number:07d}" for number in range(len(tiles.labels))], "patient_key": tiles.patients,
            "label": tiles.labels.astype(np.float64), "score": scores.scores, "split": "test", "task": "tiles", "fold": 0,
        })  # fmt: skip
        details = {"fold_aurocs": list(scores.fold_aurocs), "chosen_costs": list(scores.chosen_costs)}
        rows.append(probe_row("tile", method, name, frame, details))
    return rows
