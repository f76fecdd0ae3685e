"""What is read for a set of tiles, decided without a file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ResolutionError, SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import Level, ReadScale, check_damage, choose_scale, cut_pieces, scaled_boxes, trusted_mpp

PYRAMID = (Level(40_000, 30_000, 1.0), Level(10_000, 7_500, 4.0), Level(2_500, 1_875, 16.0))
JPEG = ((1, 2, 4, 8),) * 3


@pytest.mark.parametrize(
    ("slide_mpp", "mpp", "expected"),
    [
        (0.25, 0.25, ReadScale(0, 1, 1.0)),
        (0.25, 0.5, ReadScale(0, 2, 2.0)),
        (0.2528, 0.5, ReadScale(0, 2, 2.0)),  # 0.5056: 1 % coarser
        (0.27, 0.5, ReadScale(0, 1, 1.0)),  # 0.54 would be 8 % coarser
        (0.25, 1.0, ReadScale(1, 1, 4.0)),  # the level, not 1/4 of level 0: fewer bytes
        (0.25, 8.0, ReadScale(2, 2, 32.0)),
        (0.5, 0.5, ReadScale(0, 1, 1.0)),
    ],
)
def test_the_coarsest_scale_that_carries_the_detail_is_read(slide_mpp: float, mpp: float, expected: ReadScale) -> None:
    assert choose_scale(PYRAMID, JPEG, slide_mpp, mpp) == expected


def test_a_reader_without_scaled_decoding_takes_a_finer_level() -> None:
    assert choose_scale(PYRAMID, ((1,),) * 3, 0.25, 0.5) == ReadScale(0, 1, 1.0)


def test_upsampling_is_refused_with_what_to_set() -> None:
    with pytest.raises(ResolutionError, match=r"scanned at 0\.5 mpp, asked for 0\.25; ask for 0\.5 or coarser"):
        choose_scale(PYRAMID, JPEG, 0.5, 0.25)


def test_a_whole_scale_is_read_pixel_for_pixel() -> None:
    grid = TileGrid(width_px=2000, height_px=1000, slide_mpp=0.25, tile_size_px=224, tile_mpp=0.5)
    boxes, is_native = scaled_boxes(grid, np.array([0, 1, 5]), 2.0, 1000, 500)
    assert is_native
    assert boxes.tolist() == [[0, 0, 224, 224], [224, 0, 224, 224], [224, 224, 224, 224]]


def test_a_scale_off_by_one_percent_is_resized_and_one_off_by_a_thousandth_is_not() -> None:
    def widths(slide_mpp: float) -> tuple[set[int], bool]:
        grid = TileGrid(width_px=9000, height_px=9000, slide_mpp=slide_mpp, tile_size_px=224, tile_mpp=0.5)
        boxes, is_native = scaled_boxes(grid, np.arange(grid.num_cells), 2.0, 4500, 4500)
        return set(boxes[:, 2].tolist()), is_native

    assert widths(0.2528) == ({221, 222}, False)
    assert widths(0.24975) == ({224}, True)


def test_boxes_never_leave_the_level() -> None:
    for slide_mpp in (0.2499, 0.2501, 0.2528, 0.31):
        grid = TileGrid(width_px=4481, height_px=4477, slide_mpp=slide_mpp, tile_size_px=224, tile_mpp=0.5)
        boxes, _ = scaled_boxes(grid, np.arange(grid.num_cells), 2.0, 2240, 2238)
        assert boxes[:, :2].min() >= 0
        assert (boxes[:, 0] + boxes[:, 2]).max() <= 2240
        assert (boxes[:, 1] + boxes[:, 3]).max() <= 2238


@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**32 - 1))
def test_pieces_copy_every_pixel_once_and_from_the_right_place(tile_width: int, tile_height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    across, down, size = 9, 7, 24
    width, height = across * tile_width, down * tile_height
    image = np.arange(width * height).reshape(height, width)
    boxes = np.array([[rng.integers(0, width - size), rng.integers(0, height - size), size, size] for _ in range(6)])
    order = rng.permutation(across * down)
    pieces = cut_pieces(boxes, tile_width, tile_height, across, order)
    assert (np.diff(order[pieces.file_tile]) >= 0).all()
    out = np.full((6, size, size), -1)
    for file_tile, position, source_y, source_x, target_y, target_x, rows, columns in zip(*pieces, strict=True):
        top, left = file_tile // across * tile_height, file_tile % across * tile_width
        tile = image[top : top + tile_height, left : left + tile_width]
        place = out[position, target_y : target_y + rows, target_x : target_x + columns]
        assert (place == -1).all()
        place[:] = tile[source_y : source_y + rows, source_x : source_x + columns]
    for position, (x, y, _, _) in enumerate(boxes):
        assert (out[position] == image[y : y + size, x : x + size]).all()


@pytest.mark.parametrize(("slide_mpp", "denominator"), [(0.5, 1), (0.25, 2)])
def test_eight_ranks_with_contiguous_runs_decode_at_most_a_tenth_more_than_one(
    slide_mpp: float, denominator: int
) -> None:
    stride = 224 * denominator
    grid = TileGrid(width_px=256 * stride, height_px=176 * stride, slide_mpp=slide_mpp, tile_size_px=224, tile_mpp=0.5)
    across, down = -(-grid.width_px // 256), -(-grid.height_px // 256)

    def num_file_tiles(indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
        boxes, _ = scaled_boxes(
            grid, indices, float(denominator), grid.width_px // denominator, grid.height_px // denominator
        )
        side = 256 // denominator
        return len(np.unique(cut_pieces(boxes, side, side, across, np.arange(across * down)).file_tile))

    tiles = np.arange(45_056)
    alone = num_file_tiles(tiles)
    assert sum(num_file_tiles(run) for run in np.array_split(tiles, 8)) <= 1.1 * alone
    scattered = np.sort(np.random.default_rng(0).permutation(tiles)[: 45_056 // 8])
    assert 8 * num_file_tiles(scattered) > 1.5 * alone  # why the runs are contiguous


@pytest.mark.parametrize(
    ("mpp_x", "mpp_y", "expected"),
    [(0.25, 0.25, 0.25), (0.25, 0.2502, 0.2501), (352.8, 352.8, None), (264.6, 264.6, None), (0.25, 0.5, None),
     (None, 0.25, None), (0.0, 0.0, None)],
)  # fmt: skip
def test_a_screens_dpi_and_pixels_that_are_not_square_are_no_mpp(
    mpp_x: float | None, mpp_y: float | None, expected: float | None
) -> None:
    assert trusted_mpp(mpp_x, mpp_y) == pytest.approx(expected)


def test_one_damaged_tile_is_left_out_and_more_than_the_limit_refuse_the_slide() -> None:
    check_damage(0, 10)
    check_damage(1, 10)  # one tile of a small biopsy is more than 1 %, and still only one
    check_damage(10, 1000)
    with pytest.raises(SlideError, match=r"11 of 1000 tiles are damaged, more than 1\.0%") as caught:
        check_damage(11, 1000)
    assert caught.value.reason == "damaged_tiles"
    with pytest.raises(SlideError) as caught:
        check_damage(3, 3)
    assert caught.value.reason == "cannot_read"
