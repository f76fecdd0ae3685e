"""Tables of others, in and out, and back again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ingest.balance import BalanceConfig
from ingest.errors import ConfigError, GateError, InputError
from ingest.exchange import export_csv, import_table, mask_from_corners, public_key, read_tile_table
from ingest.geometry import TileGrid
from ingest.imported import publish_import
from ingest.ledger import Ledger
from ingest.split import SplitConfig
from ingest.split_table import verify_split_table
from ingest.verify import verify
from tests.invented_cohort import invented_slides, write_manifest

CLAM = """case_id,slide_id,label
patient_0,slide_a,tumor_tissue
patient_0,slide_b,normal_tissue
patient_1,slide_c,normal_tissue
patient_2,slide_d,
"""
OPAL = """slide_path,slide,patient,target,tensor_root,tensor_name,mccv1,mccv2
/data/a.svs,a,p1,1,/t,a.pth,train,val
/data/b.svs,b,p2,0,/t,b.pth,val,train
/data/c.svs,c,p3,0,/t,c.pth,train,train
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_clam_table_becomes_slides_of_patients_with_labels(tmp_path: Path) -> None:
    imported = import_table(write(tmp_path / "clam.csv", CLAM), public_key)
    assert [(row["slide_key"], row["patient_key"], row["label"], row["y_cancer"]) for row in imported.slides] == [
        ("slide_a", "patient_0", "cancer", 1),
        ("slide_b", "patient_0", "benign", 0),
        ("slide_c", "patient_1", "benign", 0),
        ("slide_d", "patient_2", "not_assessable", None),
    ]
    assert imported.slides[3]["exclude_reason"] == "no_label"
    assert imported.splits.empty
    Ledger(imported.losses).balance("row", imported.num_rows, len(imported.slides))


def test_an_opal_table_brings_its_monte_carlo_splits_and_locations(tmp_path: Path) -> None:
    imported = import_table(write(tmp_path / "slide_data.csv", OPAL), public_key)
    places = {(row.patient_key, row.fold): row.split for row in imported.splits.itertuples()}
    assert set(imported.splits["scheme"]) == {"mccv2"}
    assert places == {("p1", 0): "train", ("p2", 0): "tune", ("p3", 0): "train",
                      ("p1", 1): "tune", ("p2", 1): "train", ("p3", 1): "train"}  # fmt: skip
    assert imported.locations == (("a", "/data/a.svs"), ("b", "/data/b.svs"), ("c", "/data/c.svs"))
    as_test = import_table(tmp_path / "slide_data.csv", public_key, val_is="test")
    assert set(as_test.splits["split"]) == {"train", "test"}


def test_identifiers_go_through_the_pseudonymiser(tmp_path: Path) -> None:
    imported = import_table(
        write(tmp_path / "t.csv", OPAL), lambda domain, identifier: f"{domain[0]}#{len(identifier)}{identifier[-1]}"
    )
    text = repr((imported.slides, imported.specimens, imported.losses)) + imported.splits.to_csv()
    assert "'p1'" not in text
    assert {row["patient_key"] for row in imported.slides} == {"p#21", "p#22", "p#23"}
    assert set(imported.splits["patient_key"]) == {"p#21", "p#22", "p#23"}


def test_another_task_sets_its_own_target_and_claims_no_diagnosis(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "case_id,slide_id,label\np,a,mutant\nq,b,wild\n")
    imported = import_table(path, public_key, task="egfr", classes={"mutant": 1, "wild": 0})
    assert [(row["y_egfr"], row["label"]) for row in imported.slides] == [(1, "not_assessable"), (0, "not_assessable")]


def test_unknown_label_words_stop_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "case_id,slide_id,label\np,a,subtype_1\nq,b,0\n")
    with pytest.raises(InputError, match="1 rows with 1 label words"):
        import_table(path, public_key)


def test_repeated_slides_are_taken_once_or_not_at_all_and_stand_in_the_ledger(tmp_path: Path) -> None:
    text = "case_id,slide_id,label\np,a,1\np,a,1\np,b,1\np,b,0\nq,,1\nq,c,0\n"
    imported = import_table(write(tmp_path / "t.csv", text), public_key)
    assert [row["slide_key"] for row in imported.slides] == ["a", "c"]
    tally = Ledger(imported.losses).balance("row", imported.num_rows, len(imported.slides))
    assert tally.left_out == {"source/duplicate_conflict": 2, "source/duplicate_row": 1, "source/no_identifier": 1}


def test_without_patients_the_import_asks_for_them(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "slide,target\n001,1\n002,0\n")
    with pytest.raises(InputError, match="no column with patient ids"):
        import_table(path, public_key)
    imported = import_table(path, public_key, patient_column="slide")
    assert [row["patient_key"] for row in imported.slides] == ["001", "002"]


def test_an_imported_table_is_a_sound_manifest(tmp_path: Path) -> None:
    rows = "".join(f"p{number // 2},s{number},{number // 2 % 2}\n" for number in range(80))
    imported = import_table(write(tmp_path / "clam.csv", "case_id,slide_id,label\n" + rows), public_key)
    publish_import(imported, tmp_path / "m", tmp_path / "v", "public", split=SplitConfig(), balancing=BalanceConfig())
    assert verify(tmp_path / "m") == []
    assert "80 slides" in (tmp_path / "m" / "card.md").read_text()


