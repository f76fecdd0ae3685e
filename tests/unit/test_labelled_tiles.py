import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluate.labelled_tiles import num_place_blocks, place_blocks, read_labelled_tiles
from evaluate.tile_blocks import Scan
from ingest.errors import InputError
from ingest.geometry import TileGrid, pack_mask

NOBODY: frozenset[str] = frozenset()
GRID = TileGrid(
    width_px=2700, height_px=1800, slide_mpp=0.2528, tile_size_px=224, tile_mpp=0.5
)  # 6 x 4 cells of 443.04


def png(value: int, width: int = 4, height: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def scan(key: str, patient: str) -> Scan:
    mask = np.arange(24).reshape(4, 6) < 12  # the two upper rows
    return Scan(slide_key=key, patient_key=patient, path=Path("none"), grid=GRID, mask=pack_mask(mask), num_tiles=12)


SCANS = [scan("a", "p1"), scan("b", "p2")]


def test_images_come_with_label_and_patient_and_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "tiles.parquet"
    pd.DataFrame({
        "patient_id": [7, 7, 8, 9, 9], "label": [0, 1, 1, 0, 0],
        "png": [png(10), png(20), png(30, width=3), b"no image", png(50)],
    }).to_parquet(path)  # fmt: skip
    tiles = read_labelled_tiles(path, [], NOBODY)
    assert tiles.labels.tolist() == [0, 1, 0]
    assert tiles.patients.tolist() == ["7", "7", "9"]
    assert tiles.images is not None
    assert tiles.images.shape == (3, 4, 4, 3)
    assert tiles.images[:, 0, 0, 0].tolist() == [10, 20, 50]
    assert tiles.left_out == {"unreadable_image": 1, "other_size": 1}


def test_places_are_found_by_the_corner_of_a_tile_or_any_point_in_it(tmp_path: Path) -> None:
    path = tmp_path / "tiles.csv"
    corners = GRID.boxes(np.arange(12))
    rows = [{"slide_key": "a", "x": x, "y": y, "label": 1} for x, y, _, _ in corners]
    rows += [{"slide_key": "b", "x": x + 200, "y": y + 440, "label": 0} for x, y, _, _ in corners]
    rows += [
        {"slide_key": "b", "x": 0, "y": 900, "label": 1},  # third row of cells: no tissue
        {"slide_key": "b", "x": 2690, "y": 0, "label": 1},  # beyond the last whole column
        {"slide_key": "b", "x": -5, "y": 0, "label": 1},
        {"slide_key": "stranger", "x": 0, "y": 0, "label": 1},
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    tiles = read_labelled_tiles(path, SCANS, NOBODY)
    assert [(scan.slide_key, index) for scan, index in tiles.places] == [(key, k) for key in "ab" for k in range(12)]
    assert tiles.patients.tolist() == ["p1"] * 12 + ["p2"] * 12
    assert tiles.left_out == {"not_on_a_tissue_tile": 3, "slide_not_in_manifest": 1}


def test_tiles_of_patients_whom_an_encoder_has_seen_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "tiles.csv"
    pd.DataFrame({"slide_key": ["a", "b", "b"], "x": 0, "y": 0, "label": [0, 1, 1]}).to_csv(path, index=False)
    tiles = read_labelled_tiles(path, SCANS, frozenset({"p2", "p9"}))
    assert tiles.patients.tolist() == ["p1"]
    assert tiles.left_out == {"patient_seen_in_training": 2}
    with pytest.raises(InputError, match=r"no row can be used \(patient_seen_in_training 3\)"):
        read_labelled_tiles(path, SCANS, frozenset({"p1", "p2"}))


def test_each_place_is_read_once_however_often_it_is_labelled(tmp_path: Path) -> None:
    path = tmp_path / "tiles.csv"
    table = pd.DataFrame({"slide_key": ["b", "a", "b", "a"], "x": [450, 0, 450, 890], "y": 0, "label": [0, 1, 0, 1]})
    table.to_csv(path, index=False)
    tiles = read_labelled_tiles(path, SCANS, NOBODY)
    assert [(block.scan.slide_key, block.tile_indices.tolist()) for block in place_blocks(tiles, 5)] == [
        ("a", [0, 2]),
        ("b", [1]),
    ]
    assert [block.tile_indices.tolist() for block in place_blocks(tiles, 1)] == [[0], [2], [1]]
    assert num_place_blocks(tiles, 1) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"patient_id": [1], "png": [b"x"]}, "needs a column label of 0 and 1"),
        ({"patient_id": [1], "png": [b"x"], "label": [2]}, "needs a column label of 0 and 1"),
        ({"patient_id": [1], "png": [b"x"], "label": [1]}, "no square image"),
        ({"png": [png(1)], "label": [1]}, "every image needs a patient_id"),
        ({"patient_id": [1], "label": [1]}, "needs a column of images"),
        ({"slide_key": ["a"], "x": [0], "y": [0], "label": [1]}, "need the manifest and the vault"),
    ],
)
def test_tables_that_cannot_be_used_are_explained(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "tiles.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(InputError, match=message):
        read_labelled_tiles(path, [], NOBODY)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiles.parquet").write_text("nothing")
    for name in ("tiles.parquet", "absent.csv"):
        with pytest.raises(InputError, match=name):
            read_labelled_tiles(tmp_path / name, [], NOBODY)
