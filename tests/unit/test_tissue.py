"""The tissue mask where plain Otsu fails: blank slides, pen, black borders, pale stain, fluorescence."""

import time

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.errors import SlideError
from ingest.geometry import TileGrid
from ingest.tissue import check_brightfield, mask_mpp, tissue_fraction, tissue_mask, tissue_mm2, tissue_tiles

MPP = 8.0
HEIGHT, WIDTH = 600, 800
STROMA, GLASS = (225, 150, 190), (241, 240, 240)


def glass(colour: tuple[int, int, int] = GLASS, noise: float = 3.0) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(0).normal(colour, noise, (HEIGHT, WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def section(stain: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A round section on glass, and where it truly is."""
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(truth, (400, 300), 200, 1, -1)
    colour = np.array(GLASS) * (1 - stain) + np.array(STROMA) * stain
    picture = glass().astype(np.float64)
    picture[truth > 0] += colour - GLASS
    return np.clip(picture, 0, 255).astype(np.uint8), truth > 0


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("stain", [1.0, 0.35])
def test_a_section_is_found_whether_stained_strongly_or_weakly(stain: float) -> None:
    picture, truth = section(stain)
    assert overlap(tissue_mask(picture, MPP), truth) > 0.97


@pytest.mark.parametrize("colour", [GLASS, (243, 238, 226), (200, 200, 205)])
def test_a_blank_slide_has_no_tissue_whatever_the_colour_of_its_glass(colour: tuple[int, int, int]) -> None:
    assert not tissue_mask(glass(colour), MPP).any()


def test_a_blank_slide_that_darkens_to_its_corners_has_no_tissue() -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    light = 1 - 0.5 * (((rows - 300) / 420) ** 2 + ((columns - 400) / 560) ** 2)
    assert not tissue_mask((glass() * light[..., None].clip(0.2)).astype(np.uint8), MPP).any()


@pytest.mark.parametrize("pen", [(20, 60, 190), (20, 150, 60), (220, 30, 40), (20, 20, 30)])
def test_pen_beside_the_tissue_neither_counts_nor_hides_it(pen: tuple[int, int, int]) -> None:
    picture, truth = section()
    cv2.line(picture, (30, 20), (780, 20), pen, 25, cv2.LINE_AA)
    cv2.line(picture, (90, 20), (90, 580), pen, 25, cv2.LINE_AA)
    assert overlap(tissue_mask(picture, MPP), truth) > 0.97


def test_pen_on_a_blank_slide_is_not_tissue() -> None:
    picture = glass()
    for row, pen in enumerate([(20, 60, 190), (20, 150, 60), (220, 30, 40), (20, 20, 30)]):
        cv2.line(picture, (30, 80 + 120 * row), (780, 120 + 120 * row), pen, 25, cv2.LINE_AA)
    assert tissue_mask(picture, MPP).mean() < 0.002


def test_black_borders_are_not_tissue() -> None:
    picture, truth = section()
    picture[:, :150] = 4
    picture[570:] = 4
    assert overlap(tissue_mask(picture, MPP), truth) > 0.97


def test_small_holes_are_filled_large_ones_stay_and_dust_goes() -> None:
    picture, _ = section()
    cv2.circle(picture, (400, 220), 20, GLASS, -1)  # 0.08 mm2: a gland
    cv2.circle(picture, (400, 400), 60, GLASS, -1)  # 0.72 mm2: glass
    cv2.circle(picture, (60, 60), 5, STROMA, -1)  # 0.005 mm2: dust
    mask = tissue_mask(picture, MPP)
    assert mask[220, 400]
    assert not mask[400, 400]
    assert not mask[60, 60]


def test_the_smallest_biopsy_fragment_is_kept() -> None:
    picture = glass()
    cv2.rectangle(picture, (100, 100), (140, 125), STROMA, -1)  # 0.33 x 0.21 mm
    assert tissue_mask(picture, MPP)[100:125, 100:140].mean() > 0.9


def test_the_mask_is_the_same_area_at_twice_the_resolution() -> None:
    picture, truth = section()
    fine = cv2.resize(picture, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_LINEAR)
    assert tissue_mask(fine, MPP / 2).mean() == pytest.approx(truth.mean(), rel=0.02)


def test_fluorescence_is_refused_and_a_bright_slide_with_black_borders_is_not() -> None:
    dark = np.clip(np.random.default_rng(0).normal(8, 4, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    dark[200:400, 200:600] = (20, 60, 200)
    with pytest.raises(SlideError, match="no brightfield scan") as caught:
        check_brightfield(dark)
    assert caught.value.reason == "not_brightfield"
    bordered, _ = section()
    bordered[:400] = 0
    check_brightfield(bordered)


def whole_grid(width_px: int, height_px: int, mpp: float = 0.5) -> TileGrid:
    return TileGrid(width_px=width_px, height_px=height_px, slide_mpp=mpp, tile_size_px=224, tile_mpp=0.5)


def test_tile_fractions_are_those_counted_by_hand() -> None:
    mask = np.zeros((28, 42), bool)  # 14 mask pixels to a tile: 2 x 3 tiles
    mask[:14, :14] = True
    mask[:7, 14:28] = True
    mask[14, 28] = True
    fraction = tissue_fraction(mask, whole_grid(672, 448))
    assert fraction == pytest.approx(np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 1 / 196]]))
    assert tissue_tiles(mask, whole_grid(672, 448), 0.5).tolist() == [[True, True, False], [False, False, False]]


def test_tile_fractions_equal_a_slow_count_on_a_grid_that_is_not_whole() -> None:
    mask = np.random.default_rng(0).random((211, 157)) < 0.3
    grid = whole_grid(5_001, 6_733, 0.2528)
    fraction = tissue_fraction(mask, grid)
    scale_x, scale_y = 157 / 5_001, 211 / 6_733
    for row, column in [(0, 0), (3, 7), (grid.num_rows - 1, grid.num_columns - 1)]:
        left, right = (int(np.floor(n * grid.stride_px * scale_x + 0.5)) for n in (column, column + 1))
        top, bottom = (int(np.floor(n * grid.stride_px * scale_y + 0.5)) for n in (row, row + 1))
        assert fraction[row, column] == pytest.approx(mask[top:bottom, left:right].mean())


def test_tiles_smaller_than_a_mask_pixel_take_its_value() -> None:
    mask = np.array([[True, False]])
    assert tissue_tiles(mask, whole_grid(896, 448), 0.1).tolist() == [[True, True, False, False]] * 2


def test_tissue_area_is_in_square_millimetres() -> None:
    mask = np.zeros((10, 20), bool)
    mask[:5] = True
    assert tissue_mm2(mask, whole_grid(4000, 2000)) == pytest.approx(1.0)  # half of 2 x 1 mm


def test_a_huge_slide_gets_a_coarser_mask() -> None:
    assert mask_mpp(whole_grid(100_000, 80_000, 0.25), 8.0) == 8.0
    assert mask_mpp(whole_grid(400_000, 200_000, 0.25), 8.0) == pytest.approx(15.81, abs=0.01)


def test_tissue_and_grid_of_a_slide_of_100_000_by_80_000_pixels_take_less_than_a_second() -> None:
    picture, _ = section()
    thumbnail = cv2.resize(picture, (3_125, 2_500), interpolation=cv2.INTER_LINEAR)
    started_at = time.process_time()
    mask = tissue_mask(thumbnail, MPP)
    tiles = tissue_tiles(mask, whole_grid(100_000, 80_000, 0.25), 0.1)
    assert time.process_time() - started_at < 1.0
    assert tiles.shape == (178, 223)
