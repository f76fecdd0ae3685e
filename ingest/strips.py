"""Strips: neighbouring tiles of a file that are decoded together, and the copies from them to the output tiles.

A copy costs the interpreter 2 us whatever its size, and threads wait for each other at each of them. A scan read at its
own 20x has 3.9 pieces (file tile x output tile) for each tile of 256 px, one of 40x read at 20x has 2.0. Laid side by
side in strips, whole runs of output tiles are copied at once: 1.1 and 0.4 copies are left, and two threads finish
about 6 % earlier. Pure functions of the plan, tested without a file.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.read_plan import Pieces


class Copies(NamedTuple):
    """Copies from strips to output tiles, all [C], grouped by strip in reading order.

    A copy of `num_tiles` > 1 fills rows of that many output tiles, `position` and the following, in their full width;
    their sources lie side by side.
    """

    strip: NDArray[np.int64]
    position: NDArray[np.int64]
    num_tiles: NDArray[np.int64]
    source_y: NDArray[np.int64]
    source_x: NDArray[np.int64]
    target_y: NDArray[np.int64]
    target_x: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def cut_strips(file_tiles: NDArray[np.int64], num_across: int, max_tiles: int) -> NDArray[np.int64]:
    """Where the strips begin: each is a run of neighbours in one row of the file, at most `max_tiles` of them.

    Args:
        file_tiles: [F] tiles to decode, in reading order; an index is row * `num_across` + column.
    Returns:
        [S + 1]; strip s is file_tiles[starts[s] : starts[s + 1]].
    """
    numbers = np.arange(len(file_tiles))
    is_first = np.ones(len(file_tiles), bool)
    is_first[1:] = (np.diff(file_tiles) != 1) | (file_tiles[1:] % num_across == 0)
    run_start = np.maximum.accumulate(np.where(is_first, numbers, 0))
    return np.append(np.flatnonzero((numbers - run_start) % max_tiles == 0), len(file_tiles))


def join_pieces(pieces: Pieces, starts: NDArray[np.int64], tile_width_px: int, run_width_px: int | None) -> Copies:
    """The pieces of `cut_pieces`, at least one, joined as far as they lie side by side in a strip.

    Args:
        starts: of the strips, from `cut_strips` over the pieces' file tiles in their order.
        run_width_px: width of all output tiles, to join runs of them too; None where each is an array of its own.
    """
    number = np.cumsum(np.diff(pieces.file_tile, prepend=pieces.file_tile[:1]) != 0)
    strip = np.searchsorted(starts, number, side="right") - 1
    source_x = pieces.source_x + (number - starts[strip]) * tile_width_px
    order = np.lexsort((source_x, pieces.position, strip))
    copies = Copies(
        strip=strip[order],
        position=pieces.position[order],
        num_tiles=np.ones(len(order), np.int64),
        source_y=pieces.source_y[order],
        source_x=source_x[order],
        target_y=pieces.target_y[order],
        target_x=pieces.target_x[order],
        height=pieces.height[order],
        width=pieces.width[order],
    )
    # A strip holds one row of the file, so that what it has of an output tile is one rectangle.
    follows = (np.diff(copies.strip) == 0) & (np.diff(copies.position) == 0)
    firsts = _firsts(follows)
    width = np.add.reduceat(copies.width, firsts)
    copies = Copies(*(column[firsts] for column in copies))._replace(width=width)
    if run_width_px is None:
        return copies
    is_full = copies.width == run_width_px
    follows = is_full[1:] & is_full[:-1] & (np.diff(copies.strip) == 0) & (np.diff(copies.position) == 1)
    for column in (copies.source_y, copies.target_y, copies.height):
        follows &= np.diff(column) == 0
    follows &= np.diff(copies.source_x) == run_width_px
    firsts = _firsts(follows)
    num_tiles = np.diff(np.append(firsts, len(copies.strip)))
    return Copies(*(column[firsts] for column in copies))._replace(num_tiles=num_tiles)


def _firsts(follows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the items that begin a group; `follows`[i] says whether item i + 1 belongs to item i's."""
    return np.append(0, np.flatnonzero(~follows) + 1)
