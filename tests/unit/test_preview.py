"""The preview picture: what it draws and what it counts."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.errors import SlideError
from ingest.geometry import TileGrid
from ingest.preview import GRID_RGB, OUTLINE_RGB, draw_preview, write_preview
from ingest.svs import write_svs
from ingest.tiles import SlideFile, TilesConfig, count_slide
from tests.slides import stained_texture


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    pixels = np.full((1400, 2100, 3), 243, np.uint8)
    pixels[300:1100, 300:1000] = stained_texture(800, 0.5)[:, :700]
    write_svs(tmp_path / "slide.svs", pixels, mpp=0.5)
    return tmp_path / "slide.svs"


def test_a_preview_counts_what_the_cohort_counts_and_is_a_picture(slide_path: Path, tmp_path: Path) -> None:
    preview = write_preview(slide_path, tmp_path / "out" / "preview.png", TilesConfig())
    counted = count_slide(SlideFile("key", str(slide_path)), TilesConfig())
    assert (preview.num_tiles, preview.num_cells) == (counted.num_tiles, 6 * 9)
    assert preview.tissue_mm2 == counted.tissue_mm2
    assert preview.description.startswith("reader tiff")
    picture = cv2.imread(str(preview.path))
    assert picture is not None
    assert picture.shape[1] == 1600


def test_a_blank_slide_is_drawn_too(tmp_path: Path) -> None:
    write_svs(tmp_path / "blank.svs", np.full((600, 600, 3), 243, np.uint8), mpp=0.5)
    preview = write_preview(tmp_path / "blank.svs", tmp_path / "preview.png", TilesConfig())
    assert preview.num_tiles == 0


def test_a_slide_that_cannot_be_opened_leaves_no_picture(tmp_path: Path) -> None:
    with pytest.raises(SlideError):
        write_preview(tmp_path / "missing.svs", tmp_path / "preview.png", TilesConfig())
    assert list(tmp_path.iterdir()) == []


def test_the_outline_and_the_kept_tiles_are_drawn_where_they_are() -> None:
    grid = TileGrid(width_px=2240, height_px=2240, slide_mpp=0.5, tile_size_px=224, tile_mpp=0.5)
    mask = np.zeros((140, 140), bool)
    mask[28:56, 28:56] = True
    tiles = np.zeros((10, 10), bool)
    tiles[7, 2] = True
    picture = draw_preview(np.full((140, 140, 3), 255, np.uint8), mask, tiles, grid, "caption")
    assert tuple(picture[320:640, 320:330].reshape(-1, 3).min(axis=0)) == OUTLINE_RGB  # x of the outline: 28/140 * 1600
    assert tuple(picture[1120, 400]) == GRID_RGB  # the top edge of row 7: 7 * 160
    assert (picture[1120, 500:600] == 255).all()
