"""The pathologist's sheet: blind, private, complete, and read back row by row."""

import csv
import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ingest.deidentify import Pseudonymiser, open_vault, write_crosswalk
from ingest.errors import InputError, ManifestError
from ingest.manifest import Provenance, table_from_rows, write_table
from ingest.review import ReviewConfig, draw_sample
from ingest.review_sheet import case_text, export_review, import_review, read_sheet, write_sheet
from ingest.source.canonical import CaseReport
from ingest.source.config import SourceConfig
from tests.copath import fill_copath


def specimens(num_benign: int, num_cancer: int) -> pa.Table:
    labels = ["benign"] * num_benign + ["cancer"] * num_cancer
    return pa.table({"specimen_key": [f"s{number:03}" for number in range(len(labels))], "label": labels})


PROVENANCE = Provenance(
    config_digest="c", rules_digest="r", policy_digest="p", key_fingerprint="k", snapshot_at="2026-01-02T03:04:05+00:00"
)


def specimen(key: str, label: str) -> dict[str, Any]:
    return {
        "patient_key": "p", "case_key": "c", "specimen_key": key, "label": label, "atypia": False, "num_slides": 1,
    }  # fmt: skip


def sample_of(*rows: tuple[str, str, str, float]) -> pa.Table:
    return pa.table(dict(zip(("specimen_key", "label", "stratum", "weight"), zip(*rows, strict=True), strict=True)))


def test_sheet_is_blind_private_and_safe_to_open_in_a_spreadsheet(tmp_path: Path) -> None:
    sample = draw_sample(specimens(2, 2), 4, ("label",), seed=1)
    texts = {key: ("A", f"=HYPERLINK({key})") for key in sample["specimen_key"].to_pylist()}
    path = write_sheet(tmp_path, sample, texts)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["specimen_key"] for row in rows] == sample["specimen_key"].to_pylist()
    assert all(row["gold_label"] == "" and row["text"].startswith(" =") for row in rows)
    assert "benign" not in path.read_text(encoding="utf-8-sig")
    with pytest.raises(InputError, match="4 of 4 sampled specimens have no text"):
        write_sheet(tmp_path, sample, {})


def test_every_row_of_the_sheet_is_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    sample = sample_of(*((f"s{number}", "benign", "x", 1.0) for number in range(7)))
    path = tmp_path / "review.csv"
    rows = [
        "s0,Cancer ",
        "s1,in situ",
        "s2,",
        "s3,maybe",
        "s9,benign",
        "s4,benign",
        "s4,benign",
        "s5,benign",
        "s5,cancer",
    ]
    path.write_text("specimen_key,gold_label\n" + "\n".join(rows) + "\n")
    labels, rejected = read_sheet(path, sample)
    assert labels == {"s0": "cancer", "s1": "in_situ", "s4": "benign"}
    assert rejected == {
        "not_read": 1, "unknown_label": 1, "not_in_sample": 1, "read_twice": 1, "read_twice_differently": 2,
    }  # fmt: skip
    assert len(labels) + rejected.total() == len(rows)


@pytest.mark.parametrize("content", ["", "key,label\na,b\n", "specimen_key,gold_label\n"])
def test_sheet_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(InputError, match="needs the columns"):
        read_sheet(tmp_path / "r.csv", sample_of(("a", "benign", "x", 1.0)))
    with pytest.raises(InputError, match="no such file"):
        read_sheet(tmp_path / "absent.csv", sample_of(("a", "benign", "x", 1.0)))


def test_review_goes_from_the_manifest_through_the_sheet_to_figures(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "lis.sqlite")
    fill_copath(connection)
    connection.close()
    vault = open_vault(tmp_path / "vault", tmp_path / "manifest")
    pseudonymiser = Pseudonymiser(bytes(range(32)))
    keys = {part: pseudonymiser.key("specimen", "S23-1", part) for part in ("A", "B")}
    write_crosswalk(vault, pseudonymiser)
    rows = [specimen(keys["A"], "cancer"), specimen(keys["B"], "benign")]
    (tmp_path / "manifest").mkdir()
    write_table(tmp_path / "manifest", "specimens", table_from_rows("specimens", rows, {}), PROVENANCE)
    source = SourceConfig(preset="copath", database_file="lis.sqlite")
    config = ReviewConfig(num_specimens=10)
    path = export_review(source, tmp_path, tmp_path / "manifest", vault, config)
    with path.open(encoding="utf-8-sig", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert {row["specimen_key"]: row["part"] for row in sheet} == {key: part for part, key in keys.items()}
    for row in sheet:
        assert "=== final, final ===\nA. BREAST: BENIGN." in row["text"]
        assert "=== amended, addendum ===\nAMENDED: A. CARCINOMA." in row["text"]
        assert "Received fresh." in row["text"]
        assert "rtf" not in row["text"]
        row["gold_label"] = "cancer"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, sheet[0].keys())
        writer.writeheader()
        writer.writerows(sheet)
    result = import_review(path, vault, config)
    assert (result.num_read, result.ppv.value, result.npv.value) == (2, 1.0, 0.0)
    written = (vault / "review.json").read_text()
    assert json.loads(written)["num_read"] == 2
    assert "S23-1" not in written
    assert {file.name for file in vault.iterdir()} == {
        "crosswalk.parquet", "review.csv", "review.json", "review_sample.parquet",
    }  # fmt: skip


def test_missing_manifest_crosswalk_or_sample_is_explained(tmp_path: Path) -> None:
    vault = open_vault(tmp_path / "vault", tmp_path / "manifest")
    source = SourceConfig(preset="copath", database_file="lis.sqlite")
    with pytest.raises(ManifestError, match="python -m ingest run"):
        export_review(source, tmp_path, tmp_path / "manifest", vault, ReviewConfig())
    (tmp_path / "manifest").mkdir()
    write_table(tmp_path / "manifest", "specimens", table_from_rows("specimens", [], {}), PROVENANCE)
    with pytest.raises(InputError, match="no crosswalk"):
        export_review(source, tmp_path, tmp_path / "manifest", vault, ReviewConfig())
    with pytest.raises(InputError, match="run review export first"):
        import_review(tmp_path / "review.csv", vault, ReviewConfig())


def test_unreadable_report_is_said_and_not_hidden() -> None:
    report = CaseReport(
        version="1", version_kind="final", section=None, part="A", text="\ufffd" * 30, format="text", status=None,
        signed_at=None, truncated=False,
    )  # fmt: skip
    assert case_text([report]).startswith("=== final, report, part A ===\n(unreadable: ")
