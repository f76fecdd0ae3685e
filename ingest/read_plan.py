"""What to read for a set of tiles: at which level and scale, and which part of which file tile goes where.

Pure functions of the grid and the file's layout, so that they are tested without a file. One rule: every tile of
the file that is needed is decoded once, in file order, at the coarsest scale that still carries the detail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.errors import ResolutionError, SlideError
from ingest.geometry import RESOLUTION_TOLERANCE, TileGrid

# A scale within 0.5 % of the one asked for is taken pixel for pixel from the middle of the tile's box: at most one
# of 224 pixels is left out or shared, where a resize would blur all of them. Beyond it, one resize per tile.
NATIVE_TOLERANCE = 0.005
WHITE = 255  # background, and what damaged parts of a tile are filled with
DAMAGED = "damaged"  # reason of a tile in a ReadReport
SCREEN_MPP = 100.0  # 72 and 96 dpi read as 352.8 and 264.6 um; no slide scanner is as coarse as this
_NOT_SQUARE = 0.02  # relative difference of mpp in x and y above which the pixels are not square
MAX_DAMAGED = 0.01  # share of damaged tiles above which a slide is not used


@dataclass(frozen=True, slots=True)
class Level:
    """One pyramid level: its size and how many level-0 pixels one of its pixels covers."""

    width_px: int
    height_px: int
    downsample: float


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What a file says about itself.

    Attributes:
        mpp: micrometres per level-0 pixel, None where the file does not say it in earnest.
        levels: level 0 first, then coarser ones.
        vendor: format as OpenSlide names it, such as aperio or generic-tiff.
        scanner: model of the scanner, empty where unknown; never a serial number.
    """

    width_px: int
    height_px: int
    mpp: float | None
    levels: tuple[Level, ...]
    vendor: str
    scanner: str


@dataclass(frozen=True, slots=True)
class ReadReport:
    """How a read went.

    Attributes:
        bad: (position in the request, reason) of tiles that are not as they were scanned; they are white where damaged.
        num_file_tiles_decoded: JPEG tiles of the file that were decoded; 0 for readers that do not tell.
    """

    bad: tuple[tuple[int, str], ...]
    num_file_tiles_decoded: int


class ReadScale(NamedTuple):
    """Read `level`, decoded at 1/`denominator`; one pixel then covers `downsample` level-0 pixels."""

    level: int
    denominator: int
    downsample: float


class Pieces(NamedTuple):
    """Copies from file tiles to output tiles, all [P], grouped by file tile in the order of `order_key`."""

    file_tile: NDArray[np.int64]
    position: NDArray[np.int64]
    source_y: NDArray[np.int64]
    source_x: NDArray[np.int64]
    target_y: NDArray[np.int64]
    target_x: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def check_damage(num_bad: int, num_tiles: int, max_damaged: float = MAX_DAMAGED) -> None:
    """Refuse a slide of which more than the share `max_damaged` of the tiles could not be read.

    Raises:
        SlideError: `cannot_read` when nothing could be read, `damaged_tiles` when too little could.
    """
    if num_bad == 0:
        return
    if num_bad == num_tiles:
        raise SlideError("cannot_read", f"opens, but none of {num_tiles} tiles can be read; copy the file again")
    if num_bad > max(1.0, max_damaged * num_tiles):  # one tile of a small biopsy is left out, not the biopsy
        raise SlideError(
            "damaged_tiles",
            f"{num_bad} of {num_tiles} tiles are damaged, more than {max_damaged:.1%}; "
            "copy the file again, or raise tiles.max_damaged",
        )


def choose_scale(
    levels: Sequence[Level],
    denominators: Sequence[Sequence[int]],
    slide_mpp: float,
    mpp: float,
    tolerance: float = RESOLUTION_TOLERANCE,
) -> ReadScale:
    """The coarsest of all (level, 1/denominator) that is not more than `tolerance` coarser than `mpp`.

    Args:
        denominators: for each level the scales its decoder offers, such as (1, 2, 4, 8).
    Raises:
        ResolutionError: `coarse_scan`: even level 0 is coarser than `mpp`.
    """
    best: ReadScale | None = None
    for index, level in enumerate(levels):
        for denominator in denominators[index]:
            downsample = level.downsample * denominator
            if downsample * slide_mpp > mpp * (1 + tolerance):
                continue
            # On a tie the later level wins: fewer bytes and a cheaper decode for the same pixels.
            if best is None or downsample >= best.downsample * 0.999:
                best = ReadScale(index, denominator, downsample)
    if best is None:
        raise ResolutionError(
            "coarse_scan", f"scanned at {slide_mpp:.4g} mpp, asked for {mpp:.4g}; ask for {slide_mpp:.4g} or coarser"
        )
    return best


