"""Manifest tables: the same rows give the same bytes, and a wrong or changed file is told."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import ManifestError
from ingest.manifest import (
    TABLES,
    conform,
    content_digest,
    read_footer,
    read_table,
    table_from_rows,
    write_dataset_card,
    write_sorted,
    write_table,
)
from ingest.row_store import RowStore
from ingest.scratch import open_scratch
from tests.invented_cohort import PROVENANCE, invented_tiles


def slide_row(number: int, **values: Any) -> dict[str, Any]:
    return {"patient_key": f"p{number // 3}", "case_key": f"c{number // 3}", "specimen_key": f"s{number // 2}",
            "slide_key": f"k{number}", "label": ["benign", "cancer", "in_situ"][number % 3], "site": "breast",
            "year": 2000 + number, "mpp": 0.25 + number / 7, "weight": 1.0, "y_cancer": [0, 1, None][number % 3],
            **values}  # fmt: skip


def slides(rows: list[dict[str, Any]]) -> pa.Table:
    return table_from_rows("slides", rows, {"y_cancer": pa.int8()})


ROWS = [slide_row(number) for number in range(12)]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_rows_give_the_same_bytes(tmp_path: Path, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(ROWS))
    write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    first = (tmp_path / "slides.parquet").read_bytes()
    write_table(tmp_path, "slides", slides([ROWS[position] for position in order]), PROVENANCE)
    assert (tmp_path / "slides.parquet").read_bytes() == first


def test_shuffled_splits_give_the_same_bytes_although_their_key_is_partly_words(tmp_path: Path) -> None:
    rows = [{"patient_key": f"p{patient}", "scheme": scheme, "fold": fold, "split": "train"}
            for patient in range(4) for scheme in ("b", "a") for fold in (1, 0)]  # fmt: skip
    digests = {write_table(tmp_path, "splits", table_from_rows("splits", shuffled), PROVENANCE)
               for shuffled in (rows, rows[::-1], rows[5:] + rows[:5])}  # fmt: skip
    assert len(digests) == 1
    assert read_table(tmp_path, "splits").to_pylist()[:4] == [
        {"patient_key": "p0", "scheme": scheme, "fold": fold, "split": "train"}
        for fold, scheme in ((0, "a"), (0, "b"), (1, "a"), (1, "b"))
    ]


def test_evidence_of_one_specimen_has_one_order(tmp_path: Path) -> None:
    rows = [{"specimen_key": "s", "rule_id": rule, "term": "t", "section": "final", "context": "affirmed", "version": 0,
             "start": start, "end": 9} for rule in ("b", "a") for start in (3, 1)]  # fmt: skip
    assert len({write_table(tmp_path, "evidence", table_from_rows("evidence", part), PROVENANCE)
                for part in (rows, rows[::-1])}) == 1  # fmt: skip


def test_a_dictionary_met_in_another_order_gives_the_same_digest(tmp_path: Path) -> None:
    table = slides(ROWS)
    column = pa.DictionaryArray.from_arrays(pa.array([1] * 12, pa.int32()), pa.array(["unused", "breast"]))
    other = table.set_column(table.column_names.index("site"), "site", column)
    assert write_table(tmp_path, "slides", table, PROVENANCE) == write_table(tmp_path, "slides", other, PROVENANCE)


def test_the_digest_does_not_depend_on_chunks_or_offsets() -> None:
    table = conform("slides", slides(ROWS))
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 6), table.slice(7)])
    assert pieces.column("slide_key").num_chunks > 1
    assert content_digest(pieces) == content_digest(table)
    padded = pa.concat_tables([table.slice(3, 2), table]).slice(2)
    assert content_digest(padded) == content_digest(table)
    tiles = conform(
        "tiles", table_from_rows("tiles", [invented_tiles(f"k{number}", number + 1) for number in range(9)])
    )
    assert content_digest(pa.concat_tables([tiles.slice(0, 4), tiles.slice(4)])) == content_digest(tiles)


def test_the_digest_is_the_same_after_a_round_trip_through_parquet(tmp_path: Path) -> None:
    written = write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    assert (
        content_digest(read_table(tmp_path, "slides")) == written == read_footer(tmp_path, "slides")["content_digest"]
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "cancer"), ("slide_key", "other"), ("mpp", 0.26), ("y_cancer", None), ("year", None), ("y_cancer", 1),
     ("block_key", "")],
)  # fmt: skip
def test_any_changed_value_changes_the_digest(column: str, value: object) -> None:
    changed = [slide_row(0, **{column: value}), *ROWS[1:]]
    assert content_digest(conform("slides", slides(changed))) != content_digest(conform("slides", slides(ROWS)))


def test_text_that_moves_between_neighbours_changes_the_digest() -> None:
    first, second = (conform("conflicts", table_from_rows("conflicts", [
        {"specimen_key": key, **dict.fromkeys(("source_a", "label_a", "source_b", "label_b", "resolution"), "x")}
        for key in keys])) for keys in (("ab", "c"), ("a", "bc")))  # fmt: skip
    assert content_digest(first) != content_digest(second)


def test_a_changed_file_is_seen_by_its_digest(tmp_path: Path) -> None:
    write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    path = tmp_path / "slides.parquet"
    table = pq.read_table(path)
    position = table.column_names.index("y_cancer")
    forged = table.set_column(position, table.schema.field("y_cancer"), pa.array([1] * 12, pa.int8()))
    pq.write_table(forged, path)  # keeps the footer, as a careful forger would
    assert content_digest(read_table(tmp_path, "slides")) != read_footer(tmp_path, "slides")["content_digest"]


@pytest.mark.parametrize("position", [10, 100, 300, 700])
def test_flipped_bytes_never_pass_unseen(tmp_path: Path, position: int) -> None:
    digest = write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    path = tmp_path / "slides.parquet"
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    try:
        found = content_digest(read_table(tmp_path, "slides"))
    except ManifestError:
        return
    assert found != digest


def test_random_damage_ends_in_a_manifest_error_or_another_digest_or_did_not_touch_the_rows(tmp_path: Path) -> None:
    digest = write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    rows = read_table(tmp_path, "slides").to_pylist()
    path = tmp_path / "slides.parquet"
    original = path.read_bytes()
    generator = np.random.default_rng(0)
    num_errors = 0
    for _ in range(300):
        content = bytearray(original)
        content[generator.integers(len(content))] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        try:
            table = read_table(tmp_path, "slides")
        except ManifestError:
            num_errors += 1
            continue
        assert (content_digest(table) == digest) == (table.to_pylist() == rows)
    assert num_errors > 100


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all, but long enough to be read"])
def test_a_file_that_is_no_parquet_is_a_manifest_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "slides.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_table(tmp_path, "slides")


def test_a_missing_table_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"tiles\.parquet is missing; run `python -m ingest run`"):
        read_table(tmp_path, "tiles")


def test_a_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    pq.write_table(slides(ROWS), tmp_path / "slides.parquet")
    with pytest.raises(ManifestError, match="no fullslide footer"):
        read_table(tmp_path, "slides")


def test_a_missing_column_is_named_on_write_and_on_read(tmp_path: Path) -> None:
    without = slides(ROWS).drop_columns(["case_key", "weight"])
    with pytest.raises(ManifestError, match=r"missing columns \['case_key', 'weight'\]"):
        write_table(tmp_path, "slides", without, PROVENANCE)
    write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    table = pq.read_table(tmp_path / "slides.parquet")
    pq.write_table(table.drop_columns(["label"]), tmp_path / "slides.parquet")
    with pytest.raises(ManifestError, match="lacks the columns label"):
        read_table(tmp_path, "slides")


def test_an_empty_cell_in_a_required_column_is_refused(tmp_path: Path) -> None:
    nullable = pa.schema([field.with_nullable(True) for field in TABLES["slides"]])
    table = pa.Table.from_pylist([{**slide_row(0), "label": None}], schema=nullable)
    with pytest.raises(ManifestError, match="column label has 1 empty values of 1"):
        write_table(tmp_path, "slides", table, PROVENANCE)


def test_a_wrong_type_is_refused(tmp_path: Path) -> None:
    table = slides(ROWS)
    text = table.set_column(table.column_names.index("mpp"), "mpp", pa.array(["a"] * 12))
    with pytest.raises(ManifestError, match="column mpp is string, expected double"):
        write_table(tmp_path, "slides", text, PROVENANCE)
    nested = table.set_column(table.column_names.index("year"), "year", pa.array([[1]] * 12))
    with pytest.raises(ManifestError, match="column year is list"):
        write_table(tmp_path, "slides", nested, PROVENANCE)


def test_a_further_text_column_has_one_digest_whether_pandas_or_arrow_made_it(tmp_path: Path) -> None:
    table = slides(ROWS)
    kinds = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    made = [table.append_column("ward", pa.array(["b", "a"] * 6).cast(kind)) for kind in kinds]
    assert len({write_table(tmp_path, "slides", one, PROVENANCE) for one in made}) == 1


def test_an_unknown_column_is_refused_where_the_schema_is_closed(tmp_path: Path) -> None:
    table = table_from_rows("splits", [{"patient_key": "p", "scheme": "holdout", "fold": 0, "split": "test"}])
    with pytest.raises(ManifestError, match=r"unknown columns \['mrn'\]"):
        write_table(tmp_path, "splits", table.append_column("mrn", pa.array(["1"])), PROVENANCE)


def test_another_major_version_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    table = pq.read_table(tmp_path / "slides.parquet")
    metadata = {**table.schema.metadata, b"fullslide.schema_version": b"2.0"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "slides.parquet")
    with pytest.raises(ManifestError, match=r"has schema 2\.0, this code reads 1\."):
        read_table(tmp_path, "slides")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    before = (tmp_path / "slides.parquet").read_bytes()
    with pytest.raises(ManifestError):
        write_table(tmp_path, "slides", slides(ROWS).drop_columns(["label"]), PROVENANCE)
    assert (tmp_path / "slides.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["slides.parquet"]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_can_be_empty(tmp_path: Path, name: str) -> None:
    digest = write_table(tmp_path, name, table_from_rows(name, []), PROVENANCE)
    table = read_table(tmp_path, name)
    assert table.num_rows == 0
    assert content_digest(table) == digest


def test_the_footer_and_dataset_json_carry_the_provenance_and_no_time_of_the_run(tmp_path: Path) -> None:
    digest = write_table(tmp_path, "slides", slides(ROWS), PROVENANCE)
    footer = read_footer(tmp_path, "slides")
    assert footer["num_rows"] == "12"
    assert footer["key_fingerprint"] == PROVENANCE.key_fingerprint
    texts = set()
    for _ in range(2):
        write_dataset_card(tmp_path, PROVENANCE, {"slides": digest}, {"ledger": {}})
        texts.add((tmp_path / "dataset.json").read_text())
    assert len(texts) == 1
    assert json.loads(texts.pop())["content_digests"] == {"slides": digest}


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 50])
@pytest.mark.parametrize("name", ["evidence", "specimens"])
def test_rows_that_wait_on_disk_give_the_bytes_of_a_table_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_rows: int
) -> None:
    monkeypatch.setattr("ingest.manifest.ROW_GROUP_SIZE", 16)
    monkeypatch.setattr("ingest.row_store.PIECE_ROWS", 5)
    generator = random.Random(num_rows)
    extra = {"y_b": pa.int8(), "y_a": pa.float32()} if name == "specimens" else {}
    rows: list[dict[str, Any]] = [
        {"specimen_key": f"s{generator.randrange(9) if name == 'evidence' else number}", "rule_id": f"r{number % 3}",
         "term": "t\u00e9rm", "section": f"part {number % 4}", "context": "affirmed", "version": -1, "start": number % 6,
         "end": 9, "patient_key": f"p{number % 5}", "case_key": "c", "label": ("benign", "cancer")[number % 2],
         "finding": None if number % 3 else "idc", "atypia": number % 2 == 0, "num_slides": 1,
         "y_a": None if number % 4 else 0.1 * number, "y_b": number % 2} for number in range(num_rows)
    ]  # fmt: skip
    rows = [{key: value for key, value in row.items() if key in {*TABLES[name].names, *extra}} for row in rows]
    generator.shuffle(rows)
    store = RowStore(open_scratch(tmp_path), name, extra)
    for row in rows:
        store.add([row])
    assert store.num_rows == num_rows
    whole = write_table(tmp_path / "whole", name, table_from_rows(name, rows, extra), PROVENANCE)
    assert write_sorted(tmp_path / "pieces", name, store.schema, store.batches(), PROVENANCE) == whole
    files = [(tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("whole", "pieces")]
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == [f"{name}.parquet"]


def test_rows_on_disk_may_not_lack_a_key_either(tmp_path: Path) -> None:
    store = RowStore(open_scratch(tmp_path), "splits")
    store.add([{"patient_key": "p", "scheme": "holdout", "fold": 0}])
    with pytest.raises(ManifestError, match="column split has 1 empty values of 1"):
        write_sorted(tmp_path / "out", "splits", store.schema, store.batches(), PROVENANCE)
    assert list((tmp_path / "out").iterdir()) == []
