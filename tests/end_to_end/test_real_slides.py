"""The three commands on real pixels: constructed specimens of real breast patches, and a real Aperio scan."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from evaluate.predictions import read_predictions
from ingest.manifest import read_dataset_card, read_table
from tests.end_to_end.real_pixels import build_cohort

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs real slides and patches in ../shared/data")
SCHEMA_FILE = ROOT / "ingest" / "source" / "copath_schema.sql"
APERIO = DATA / "slides" / "CMU-1-Small-Region.svs"


def command(*arguments: str | Path) -> str:
    """Run a command as a person would; its output."""
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def cohort_file(folder: Path, slide_folder: Path, size_px: int, mpp: float, **pretrain: object) -> Path:
    key = folder / "invented.key"  # the same key each time: the same pseudonyms, and so the same split
    key.write_text("0123456789abcdef" * 4 + "\n")
    key.chmod(0o600)
    ingest = {
        "deidentify": {"mode": "hmac", "key_file": str(key)},
        "source_folder": str(folder), "slide_folder": str(slide_folder),
        "source": {"preset": "copath", "database_file": "lis.sqlite"},
        "tiles": {"size_px": size_px, "mpp": mpp, "thumbnail_mpp": max(mpp, 8.0)},
        "gates": {"min_positive": 0.0, "max_positive": 1.0},
        "output": {"manifest": str(folder / "manifest"), "vault": str(folder / "vault")},
    }  # fmt: skip
    path = folder / "cohort.toml"
    path.write_text(tomli_w.dumps({"ingest": ingest, "pretrain": pretrain}), encoding="utf-8")
    return path


@needs_data
def test_training_learns_from_real_breast_tissue_of_unseen_patients(tmp_path: Path) -> None:
    cohort = build_cohort(DATA, tmp_path)
    pretrain = {
        "data": {"manifest": str(tmp_path / "manifest"), "vault": str(tmp_path / "vault"), "slides_per_epoch": 1.0},
        "run": {"folder": str(tmp_path / "run"), "num_epochs": 8, "device": "cpu", "select_by": "last"},
        "encoder": {"name": "test_resnet"},
        "step": {"resident_tiles": 64, "chunk_tiles": 32},
        # One slide per update does not settle on 81 slides of 12 tiles: ResNet18 gave 0.905 on one split, 0.101 on another.
        "optim": {"learning_rate": 1e-3, "slides_per_update": 4},
    }
    config = cohort_file(tmp_path, cohort.slide_folder, 50, 4.0, **pretrain)
    command("ingest", "run", "-c", config)
    slides = read_table(tmp_path / "manifest", "slides").to_pylist()
    ledger = read_dataset_card(tmp_path / "manifest")["ledger"]["slide"]
    assert ledger["in"] == len(cohort.labels)
    # A specimen of fat may be too pale to count as tissue; nothing else may be lost.
    assert set(ledger["left_out"]) <= {"tiles/blank"}
    assert ledger["used"] == len(slides) >= 0.97 * len(cohort.labels)
    assert {row["label"] for row in slides} == {"benign", "cancer"}
    command("pretrain", "train", "-c", config)
    command("evaluate", "run", tmp_path / "run", "--license", "cc0-1.0")
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    auroc = metrics["levels"]["slide"]["metrics"]["auroc"]
    print(
        f"AUC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}) on constructed specimens of real patches"
    )
    assert auroc["low"] > 0.6
    predictions = read_predictions(tmp_path / "run" / "predictions.parquet")
    assert not set(predictions.loc[predictions["split"] == "test", "patient_key"]) & {
        row["patient_key"] for row in slides if row["split"] == "train"
    }


@needs_data
def test_the_tile_count_of_a_real_aperio_scan_is_what_its_tissue_mask_justifies(tmp_path: Path) -> None:
    write_one_slide_lis(tmp_path / "lis.sqlite")
    config = cohort_file(tmp_path, APERIO.parent, 224, 0.5)
    command("ingest", "tiles", "-c", config)
    # One slide makes no cohort that could be split; its count is in the vault's journal and in the preview.
    (line,) = [json.loads(text) for text in (tmp_path / "vault" / "tile_counts.jsonl").read_text().split("\n") if text]
    row = line["row"]
    assert (row["width_px"], row["height_px"]) == (2220, 2967)
    assert row["slide_mpp"] == pytest.approx(0.499, abs=1e-3)
    assert (row["num_columns"], row["num_rows"]) == (9, 13)
    assert 20 < row["num_tiles"] < 117
    # The mask decides at 8 um per pixel, the count on every pixel: they may differ on a few tiles near the tenth.
    assert abs(row["num_tiles"] - tiles_with_tissue_at_full_resolution(row)) <= 3


def tiles_with_tissue_at_full_resolution(row: dict[str, int]) -> int:
    """Tiles of which a tenth is stained, decided on every pixel with another formula: the independent count."""
    import openslide

    with openslide.OpenSlide(APERIO) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    stride = 224 * 0.5 / row["slide_mpp"]
    count = 0
    for tile_row in range(row["num_rows"]):
        for column in range(row["num_columns"]):
            top, left = round(tile_row * stride), round(column * stride)
            tile = pixels[top : round((tile_row + 1) * stride), left : round((column + 1) * stride)].astype(np.int64)
            spread = tile.max(axis=-1) - tile.min(axis=-1)
            count += (spread > 20).mean() >= 0.10
    return int(count)


def write_one_slide_lis(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA_FILE.read_text(encoding="utf-8"))
        rows = {
            "r_pat_demograph": ("P1", "7000001", None, None),
            "r_medrec": ("P1", "NORTH", "00000001"),
            "c_specimen": ("1", "S20-00001", "S", "P1", "NORTH", "2020-01-01 08:00:00", "2020-01-02 08:00:00"),
            "p_part": ("1", "1", "A", "BREAST; CORE BIOPSY", "LEFT BREAST"),
            "p_block": ("1", "1", "1", "A1"),
            "p_stainprocess": ("1", "1", "1", "1", "HE", "H&E", "S20-00001;A1;HE;1"),
            "c_spec_text": ("1", "$final", "0", "FINAL DIAGNOSIS:\nA. BREAST, LEFT, CORE BIOPSY: FIBROADENOMA."),
            "scanned_slides": ("1", "S20-00001;A1;HE;1", APERIO.name, "APERIO", "20", "2020-01-03 08:00:00"),
        }
        for table, row in rows.items():
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()
