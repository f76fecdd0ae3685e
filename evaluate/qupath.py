"""Attention as QuPath tiles: gzipped GeoJSON that QuPath 0.4 and later opens by drag and drop."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.attention import attention_ranks, colour_table
from evaluate.roc import Ints
from ingest.atomic import atomic_file
from ingest.geometry import TileGrid

MANY_TILES = (
    50_000  # above this only the upper half is written: 20,000 tiles are 0.4 MB gzipped, QuPath slows at 100,000
)
NUM_CLASSES = 10


def write_geojson(
    path: Path,
    grid: TileGrid,
    tile_indices: Ints,
    attention: NDArray[Any],
    *,
    origin_px: tuple[int, int] = (0, 0),
    min_rank: float | None = None,
) -> int:
    """One square a tile in full-resolution pixels, with rank and weight as measurements; returns how many.

    Args:
        path: ends in .geojson.gz.
        origin_px: level-0 x, y of QuPath's (0, 0). QuPath crops MIRAX scans to their bounds: give openslide.bounds-x
            and -y there, else (0, 0).
        min_rank: leave out tiles of a lower rank; None writes all up to `MANY_TILES` tiles, else the upper half.
    """
    ranks = attention_ranks(attention)
    limit = min_rank if min_rank is not None else (0.5 if len(ranks) > MANY_TILES else 0.0)
    kept = np.flatnonzero(ranks >= limit)
    boxes = grid.boxes(tile_indices[kept])
    weights = np.asarray(attention, dtype=np.float64)
    classes = _classes()
    features = [
        _feature(box, origin_px, float(ranks[k]), float(weights[k]), classes[int(ranks[k] * NUM_CLASSES)])
        for k, box in zip(kept, boxes.tolist(), strict=True)
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return len(features)


def _feature(
    box: list[int], origin_px: tuple[int, int], rank: float, weight: float, classification: dict[str, Any]
) -> dict[str, Any]:
    left, top = box[0] - origin_px[0], box[1] - origin_px[1]
    right, bottom = left + box[2], top + box[3]
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "tile",
            "classification": classification,
            # A mapping: lists of name and value are the form before QuPath 0.4.
            "measurements": {"attention rank": round(rank, 5), "attention": float(f"{weight:.6g}")},
        },
    }


def _classes() -> list[dict[str, Any]]:
    """One QuPath class for each tenth of the ranks, in the colours of the heat map."""
    colours = colour_table()[(np.arange(NUM_CLASSES) * 2 + 1) * 255 // (2 * NUM_CLASSES)]
    step = 100 // NUM_CLASSES
    return [
        {"name": f"Attention {k * step}-{(k + 1) * step} %", "color": [int(value) for value in colours[k]]}
        for k in range(NUM_CLASSES)
    ]
