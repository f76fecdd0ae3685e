"""PHI lint: planted identifiers are found in every kind of file, named by place and kind, never shown."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.deidentify import Pseudonymiser
from ingest.errors import PrivacyError
from ingest.privacy import (
    PrivacyConfig,
    crosswalk_identifiers,
    find_leaks,
    identifier_index,
    lint_folder,
    require_clean,
)

CONFIG = PrivacyConfig()
INDEX = identifier_index(["00027670", "S23-12345", "97 810430", "A", "17"], CONFIG)
KEY = Pseudonymiser(bytes(range(32))).key("slide", "x")


def kinds(text: str) -> set[str]:
    return {kind for kind, _, _ in find_leaks(text, INDEX)}


def leaks(folder: Path) -> set[tuple[str, str, str]]:
    return {(leak.file, leak.place, leak.kind) for leak in lint_folder(folder, INDEX, CONFIG)}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("patient 27670 was", "identifier"), ("00027670", "identifier"), ("case s23-12345.", "identifier"),
        ("S23-12345;A1;HE.svs", "identifier"), ("(97 810430)", "identifier"), ("dir/S23-12345/x", "identifier"),
        ("S23-12345-A", "identifier"), ("old-S23-12345-A1.svs", "identifier"), ("mrn27671", "record_number"),
        ("on 2023-04-05", "date"), ("4/5/2023", "date"), ("5.4.2023", "date"), ("20230405", "date"),
        ("05-JAN-2023", "date"), ("January 5, 2023", "date"), ("20230405101112", "date"),
        ("a.b@clinic.org", "email"), ("(212) 555-0123", "phone"), ("212-555-0123", "phone"),
        ("123-45-6789", "social_security"), ("in /mnt/slides/a.svs", "absolute_path"), ("C:\\slides", "absolute_path"),
        ("\\\\server\\share", "absolute_path"), ("postgresql://u:secret@h/x", "credentials"), ("MRN: 12345", "record_number"),
    ],
)  # fmt: skip
def test_what_identifies_is_found(text: str, kind: str) -> None:
    assert kind in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "slides 77,768 of 6,335,418", "0.8577", "breast.idc.1", "part A, 17 slides", "80/10/10", "H&E and/or ER",
        KEY, "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15", "550e8400-e29b-41d4-a716-446655440000", "1.0.0", "2023",
        "http://www.w3.org/2000/svg", "y_cancer/y_egfr", "27671", "year 2019 to 2023", "20x", "pT1mi", "3/4 nodes",
    ],
)  # fmt: skip
def test_what_does_not_identify_is_left_alone(text: str) -> None:
    assert kinds(text) == set()


def test_site_pattern_finds_accessions_that_are_in_no_crosswalk() -> None:
    index = identifier_index([], PrivacyConfig(accession_pattern=r"[A-Z]{1,3}\d{2}-\d{1,7}"))
    assert {kind for kind, _, _ in find_leaks("seen in SP19-4711", index)} == {"accession"}


def test_clean_manifest_passes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "slide_key": [KEY, KEY[::-1]], "label": pa.array(["cancer", "benign"]).dictionary_encode(),
            "year": pa.array([2023, 2022], pa.int16()), "width_px": [27670, 40000], "mask": [b"\x01", b"\x02"],
        }
    ).replace_schema_metadata({"created_at": "2026-01-02T03:04:05Z", "rules": "breast"})  # fmt: skip
    pq.write_table(table, tmp_path / "slides.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"created_at": "2026-01-02", "num_slides": 27670}))
    (tmp_path / "card.md").write_text("| slides | 77,768 |\n| created_at | 2026-01-02T03:04:05Z |\n")
    (tmp_path / "funnel.svg").write_text('<svg><path d="M 212 555 0123 20230405"/><text>cases 12</text></svg>')
    (tmp_path / "run.log").write_text("2026-01-02 03:04:05,678 INFO 5 slides\n")
    assert lint_folder(tmp_path, INDEX, CONFIG) == ()
    require_clean(tmp_path, INDEX, CONFIG)


def test_planted_identifiers_are_found_in_every_kind_of_file(tmp_path: Path) -> None:
    table = pa.table(
        {
            "slide_key": [KEY, "S23-12345"],
            "scanner": pa.array(["GT450", "GT450 of 00027670"]).dictionary_encode(),
            "mrn": ["x", "y"],
            "signed": pa.array([0, 1], pa.date32()),
            "thumbnail": [b"a", b"b"],
            "flags": [["ok"], ["97 810430"]],
            "note": ["x" * 201, "y"],
        }
    ).replace_schema_metadata({"source": "/mnt/lis/export.csv"})
    pq.write_table(table, tmp_path / "slides.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"gates": [{"worst": "S23-12345"}], "00027670": 1}))
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"slide": "S23-12345"}\n{"cut": "S23-12345')
    (tmp_path / "card.md").write_text("fine\nsigned 2023-04-05\n")
    (tmp_path / "funnel.svg").write_text("<svg><text>S23-12345</text><!-- a.b@clinic.org --></svg>")
    (tmp_path / "figure.png").write_bytes(b"\x89PNG\x00\x12tEXtTitle\x00S23-12345\x00\xff")
    (tmp_path / "S23-12345.txt").write_text("")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.csv").write_text("27670,1\n")
    assert leaks(tmp_path) == {
        ("slides.parquet", "column slide_key", "identifier"),
        ("slides.parquet", "column scanner", "identifier"),
        ("slides.parquet", "column mrn", "identifying_column"),
        ("slides.parquet", "column signed", "date"),
        ("slides.parquet", "column thumbnail", "binary_column"),
        ("slides.parquet", "column flags", "identifier"),
        ("slides.parquet", "column note", "free_text"),
        ("slides.parquet", "footer", "absolute_path"),
        ("dataset.json", "gates[].worst", "identifier"),
        ("dataset.json", "top (a key)", "identifier"),
        ("log.jsonl", "slide", "identifier"),
        ("log.jsonl", "text", "identifier"),
        ("card.md", "line 2", "date"),
        ("funnel.svg", "text", "identifier"),
        ("funnel.svg", "text", "email"),
        ("figure.png", "bytes", "identifier"),
        ("file 1", "file name", "identifier"),
        ("inner/x.csv", "line 1", "identifier"),
    }


def test_integer_column_of_record_numbers_is_found_although_one_equal_number_is_chance(tmp_path: Path) -> None:
    numbers = list(range(1_000_000, 1_000_040))
    index = identifier_index(map(str, numbers), CONFIG)
    pq.write_table(pa.table({"a": numbers}), tmp_path / "bad.parquet")
    pq.write_table(pa.table({"b": [1_000_001, *range(39)]}), tmp_path / "good.parquet")
    assert {(leak.file, leak.place) for leak in lint_folder(tmp_path, index, CONFIG)} == {("bad.parquet", "column a")}


def test_the_error_counts_and_places_but_never_shows_and_ends_with_code_5(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.md").write_text("S23-12345 of 00027670\n")
    with pytest.raises(PrivacyError) as caught:
        require_clean(tmp_path, INDEX, CONFIG)
    message = str(caught.value)
    assert "0.md, line 1: identifier (2)" in message
    assert "and 2 more places" in message
    assert "12345" not in message
    assert "27670" not in message
    assert caught.value.exit_code == 5


def test_crosswalk_gives_back_the_single_identifiers() -> None:
    pseudonymiser = Pseudonymiser(bytes(range(32)))
    pseudonymiser.key("patient", "mrn|NORTH|27670")
    pseudonymiser.key("specimen", "S23-1|x", "A")
    pseudonymiser.key("slide", "image 9")
    pseudonymiser.key("row", "ffff")
    assert sorted(crosswalk_identifiers(pseudonymiser.crosswalk())) == ["27670", "A", "S23-1|x", "image 9"]
