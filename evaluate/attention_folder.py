"""Everything a pathologist may want to see of one slide, in one folder.

`heatmap.png` (with legend), `most_attended.png`, `least_attended.png`, `attention.geojson.gz` (QuPath) and `viewer/`
(any browser, from disk).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.attention import Picture, attention_ranks, extreme_tiles, heat_map, save_png, tile_gallery, with_legend
from evaluate.qupath import write_geojson
from evaluate.roc import Ints
from evaluate.viewer import write_viewer
from ingest.atomic import atomic_folder
from ingest.geometry import TileGrid


def write_attention_folder(
    folder: Path,
    *,
    slide_key: str,
    thumbnail: Picture,
    grid: TileGrid,
    tile_indices: Ints,
    attention: NDArray[Any],
    read_tiles: Callable[[Ints], Picture],
    viewer_picture: Picture | None = None,
    origin_px: tuple[int, int] = (0, 0),
    num_tiles: int = 16,
) -> None:
    """Writes the folder whole or not at all; an older one of the same name is replaced.

    Args:
        thumbnail: the whole slide [H, W, 3] RGB, for the heat map; about 1,500 px wide.
        attention: [K] one weight for each of `tile_indices` [K].
        read_tiles: tile indices, rising, to tiles [k, S, S, 3] in that order.
        viewer_picture: a sharper picture of the whole slide for the viewer; None takes the thumbnail.
        origin_px: see `evaluate.qupath.write_geojson`.
        num_tiles: in each gallery.
    """
    ranks, extremes = attention_ranks(attention), extreme_tiles(attention, num_tiles)
    with atomic_folder(folder) as temporary:
        save_png(with_legend(heat_map(thumbnail, grid, tile_indices, attention)), temporary / "heatmap.png")
        for name, positions in (("most", extremes.most), ("least", extremes.least)):
            if not len(positions):
                continue
            rising = np.sort(positions)
            tiles = read_tiles(tile_indices[rising])[np.searchsorted(rising, positions)]
            title = f"{slide_key}: {name} attended tiles"
            save_png(tile_gallery(tiles, ranks[positions], title=title), temporary / f"{name}_attended.png")
        write_geojson(temporary / "attention.geojson.gz", grid, tile_indices, attention, origin_px=origin_px)
        picture = thumbnail if viewer_picture is None else viewer_picture
        write_viewer(temporary / "viewer", picture, grid, tile_indices, attention, title=slide_key)
