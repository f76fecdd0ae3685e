import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from evaluate.attention import (
    attention_ranks,
    colour_table,
    extreme_tiles,
    heat_map,
    png_bytes,
    rank_image,
    save_png,
    tile_gallery,
    with_legend,
)
from evaluate.attention_folder import write_attention_folder
from evaluate.qupath import write_geojson
from evaluate.viewer import write_deep_zoom, write_viewer
from ingest.errors import InputError
from ingest.geometry import TileGrid
from tests.invented_predictions import some

GRID = TileGrid(width_px=2500, height_px=1900, slide_mpp=0.25, tile_size_px=256, tile_mpp=0.5)  # 4 x 3 tiles of 512 px
INDICES = np.array([0, 1, 5, 6, 11])
ATTENTION = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
WHITE = np.full((190, 250, 3), 255, dtype=np.uint8)  # a tenth of the slide


def test_ranks_are_percentiles_and_ties_share_theirs() -> None:
    np.testing.assert_allclose(attention_ranks(np.array([0.1, 0.7, 0.2])), [1 / 6, 5 / 6, 3 / 6])
    np.testing.assert_allclose(attention_ranks(np.array([0.5, 0.5])), [0.5, 0.5])
    peaked = np.array([1e-9, 2e-9, 1.0])  # a linear scale would leave the first two "cold"
    np.testing.assert_allclose(attention_ranks(peaked), [1 / 6, 3 / 6, 5 / 6])


def test_every_pixel_of_a_tile_has_its_colour_and_the_rest_is_untouched() -> None:
    painted = heat_map(WHITE, GRID, INDICES, ATTENTION, opacity=1.0)
    ranks = attention_ranks(ATTENTION)
    for index, rank in zip(INDICES, ranks, strict=True):
        x, y, width, height = GRID.boxes(np.array([index]))[0] / 10
        colour = np.round(colour_table()[int(rank * 255)])
        inside = painted[int(y) + 1 : int(y + height) - 1, int(x) + 1 : int(x + width) - 1]
        assert (inside == colour).all()
    assert (painted[:, 206:] == 255).all()  # right of the last whole tile (4 x 51.2 px)
    assert (painted[53:101, 2:50] == 255).all()  # cell 4 was not read
    assert (WHITE == 255).all()


def test_the_most_attended_tile_is_red_and_the_least_is_blue() -> None:
    red, blue = heat_map(WHITE, GRID, np.array([0, 1]), np.array([0.9, 0.1]), opacity=1.0)[20, [20, 70]]
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_broken_attention_is_refused() -> None:
    with pytest.raises(InputError, match="1 of 2 attention weights are NaN"):
        attention_ranks(np.array([0.1, np.nan]))
    with pytest.raises(InputError, match="5 tiles but 4 attention"):
        rank_image(GRID, INDICES, attention_ranks(ATTENTION[:4]))
    with pytest.raises(InputError, match="outside the grid of 12 cells"):
        rank_image(GRID, np.array([12]), np.array([0.5]))
    with pytest.raises(InputError, match="one weight for each tile"):
        attention_ranks(np.zeros(0))


def test_extremes_are_ordered_and_never_overlap() -> None:
    found = extreme_tiles(ATTENTION, num=2)
    assert found.most.tolist() == [2, 4]
    assert found.least.tolist() == [0, 3]
    few = extreme_tiles(np.array([0.2, 0.5, 0.3]), num=8)
    assert (few.most.tolist(), few.least.tolist()) == ([1, 2], [0])


def test_pictures_come_back_from_png_with_their_colours(tmp_path: Path) -> None:
    tiles = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    tiles[0, ..., 0] = 200
    page = tile_gallery(tiles, np.array([0.9, 0.5, 0.1]), num_columns=2, title="Most attended")
    assert page[26 + 6 + 30, 6 + 30].tolist() == [200, 0, 0]
    save_png(with_legend(page), tmp_path / "page.png")
    back = some(cv2.imread(str(tmp_path / "page.png")))
    assert back[26 + 6 + 30, 6 + 30].tolist() == [0, 0, 200]  # BGR
    assert png_bytes(page).startswith(b"\x89PNG")


def test_geojson_holds_closed_squares_in_slide_pixels_with_rank_and_weight(tmp_path: Path) -> None:
    path = tmp_path / "attention.geojson.gz"
    assert write_geojson(path, GRID, INDICES, ATTENTION, origin_px=(10, 20)) == 5
    document = json.loads(gzip.decompress(path.read_bytes()))
    feature = document["features"][2]
    assert feature["geometry"]["coordinates"] == [[[502, 492], [1014, 492], [1014, 1004], [502, 1004], [502, 492]]]
    assert feature["properties"]["objectType"] == "tile"
    assert feature["properties"]["measurements"] == {"attention rank": 0.9, "attention": 0.3}
    assert feature["properties"]["classification"]["name"] == "Attention 90-100 %"


def test_geojson_is_the_same_bytes_each_time_and_can_be_cut(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_geojson(tmp_path / name, GRID, INDICES, ATTENTION)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert write_geojson(tmp_path / "c", GRID, INDICES, ATTENTION, min_rank=0.5) == 3


def test_deep_zoom_levels_put_together_give_the_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    picture = cv2.resize(generator.integers(0, 255, (9, 8, 3)).astype(np.uint8), (400, 600))
    num_levels = write_deep_zoom(picture, tmp_path / "slide.dzi")
    assert num_levels == 11  # 600 px need 2^10
    whole = np.zeros_like(picture)
    for column in range(2):
        for row in range(3):
            tile = some(cv2.imread(str(tmp_path / f"slide_files/10/{column}_{row}.jpg")))[..., ::-1]
            top, left = max(0, row * 254 - 1), max(0, column * 254 - 1)
            whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    assert np.abs(whole.astype(int) - picture).mean() < 3
    assert some(cv2.imread(str(tmp_path / "slide_files/0/0_0.jpg"))).shape == (1, 1, 3)
    assert 'Width="400" Height="600"' in (tmp_path / "slide.dzi").read_text()


def test_the_viewer_needs_no_network(tmp_path: Path) -> None:
    page = write_viewer(tmp_path / "viewer", WHITE, GRID, INDICES, ATTENTION, title="s1 <b>").read_text()
    assert "://" not in page
    assert "s1 &lt;b&gt;" in page


def test_the_folder_of_a_slide_holds_everything_and_reads_tiles_in_rising_order(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def read_tiles(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.append(indices.tolist())
        return np.repeat(indices.astype(np.uint8) * 20, 32 * 32 * 3).reshape(-1, 32, 32, 3)

    write_attention_folder(
        tmp_path / "s1", slide_key="s1", thumbnail=WHITE, grid=GRID, tile_indices=INDICES, attention=ATTENTION,
        read_tiles=read_tiles, num_tiles=3,
    )  # fmt: skip
    assert asked == [[1, 5, 11], [0, 6]]
    names = {path.name for path in (tmp_path / "s1").iterdir()}
    assert names == {"heatmap.png", "most_attended.png", "least_attended.png", "attention.geojson.gz", "viewer"}
    gallery = some(cv2.imread(str(tmp_path / "s1" / "most_attended.png")))
    assert [int(gallery[26 + 6 + 16, 6 + 38 * k + 16, 0]) for k in range(3)] == [100, 220, 20]  # tiles 5, 11, 1
