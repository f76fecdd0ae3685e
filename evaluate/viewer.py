"""A folder that shows a slide and its attention in any browser, straight from disk: no server, no network.

`slide.dzi` and `slide_files/` are a DeepZoom pyramid (other DeepZoom viewers open it too); `index.html` holds a small
viewer of our own and the attention, one pixel a tile.
"""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from evaluate.attention import LEGEND_TEXT, Picture, attention_ranks, colour_table, rank_image
from evaluate.roc import Ints
from ingest.atomic import atomic_folder
from ingest.geometry import TileGrid

TILE_PX = 254
OVERLAP_PX = 1  # neighbours share a pixel, so that no seam shows at fractional zoom
JPEG_QUALITY = 85


def write_viewer(
    folder: Path, picture: Picture, grid: TileGrid, tile_indices: Ints, attention: NDArray[Any], *, title: str
) -> Path:
    """Returns the page to open.

    Args:
        picture: the whole slide [H, W, 3] RGB, as sharp as wished: 4 mpp of a 100,000 px scan is 19 MB of tiles.
        title: shown above; a slide key, never a patient's name.
    """
    ranks = rank_image(grid, tile_indices, attention_ranks(attention))
    cells = np.where(np.isfinite(ranks), 1 + np.nan_to_num(ranks) * 254, 0).astype(np.uint8)  # 0 = no tile
    template = Environment(
        loader=PackageLoader("evaluate", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("viewer.html.j2")
    with atomic_folder(folder) as temporary:
        num_levels = write_deep_zoom(picture, temporary / "slide.dzi")
        page = template.render(
            title=title,
            caution=LEGEND_TEXT,
            facts={
                "width": picture.shape[1], "height": picture.shape[0], "levels": num_levels, "tile": TILE_PX,
                "overlap": OVERLAP_PX, "rows": grid.num_rows, "columns": grid.num_columns,
                "cellWidth": grid.stride_px * picture.shape[1] / grid.width_px,
                "cellHeight": grid.stride_px * picture.shape[0] / grid.height_px,
                "cells": base64.b64encode(cells.tobytes()).decode(),
                "colours": colour_table().round().astype(int).tolist(),
            },
        )  # fmt: skip
        (temporary / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def write_deep_zoom(picture: Picture, path: Path) -> int:
    """`NAME.dzi` and `NAME_files/LEVEL/COLUMN_ROW.jpg`, level 0 being one pixel; returns the number of levels."""
    height, width = picture.shape[:2]
    num_levels = int(np.ceil(np.log2(max(height, width)))) + 1
    current = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    for level in range(num_levels - 1, -1, -1):
        folder = path.with_name(f"{path.stem}_files") / str(level)
        folder.mkdir(parents=True)
        level_height, level_width = current.shape[:2]
        for row in range(-(-level_height // TILE_PX)):
            for column in range(-(-level_width // TILE_PX)):
                top, left = max(0, row * TILE_PX - OVERLAP_PX), max(0, column * TILE_PX - OVERLAP_PX)
                bottom, right = (row + 1) * TILE_PX + OVERLAP_PX, (column + 1) * TILE_PX + OVERLAP_PX
                tile = current[top:bottom, left:right]
                cv2.imwrite(str(folder / f"{column}_{row}.jpg"), tile, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        half = (max(1, (level_width + 1) // 2), max(1, (level_height + 1) // 2))
        current = cv2.resize(current, half, interpolation=cv2.INTER_AREA)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="{OVERLAP_PX}" '
        f'TileSize="{TILE_PX}"><Size Width="{width}" Height="{height}"/></Image>\n',
        encoding="utf-8",
    )
    return num_levels
