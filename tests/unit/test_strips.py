"""Which neighbours are decoded together and what is copied where, decided without a file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ingest.geometry import TileGrid
from ingest.read_plan import Pieces, cut_pieces, scaled_boxes
from ingest.strips import Copies, cut_strips, join_pieces

SIZE_PX = 24  # of an output tile


def plan(
    boxes: NDArray[np.int64], tile: tuple[int, int], across: int, order: NDArray[np.int64], max_tiles: int, runs: bool
) -> tuple[Pieces, NDArray[np.int64], NDArray[np.int64], Copies]:
    pieces = cut_pieces(boxes, tile[0], tile[1], across, order)
    file_tiles = pieces.file_tile[np.flatnonzero(np.diff(pieces.file_tile, prepend=-1))]
    starts = cut_strips(file_tiles, across, max_tiles)
    return pieces, file_tiles, starts, join_pieces(pieces, starts, tile[0], SIZE_PX if runs else None)


def copy(
    image: NDArray[np.int64],
    tile: tuple[int, int],
    across: int,
    file_tiles: NDArray[np.int64],
    starts: NDArray[np.int64],
    copies: Copies,
    num_tiles: int,
) -> NDArray[np.int64]:
    """What a reader does with the plan, pixel by pixel; -1 where nothing was written, an error where twice."""
    out = np.full((num_tiles, SIZE_PX, SIZE_PX), -1)
    for strip, position, run, source_y, source_x, target_y, target_x, height, width in zip(*copies, strict=True):
        first, last = file_tiles[starts[strip]], file_tiles[starts[strip + 1] - 1]
        top, left = first // across * tile[1], first % across * tile[0]
        assert last // across == first // across
        pixels = image[top : top + tile[1], left : left + (last - first + 1) * tile[0]]
        for number in range(run):
            x = source_x + number * width
            place = out[position + number, target_y : target_y + height, target_x : target_x + width]
            assert (place == -1).all()
            place[:] = pixels[source_y : source_y + height, x : x + width]
    return out


@given(
    st.integers(8, 70), st.integers(8, 70), st.integers(1, 10), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_copies_fill_every_pixel_once_and_from_the_right_place(
    tile_width: int, tile_height: int, max_tiles: int, is_shuffled: bool, runs: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tile, across, down = (tile_width, tile_height), 9, 7
    width, height = across * tile_width, down * tile_height
    image = np.arange(width * height).reshape(height, width)
    columns, rows = width // SIZE_PX, height // SIZE_PX
    cells = np.flatnonzero(rng.random(columns * rows) < 0.7)
    shift = rng.integers(0, 1 + np.array([width - columns * SIZE_PX, height - rows * SIZE_PX]))
    corners = np.stack([cells % columns, cells // columns], axis=1) * SIZE_PX + shift
    corners = np.concatenate([corners, rng.integers(0, np.array([width, height]) - SIZE_PX + 1, (3, 2))])
    boxes = np.concatenate([corners, np.full_like(corners, SIZE_PX)], axis=1)
    order = rng.permutation(across * down) if is_shuffled else np.arange(across * down)
    pieces, file_tiles, starts, copies = plan(boxes, tile, across, order, max_tiles, runs)
    out = copy(image, tile, across, file_tiles, starts, copies, len(boxes))
    for position, (x, y, _, _) in enumerate(boxes):
        assert (out[position] == image[y : y + SIZE_PX, x : x + SIZE_PX]).all()
    assert len(copies.strip) <= len(pieces.position)
    assert runs or (copies.num_tiles == 1).all()
    assert (np.diff(copies.strip) >= 0).all()


def test_a_strip_ends_with_its_row_at_a_gap_and_when_it_is_full() -> None:
    file_tiles = np.array([2, 3, 4, 5, 6, 7, 8, 10, 11, 17])  # six tiles across: rows 0..2
    assert cut_strips(file_tiles, 6, 3).tolist() == [0, 3, 4, 7, 9, 10]  # 2-4, 5, 6-8, 10-11, 17
    assert cut_strips(np.array([5, 4, 3]), 6, 3).tolist() == [0, 1, 2, 3]  # a file written backwards
    assert cut_strips(np.array([], np.int64), 6, 3).tolist() == [0]


def test_tiles_that_lie_side_by_side_are_copied_together() -> None:
    """Four output tiles of 24 px over three file tiles of 32 px, one strip: their upper rows are one copy."""
    boxes = np.array([[x, 0, SIZE_PX, SIZE_PX] for x in (0, 24, 48, 72)])
    pieces, _, _, copies = plan(boxes, (32, 32), 3, np.arange(3), 8, True)
    assert len(pieces.position) == 6
    assert [column.tolist() for column in copies] == [[0], [0], [4], [0], [0], [0], [0], [24], [24]]
    _, _, _, copies = plan(boxes, (32, 32), 3, np.arange(3), 8, False)
    assert copies.position.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0), (24, 4)],  # the second lies lower
        [(0, 0), (24, 20)],  # and leaves the file's row
        [(0, 0), (60, 40), (24, 0)],  # a stranger between them
        [(0, 0), (25, 0)],  # a column of pixels between them
    ],
)
def test_only_output_tiles_in_one_line_are_copied_together(corners: list[tuple[int, int]]) -> None:
    boxes = np.array([[x, y, SIZE_PX, SIZE_PX] for x, y in corners])
    image = np.arange(96 * 96).reshape(96, 96)
    _, file_tiles, starts, copies = plan(boxes, (32, 32), 3, np.arange(9), 8, True)
    out = copy(image, (32, 32), 3, file_tiles, starts, copies, len(boxes))
    for position, (x, y) in enumerate(corners):
        assert (out[position] == image[y : y + SIZE_PX, x : x + SIZE_PX]).all()


@pytest.mark.parametrize(("denominator", "max_tiles", "most"), [(1, 5, 1.1), (2, 10, 0.4)])
def test_a_slide_needs_few_copies_for_a_tile_of_the_file(denominator: int, max_tiles: int, most: float) -> None:
    stride = 224 * denominator
    grid = TileGrid(
        width_px=60 * stride, height_px=60 * stride, slide_mpp=0.5 / denominator, tile_size_px=224, tile_mpp=0.5
    )
    side, across = 256 // denominator, -(-grid.width_px // 256)
    boxes, _ = scaled_boxes(grid, np.arange(3600), float(denominator), 60 * 224, 60 * 224)
    pieces = cut_pieces(boxes, side, side, across, np.arange(across**2))
    file_tiles = pieces.file_tile[np.flatnonzero(np.diff(pieces.file_tile, prepend=-1))]
    copies = join_pieces(pieces, cut_strips(file_tiles, across, max_tiles), side, 224)
    assert len(copies.strip) <= most * len(file_tiles)
    assert len(pieces.position) > 1.9 * len(file_tiles)  # what it would be one by one
