"""Where the aggregator looked: percentile ranks, a heat map over the thumbnail, the most and least attended tiles.

Attention is shown as percentile rank by default. Softmax weights are peaked: the top 1 % of tiles held 87 % of the mass,
and a linear scale leaves the rest of the slide "cold". Attention is what the model weighed, not where tumour is; the
legend says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluate.roc import Floats, Ints
from ingest.atomic import atomic_file
from ingest.errors import InputError
from ingest.geometry import TileGrid

Picture = NDArray[np.uint8]
COLOUR_MAP = "RdYlBu_r"  # blue least, yellow middle, red most: told apart with every common colour blindness
LEGEND_PX = 46
GAP_PX = 6
LEGEND_TEXT = "Attention, percentile rank within this slide. It shows what the model weighed, not where tumour is."


@dataclass(frozen=True, slots=True)
class Extremes:
    """Positions into `tile_indices` of the most and the least attended tiles, the strongest (weakest) first."""

    most: Ints
    least: Ints


def attention_ranks(attention: NDArray[Any]) -> Floats:
    """[K] percentile ranks inside 0..1, ties sharing their mean rank; all equal attention gives 0.5 everywhere.

    Raises:
        InputError: no tiles, or a weight is NaN or infinite.
    """
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise InputError(f"attention has shape {weights.shape}; give one weight for each tile")
    if num_bad := int((~np.isfinite(weights)).sum()):
        raise InputError(f"{num_bad} of {len(weights)} attention weights are NaN or infinite; predict this slide again")
    ranks: Floats = (rankdata(weights) - 0.5) / len(weights)
    return ranks


def rank_image(grid: TileGrid, tile_indices: Ints, ranks: Floats) -> NDArray[np.float32]:
    """[rows, columns] rank of each cell of the grid, NaN where no tile was read."""
    if tile_indices.shape != ranks.shape:
        raise InputError(f"{len(tile_indices)} tiles but {len(ranks)} attention weights; they must go together")
    if len(tile_indices) and not 0 <= int(tile_indices.min()) <= int(tile_indices.max()) < grid.num_cells:
        raise InputError(
            f"tile index {int(tile_indices.max())} lies outside the grid of {grid.num_cells} cells; other manifest?"
        )
    cells = np.full(grid.num_cells, np.nan, dtype=np.float32)
    cells[tile_indices] = ranks
    return cells.reshape(grid.num_rows, grid.num_columns)


def heat_map(
    thumbnail: Picture, grid: TileGrid, tile_indices: Ints, attention: NDArray[Any], *, opacity: float = 0.5
) -> Picture:
    """The thumbnail [H, W, 3] RGB with every tile tinted by its rank; what was not read stays as it is."""
    cells = rank_image(grid, tile_indices, attention_ranks(attention))
    height, width = thumbnail.shape[:2]
    rows = _cells_of_pixels(height, grid.height_px, grid.stride_px)
    columns = _cells_of_pixels(width, grid.width_px, grid.stride_px)
    inside = (rows < grid.num_rows)[:, None] & (columns < grid.num_columns)[None, :]
    ranks = cells[np.ix_(np.minimum(rows, grid.num_rows - 1), np.minimum(columns, grid.num_columns - 1))]
    painted = inside & np.isfinite(ranks)
    result = thumbnail.copy()
    colours = colour_table()[(ranks[painted] * 255).astype(np.int64)]
    result[painted] = np.round(opacity * colours + (1 - opacity) * thumbnail[painted]).astype(np.uint8)
    return result


def with_legend(picture: Picture) -> Picture:
    """The picture on a white page with the colour bar and the caution below it."""
    width = max(picture.shape[1], 620)
    page = np.full((picture.shape[0] + LEGEND_PX, width, 3), 255, dtype=np.uint8)
    page[: picture.shape[0], : picture.shape[1]] = picture
    bar = np.repeat(colour_table()[None, :, :], 10, axis=0).astype(np.uint8)
    top = picture.shape[0] + 8
    page[top : top + 10, 60 : 60 + bar.shape[1]] = bar
    texts = [(8, top - 3, "least"), (60 + bar.shape[1] + 8, top - 3, "most attended"), (8, top + 16, LEGEND_TEXT)]
    return _written(page, texts)


def extreme_tiles(attention: NDArray[Any], num: int = 8) -> Extremes:
    """The `num` most and `num` least attended tiles; with few tiles the two never share one."""
    weights = np.asarray(attention, dtype=np.float64)
    order = np.argsort(-weights, kind="stable")
    num_most = min(num, (len(weights) + 1) // 2)
    num_least = min(num, len(weights) - num_most)
    return Extremes(order[:num_most].astype(np.int64), order[::-1][:num_least].astype(np.int64))


def tile_gallery(tiles: Picture, ranks: Floats, *, num_columns: int = 8, title: str = "") -> Picture:
    """Tiles [K, S, S, 3] in rows with their percentile rank below each; [H, W, 3]."""
    num, side = tiles.shape[0], tiles.shape[1]
    num_columns = max(1, min(num_columns, num))
    num_rows = -(-num // num_columns)
    top = 26 if title else 0
    cell_height, cell_width = side + 18 + GAP_PX, side + GAP_PX
    page = np.full((top + num_rows * cell_height + GAP_PX, num_columns * cell_width + GAP_PX, 3), 255, dtype=np.uint8)
    texts = [(GAP_PX, 5, title)] if title else []
    for position in range(num):
        row, column = divmod(position, num_columns)
        y, x = top + GAP_PX + row * cell_height, GAP_PX + column * cell_width
        page[y : y + side, x : x + side] = tiles[position]
        texts.append((x, y + side + 1, f"rank {100 * ranks[position]:.1f} %"))
    return _written(page, texts)


def save_png(picture: Picture, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(png_bytes(picture))


def png_bytes(picture: Picture) -> bytes:
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, "PNG of an 8-bit picture"
    return bytes(encoded.tobytes())


def colour_table() -> Floats:
    """[256, 3] RGB 0..255 from the least to the most attended."""
    from matplotlib import colormaps

    table: Floats = np.asarray(colormaps[COLOUR_MAP](np.arange(256))[:, :3], dtype=np.float64) * 255
    return table


def _cells_of_pixels(num_pixels: int, length_px: int, stride_px: float) -> Ints:
    """Row (or column) of the grid under the middle of each thumbnail pixel."""
    middles = (np.arange(num_pixels) + 0.5) * length_px / num_pixels
    return np.floor(middles / stride_px).astype(np.int64)


def _written(page: Picture, texts: list[tuple[int, int, str]]) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(page)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=13)
    for x, y, text in texts:
        pen.text((x, y), text, fill=(40, 46, 52), font=font)
    return np.asarray(image, dtype=np.uint8)