def scaled_boxes(
    grid: TileGrid, tile_indices: NDArray[np.int64], downsample: float, width_px: int, height_px: int
) -> tuple[NDArray[np.int64], bool]:
    """The tiles' boxes in pixels of the scale that is read, inside its `width_px` x `height_px`.

    Returns:
        [K, 4] boxes x, y, width, height, and whether they have the size of the tiles already (no resize).
    """
    boxes = grid.boxes(tile_indices).astype(np.float64) / downsample
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    limit = np.array([width_px, height_px], dtype=np.int64)
    size = grid.tile_size_px
    is_native = abs(grid.stride_px / downsample / size - 1) <= NATIVE_TOLERANCE and size <= limit.min()
    if is_native:
        left_top = np.clip(_round((start + end - size) / 2), 0, limit - size)
        sizes = np.full_like(left_top, size)
    else:
        left_top = np.clip(_round(start), 0, limit - 1)
        sizes = np.clip(_round(end), left_top + 1, limit) - left_top
    return np.concatenate([left_top, sizes], axis=1), is_native


def cut_pieces(
    boxes: NDArray[np.int64], tile_width_px: int, tile_height_px: int, num_across: int, order_key: NDArray[np.int64]
) -> Pieces:
    """Cut output boxes along the edges of the file's tiles.

    Args:
        boxes: [K, 4] x, y, width, height, in the same pixels as the file tile's size.
        num_across: file tiles in a row; a file tile's index is row * num_across + column.
        order_key: for every file tile of the level its place in the reading order, such as its offset in the file.
    """
    x, y, width, height = boxes.T
    first_column, last_column = x // tile_width_px, (x + width - 1) // tile_width_px
    first_row, last_row = y // tile_height_px, (y + height - 1) // tile_height_px
    num_columns = last_column - first_column + 1
    num_pieces = num_columns * (last_row - first_row + 1)
    position = np.repeat(np.arange(len(boxes), dtype=np.int64), num_pieces)
    within = np.arange(len(position), dtype=np.int64) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    row = first_row[position] + within // num_columns[position]
    column = first_column[position] + within % num_columns[position]
    file_tile = row * num_across + column
    order = np.argsort(order_key[file_tile], kind="stable")
    file_tile, position, row, column = file_tile[order], position[order], row[order], column[order]
    left = np.maximum(x[position], column * tile_width_px)
    right = np.minimum((x + width)[position], (column + 1) * tile_width_px)
    top = np.maximum(y[position], row * tile_height_px)
    bottom = np.minimum((y + height)[position], (row + 1) * tile_height_px)
    return Pieces(
        file_tile=file_tile,
        position=position,
        source_y=top - row * tile_height_px,
        source_x=left - column * tile_width_px,
        target_y=top - y[position],
        target_x=left - x[position],
        height=bottom - top,
        width=right - left,
    )


def thumbnail_size(info: SlideInfo, slide_mpp: float, mpp: float) -> tuple[int, int]:
    """Width and height of the whole slide at `mpp`, at least one pixel."""
    return max(1, round(info.width_px * slide_mpp / mpp)), max(1, round(info.height_px * slide_mpp / mpp))


def trusted_mpp(mpp_x: float | None, mpp_y: float | None) -> float | None:
    """One mpp of both axes, or None where they are missing, a screen's dpi, or of pixels that are not square."""
    if not mpp_x or not mpp_y or not (0 < mpp_x < SCREEN_MPP and 0 < mpp_y < SCREEN_MPP):
        return None
    if abs(mpp_x - mpp_y) > _NOT_SQUARE * max(mpp_x, mpp_y):
        return None
    return mpp_x if mpp_x == mpp_y else (mpp_x + mpp_y) / 2


def resize_into(pixels: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """One resize to the size of `target`: the area average where it shrinks, cubic where it grows (by 6 % at most)."""
    size = target.shape[1], target.shape[0]
    shrinks = pixels.shape[0] > size[1] or pixels.shape[1] > size[0]
    cv2.resize(pixels, size, dst=target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _round(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(values + 0.5).astype(np.int64)
