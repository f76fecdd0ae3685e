"""Whatever comes in, and however damaged: every row and message is kept or rejected with a reason, and the sums add up."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.source.canonical import TABLE_NAMES
from ingest.source.config import SourceConfig
from ingest.source.hl7 import SECTION_OF_LOINC
from ingest.source.read import read_source
from ingest.source.tables import SourceTables

GOOD = b"S-GOOD,a report that is always there"
CSV_DAMAGE = (
    b"X", b"X,y,z", b",,", b",text without accession", b"X,", b"X, ", b'X,"a"b', b'X,"open', b'"X', b"X,\x00y", b"X,\xff\xfe",
    b"X\x07Y,control character", b'X,"closed"', b'X","y',
)  # fmt: skip
HEADER = "MSH|^~\\&|LAB|NORTH|||20230405101112||ORU^R01|1|P|2.5.1"
PATIENT = "PID|1||0017^^^NORTH^MR||Nobody^Invented"
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rejected(source: SourceTables, entity: str) -> Counter[str]:
    """table -> rejected rows that never were in it."""
    counts: Counter[str] = Counter()
    for entry in source.rejected():
        assert entry.reason.replace("_", "").isalpha()
        assert entry.count > 0
        if entry.entity == entity and entry.reason != "duplicate_row":
            counts[entry.table] += entry.count
    return counts


def check_sums(source: SourceTables) -> None:
    lost = rejected(source, "row") + rejected(source, "message")
    assert {name: count for name, count in source.num_rows.items() if count} == {
        name: source.num_kept[name] + lost[name] for name in source.num_kept if source.num_kept[name] + lost[name]
    }
    copies = sum(entry.count for entry in source.rejected() if entry.reason == "duplicate_row")
    # Of messages only reports are told twice: each message about a patient says again who it is.
    told = [name for name in TABLE_NAMES if "messages" not in source.num_rows or name == "reports"]
    num_copies: int = sum(source.num_kept[name] - source.num_different(name) for name in told)
    assert copies == num_copies


@given(st.lists(st.one_of(st.integers(0, 5), st.sampled_from(CSV_DAMAGE)), max_size=30))
@fuzz
def test_every_line_of_a_damaged_export_is_kept_or_rejected(tmp_path: Path, lines: list[int | bytes]) -> None:
    rows = [f"S{line},text {line}".encode() if isinstance(line, int) else line for line in lines]
    (tmp_path / "r.csv").write_bytes(b"accession,text\n" + b"\n".join([GOOD, *rows]) + b"\n")
    with read_source(SourceConfig.model_validate({"tables": {"reports": {"file": "r.csv"}}}), tmp_path) as source:
        check_sums(source)
        # An open quote may take the lines after it along to its closing one, but never more than there are.
        assert source.num_rows["reports"] == 1 + len(rows) or any(b'"' in row for row in rows)
        assert source.num_rows["reports"] <= 1 + len(rows)
        kept = {record.accession for record in source.case_records()}
        assert kept >= {"S-GOOD"} | {
            f"S{line}" for line in lines if isinstance(line, int) and b'"' not in b"".join(rows)
        }


@pytest.mark.parametrize("damage", CSV_DAMAGE)
def test_one_damaged_line_is_one_row_and_takes_no_neighbour_along(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "r.csv").write_bytes(b"\n".join([b"accession,text", GOOD, damage, b"S1,text"]) + b"\n")
    with read_source(SourceConfig.model_validate({"tables": {"reports": {"file": "r.csv"}}}), tmp_path) as source:
        assert source.num_rows["reports"] == 3
        check_sums(source)
        assert {"S-GOOD", "S1"} <= {record.accession for record in source.case_records()}


CELLS = st.one_of(
    st.none(), st.text(max_size=6), st.binary(max_size=6), st.integers(-9, 2**62), st.floats(allow_nan=False), st.just(""),
    st.sampled_from(["S1", "S2", "\x00", "a\x07b", 2.0**60, b"\xff\xfe"]),
)  # fmt: skip


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=20))
@fuzz
def test_every_row_of_a_query_is_kept_or_rejected_whatever_is_in_its_cells(
    tmp_path: Path, rows: list[tuple[Any, Any, Any]]
) -> None:
    (tmp_path / "lis.sqlite").unlink(missing_ok=True)
    with sqlite3.connect(tmp_path / "lis.sqlite") as connection:
        connection.execute("CREATE TABLE r (accession, version, text)")
        values = [("S-GOOD", "1", "a report that is always there"), *rows]
        connection.executemany("INSERT INTO r VALUES (?, ?, ?)", values)
    connection.close()
    tables = {"reports": {"query": "SELECT accession, version, text FROM r"}}
    with read_source(
        SourceConfig.model_validate({"database_file": "lis.sqlite", "tables": tables}), tmp_path
    ) as source:
        assert source.num_rows["reports"] == len(values)
        check_sums(source)


def observation(value: str, code: str = "22637-3", kind: str = "TX", status: str = "F") -> str:
    return f"OBX|1|{kind}|{code}^name^LN|1|{value}||||||{status}"


OBSERVATIONS = (
    observation("benign"), observation("x", status="D"), observation("x", status="?"), observation("x", code="LOCAL"),
    observation("JVBERi0", kind="ED"), observation("x", kind="ZZ"), observation(""), "OBX|", "OBX|1|TX|22637-3",
)  # fmt: skip
MESSAGE_PARTS = st.tuples(
    st.sampled_from([HEADER, HEADER.replace("ORU", "ORM"), "MSH|^^^^|", "MSH", HEADER + "\xff"]),
    st.sampled_from([PATIENT, "PID|1||1^^^^SS", "ZZZ|1", "PID", ""]),
    st.sampled_from(["OBR|1||S23-1|11529-5^R^LN", "OBR|1|||11529-5^R^LN", "OBR", ""]),
    st.lists(st.sampled_from(OBSERVATIONS), max_size=4),
)


@given(st.lists(MESSAGE_PARTS, max_size=8), st.booleans())
@fuzz
def test_every_message_and_observation_is_kept_or_rejected(
    tmp_path: Path, parts: list[tuple[str, str, str, list[str]]], in_batch: bool
) -> None:
    good = (HEADER, PATIENT, "OBR|1||S23-GOOD|11529-5^R^LN", list(OBSERVATIONS))
    messages = ["\r".join((header, patient, order, *found)) for header, patient, order, found in [good, *parts]]
    text = "\r".join(messages) + "\r"
    if in_batch:
        text = f"FHS|^~\\&|x\rBHS|^~\\&|x\r{text}BTS|{len(messages)}\rFTS|1\r"
    (tmp_path / "m.hl7").write_bytes(text.encode("latin-1"))
    with read_source(SourceConfig.model_validate({"hl7": {"messages": "m.hl7"}}), tmp_path) as source:
        assert source.num_rows["messages"] == len(messages)
        check_sums(source)
        # Of a message that can be used, every observation is a row of report text or a rejected one.
        usable = [
            found for *around, found in [good, *parts] if around == [HEADER, PATIENT, around[2]] and "S23" in around[2]
        ]
        assert source.num_kept["messages"] == sum(bool(found) for found in usable)
        assert source.num_rows["reports"] == sum(len(found) for found in usable)
        assert "S23-GOOD" in [record.accession for record in source.case_records()]


def test_run_and_label_read_the_same_standard_codes_as_the_same_sections() -> None:
    from ingest.report.oru import SECTIONS

    words = {"final diagnosis": "final", "gross description": "gross", "microscopic description": "microscopic",
             "clinical history": "history", "nature of specimen": "specimen", "synoptic report": "synoptic"}  # fmt: skip
    assert {code: words.get(section, section) for code, section in SECTIONS.items()} == {
        code: section for code, section in SECTION_OF_LOINC.items() if section != "report"
    }


@pytest.mark.parametrize("code", ["33746-9", "34574-4", "60571-7"])
def test_other_codes_of_a_final_diagnosis_are_read(tmp_path: Path, code: str) -> None:
    text = "\r".join((HEADER, PATIENT, "OBR|1||S23-1|11529-5^R^LN", observation("benign", code)))
    (tmp_path / "m.hl7").write_text(text, newline="")
    with read_source(SourceConfig.model_validate({"hl7": {"messages": "m.hl7"}}), tmp_path) as source:
        assert [report.section for report in next(source.case_records()).reports] == ["final"]