def test_an_imported_split_is_kept_and_its_places_go_to_the_vault(tmp_path: Path) -> None:
    imported = import_table(write(tmp_path / "slide_data.csv", OPAL), public_key)
    (tmp_path / "v").mkdir()
    publish_import(
        imported, tmp_path / "m", tmp_path / "v", "public", split=SplitConfig(), balancing=BalanceConfig(mode="none")
    )
    assert [finding for finding in verify(tmp_path / "m") if finding.severity == "error"] == []
    slides = pq.read_table(tmp_path / "m" / "slides.parquet").to_pandas().set_index("slide_key")
    assert slides["split"].to_dict() == {"a": "train", "b": "tune", "c": "train"}
    assert pq.read_table(tmp_path / "v" / "locations.parquet").num_rows == 3
    assert "/data/" not in (tmp_path / "m" / "dataset.json").read_text()


def test_an_imported_split_that_leaks_is_not_published(tmp_path: Path) -> None:
    leaking = OPAL.replace("b,p2", "b,p1")
    imported = import_table(write(tmp_path / "slide_data.csv", leaking), public_key)
    with pytest.raises(GateError, match="1 patients are in more than one part"):
        publish_import(
            imported, tmp_path / "m", tmp_path / "v", "public", split=SplitConfig(), balancing=BalanceConfig()
        )
    assert not (tmp_path / "m").exists()


def test_tile_corners_become_cells_of_our_grid_by_their_centre(tmp_path: Path) -> None:
    path = write(
        tmp_path / "tile_data.csv",
        "slide,x,y,level,mult\na,0,0,0,2\na,460,10,0,2\na,448,448,0,2\nb,0,0,0,2\na,9000,0,0,2\n",
    )
    corners = read_tile_table(path)
    assert corners["a"].tolist() == [[0, 0], [460, 10], [448, 448], [9000, 0]]
    grid = TileGrid(width_px=1400, height_px=1000, slide_mpp=0.25, tile_size_px=224, tile_mpp=0.5)
    mask, num_without_cell = mask_from_corners(corners["a"], grid)
    assert mask.tolist() == [[True, True, False], [False, True, False]]
    assert num_without_cell == 1


def test_a_tile_table_without_coordinates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing columns x, y"):
        read_tile_table(write(tmp_path / "t.csv", "slide,level\na,0\n"))
    with pytest.raises(InputError, match="not a number"):
        read_tile_table(write(tmp_path / "u.csv", "slide,x,y\na,left,0\n"))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m", invented_slides(40), split=SplitConfig(schemes=("holdout", "mccv"), num_repeats=3))
    return tmp_path / "m"


def test_clam_export_is_read_back_as_the_same_cohort(manifest: Path, tmp_path: Path) -> None:
    written = export_csv(manifest, tmp_path / "out", "clam")
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "dataset.csv", "holdout/splits_0.csv", *(f"mccv3/splits_{fold}.csv" for fold in range(3))]  # fmt: skip
    slides = pq.read_table(manifest / "slides.parquet").to_pandas().sort_values("slide_key")
    imported = pd.DataFrame(import_table(written[0], public_key).slides).sort_values("slide_key")
    for column in ("slide_key", "patient_key", "y_cancer"):
        assert imported[column].tolist() == slides[column].tolist()
    lists = pd.read_csv(written[1], index_col=0)
    for column, part in (("train", "train"), ("val", "tune"), ("test", "test")):
        assert set(lists[column].dropna()) == set(slides["slide_key"][slides["split"] == part])
    assert [finding for finding in verify_split_table(written[1], slides) if finding.severity == "error"] == []


def test_opal_export_is_read_back_with_the_same_splits_and_tiles(manifest: Path, tmp_path: Path) -> None:
    slide_data, tile_data = export_csv(manifest, tmp_path / "out", "opal")
    assert list(pd.read_csv(slide_data).columns) == [
        "patient",
        "slide",
        "target",
        "tensor_name",
        "mccv1",
        "mccv2",
        "mccv3",
    ]
    imported = import_table(slide_data, public_key)
    ours = pq.read_table(manifest / "splits.parquet").to_pandas()
    ours = ours[ours["scheme"] == "mccv3"].astype({"scheme": "object", "split": "object"})
    order = ["fold", "patient_key"]
    assert imported.splits.sort_values(order).to_dict("list") == ours.sort_values(order).to_dict("list")
    tiles = {row["slide_key"]: row for row in pq.read_table(manifest / "tiles.parquet").to_pylist()}
    for slide, corners in read_tile_table(tile_data).items():
        row = tiles[slide]
        grid = TileGrid(width_px=row["width_px"], height_px=row["height_px"], slide_mpp=row["slide_mpp"], tile_size_px=224,
                        tile_mpp=0.5)  # fmt: skip
        mask, num_without_cell = mask_from_corners(corners, grid)
        assert np.packbits(mask.ravel()).tobytes() == row["mask"]
        assert num_without_cell == 0


def test_an_export_names_what_is_missing(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has the targets y_cancer"):
        export_csv(manifest, tmp_path / "out", "clam", task="egfr")
    write_manifest(tmp_path / "plain", invented_slides(20))
    with pytest.raises(ConfigError, match="no mccv scheme"):
        export_csv(tmp_path / "plain", tmp_path / "out", "opal")
