"""The one tile grid: what fits, where it lies, and when it is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ResolutionError
from ingest.geometry import TileGrid, pack_mask, unpack_mask


def grid(width_px: int, height_px: int, slide_mpp: float, tile_size_px: int = 224, tile_mpp: float = 0.5) -> TileGrid:
    return TileGrid(
        width_px=width_px, height_px=height_px, slide_mpp=slide_mpp, tile_size_px=tile_size_px, tile_mpp=tile_mpp
    )


def test_a_40x_scan_has_tiles_of_448_pixels_and_none_that_crosses_the_edge() -> None:
    tiles = grid(1000, 900, 0.25)
    assert (tiles.stride_px, tiles.num_columns, tiles.num_rows, tiles.num_cells) == (448.0, 2, 2, 4)
    assert tiles.boxes(np.array([0, 1, 3])).tolist() == [[0, 0, 448, 448], [448, 0, 448, 448], [448, 448, 448, 448]]


def test_a_slide_smaller_than_a_tile_has_an_empty_grid() -> None:
    assert grid(223, 5000, 0.5).num_cells == 0
    assert grid(224, 224, 0.5).num_cells == 1


@pytest.mark.parametrize("mpp", [0.2498, 0.2528, 0.33, 0.499, 0.52])
def test_neighbours_share_their_edge_at_scales_that_are_not_whole(mpp: float) -> None:
    tiles = grid(20_011, 9_973, mpp)
    boxes = tiles.boxes(np.arange(tiles.num_cells)).reshape(tiles.num_rows, tiles.num_columns, 4)
    assert (boxes[:, 1:, 0] == boxes[:, :-1, 0] + boxes[:, :-1, 2]).all()
    assert (boxes[1:, :, 1] == boxes[:-1, :, 1] + boxes[:-1, :, 3]).all()
    assert (boxes[0, 0, :2] == 0).all()
    assert boxes[-1, -1, 0] + boxes[-1, -1, 2] <= 20_011
    assert boxes[-1, -1, 1] + boxes[-1, -1, 3] <= 9_973
    assert np.abs(boxes[..., 2:] - tiles.stride_px).max() < 1


def test_a_scan_six_percent_coarser_is_taken_and_a_coarser_one_refused() -> None:
    assert grid(5000, 5000, 0.53).num_columns == 23
    with pytest.raises(ResolutionError, match=r"scanned at 1 mpp, asked for 0\.5.*set tiles\.mpp = 1") as caught:
        grid(5000, 5000, 1.0)
    assert caught.value.reason == "coarse_scan"


@pytest.mark.parametrize(("width_px", "slide_mpp"), [(0, 0.5), (10, 0.0), (10, -1.0), (10, float("nan"))])
def test_sizes_and_scales_that_mean_nothing_are_refused(width_px: int, slide_mpp: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        grid(width_px, 10, slide_mpp)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_packed_mask_unpacks_to_itself(num_rows: int, num_columns: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((num_rows, num_columns)) < 0.5
    bits = pack_mask(mask)
    assert len(bits) == -(-num_rows * num_columns // 8)
    assert (unpack_mask(bits, num_rows, num_columns) == mask).all()


def test_bits_are_in_reading_order_with_the_most_significant_first() -> None:
    assert pack_mask(np.array([[True, False, False], [False, True, False]])) == bytes([0b10001000])
