"""Exports: every cell survives as text, every bad row is in the rejected list, the order of rows changes nothing."""

import datetime as dt
import random
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ingest.errors import ConfigError, InputError
from ingest.source.config import SourceConfig
from ingest.source.read import read_source
from ingest.source.tables import SourceTables

REPORT_HEADER = "accession,text\n"


def read(folder: Path, **tables: Any) -> SourceTables:
    settings = {name: tables.pop(name) for name in list(tables) if name in SourceConfig.model_fields}
    return read_source(SourceConfig.model_validate({"tables": tables, **settings}), folder)


def reasons(source: SourceTables) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in source.rejected():
        found[entry.reason] = found.get(entry.reason, 0) + entry.count
    return found


def reports(source: SourceTables) -> list[dict[str, str | None]]:
    return [row for batch in source.batches("reports") for row in batch.to_pylist()]


def test_identifiers_keep_zeros_exponents_and_missing_looking_names(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("slide_id,accession,part\n00027670,S23-1,1E5\n1.0,S23-2,NA\nnull,S23-3,None\n")
    with read(tmp_path, slides={"file": "slides.csv"}) as source:
        assert source.table("slides").select(["slide_id", "part"]).to_pylist() == [
            {"slide_id": "00027670", "part": "1E5"},
            {"slide_id": "1.0", "part": "NA"},
            {"slide_id": "null", "part": "None"},
        ]


def test_report_text_keeps_quotes_line_breaks_and_outer_white_space(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('accession,text\nS1,"  A. said ""no""\n\nB, two "\n')
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert reports(source)[0]["text"] == '  A. said "no"\n\nB, two '


def test_short_long_and_unclosed_rows_are_rejected_and_their_neighbours_are_kept(tmp_path: Path) -> None:
    text = 'S1,good\nS2\nS3,a,b\nS4,"never closed\nS5,good\nS6,"closed"\nS7,"junk" after\nS8,good\n'
    (tmp_path / "r.csv").write_text(REPORT_HEADER + text)
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert [row["accession"] for row in reports(source)] == ["S1", "S5", "S6", "S8"]
        assert reasons(source) == {"wrong_number_of_columns": 2, "malformed_row": 2}
        assert source.num_rows["reports"] == 8


def test_unclosed_quote_in_the_last_row_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(REPORT_HEADER + 'S1,good\nS2,"open\nS3,good')
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert [row["accession"] for row in reports(source)] == ["S1", "S3"]
        assert reasons(source) == {"malformed_row": 1}


@pytest.mark.parametrize("seed", range(8))
def test_every_row_of_a_randomly_damaged_file_is_kept_or_rejected(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    good = [f"S{number},text {number}" for number in range(200)]
    damage = ["X", "X,y,z", ',"text without accession"', 'X,"a"b', "X,\x00y", 'X,"open']
    rows = good + [generator.choice(damage) for _ in range(40)]
    generator.shuffle(rows)
    (tmp_path / "r.csv").write_bytes((REPORT_HEADER + "\n".join(rows) + "\n").encode())
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        kept = {row["accession"] for row in reports(source)}
        assert kept >= {row.split(",")[0] for row in good}
        assert sum(reasons(source).values()) + source.num_different("reports") == 240


def test_strict_utf8_first_then_the_declared_encoding(tmp_path: Path) -> None:
    (tmp_path / "utf8.csv").write_bytes((REPORT_HEADER + "S1,na\u00efve \u2264 2 mm\n").encode())
    (tmp_path / "windows.csv").write_bytes((REPORT_HEADER + "S2,na\u00efve \u201cquoted\u201d\n").encode("cp1252"))
    with read(tmp_path, reports={"file": "*.csv"}, encoding="cp1252") as source:
        assert [row["text"] for row in reports(source)] == ["na\u00efve \u2264 2 mm", "na\u00efve \u201cquoted\u201d"]


def test_bytes_that_no_declared_encoding_has_cost_their_row_only(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(REPORT_HEADER.encode() + b"S1,good\nS2,na\xefve\nS3,good\n")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert [row["accession"] for row in reports(source)] == ["S1", "S3"]
        assert reasons(source) == {"undecodable": 1}
    (tmp_path / "r.csv").write_bytes(REPORT_HEADER.encode() + b"S1,na\xefve\nS2,\x81 has no meaning in cp1252\n")
    with read(tmp_path, reports={"file": "r.csv"}, encoding="cp1252") as source:
        assert reasons(source) == {"undecodable": 1}


def test_utf16_and_utf8_marks_are_understood(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(REPORT_HEADER + "S1,\u00e4\n", encoding="utf-16")
    (tmp_path / "b.csv").write_text(REPORT_HEADER + "S2,\u00e4\n", encoding="utf-8-sig")
    with read(tmp_path, reports={"file": "*.csv"}) as source:
        assert [row["text"] for row in reports(source)] == ["\u00e4", "\u00e4"]


def test_cut_utf16_file_ends_in_the_rejected_list(tmp_path: Path) -> None:
    content = (REPORT_HEADER + "S1,x\nS2,y\n").encode("utf-16")
    (tmp_path / "r.csv").write_bytes(content + b"a")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert reasons(source) == {"undecodable_rest_of_file": 1}


def test_rows_in_any_order_and_any_files_give_the_same_tables_and_rejects(tmp_path: Path) -> None:
    rows = [f'S{number % 7},"text {number}"' for number in range(60)] + ["S1", "S2,x,y", ",t", 'S3,"text 3"']
    outcomes = []
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        folder = tmp_path / str(seed)
        folder.mkdir()
        cut = 10 * (seed + 1)
        (folder / "a.csv").write_text(REPORT_HEADER + "\n".join(rows[:cut]) + "\n")
        (folder / "b.csv").write_text(REPORT_HEADER + "\n".join(rows[cut:]) + "\n")
        with read(folder, reports={"file": "*.csv"}) as source:
            outcomes.append((list(source.case_records()), list(source.rejected())))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_exact_copies_are_in_the_ledger_unless_they_are_expected(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(REPORT_HEADER + "S1,same\nS1,same\nS1,same\n")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert source.num_different("reports") == 1
        assert reasons(source) == {"duplicate_row": 2}
        assert next(source.rejected()).status == "excluded"
    with read(tmp_path, reports={"file": "r.csv", "distinct": True}) as source:
        assert (source.num_different("reports"), list(source.rejected())) == (1, [])


def test_rejected_rows_do_not_show_their_content(tmp_path: Path) -> None:
    (tmp_path / "mrn27670.csv").write_text(REPORT_HEADER + "S1,good\nSECRET-27670\n")
    with read(tmp_path, reports={"file": "*.csv"}) as source:
        assert "27670" not in repr(list(source.rejected()))
        assert len(next(source.rejected()).digest) == 32


def test_lines_of_one_report_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = ["S1,10,tenth", "S1,2,second", "S1,9,", "S1,1,first"]
    (tmp_path / "r.csv").write_text("accession,line,text\n" + "\n".join(rows) + "\n")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        (record,) = source.case_records()
        assert [report.text for report in record.reports] == ["first\nsecond\n\ntenth"]
    with read(tmp_path, reports={"file": "r.csv"}, line_join="") as source:
        assert next(source.case_records()).reports[0].text == "firstsecondtenth"


def test_version_numbers_sort_as_numbers_and_beside_message_times(tmp_path: Path) -> None:
    rows = ["S1,10,tenth", "S1,2,second", "S1,20230405101112,message"]
    (tmp_path / "r.csv").write_text("accession,version,text\n" + "\n".join(rows) + "\n")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        found = sorted((report.version or "", report.text) for report in next(source.case_records()).reports)
        assert [text for _, text in found] == ["second", "tenth", "message"]


@pytest.mark.parametrize(("length", "is_truncated"), [(254, False), (255, True), (4000, True), (32767, True)])
def test_text_of_exactly_a_column_limit_is_marked_truncated(tmp_path: Path, length: int, is_truncated: bool) -> None:
    (tmp_path / "r.csv").write_text(REPORT_HEADER + f"S1,{'x' * length}\n")
    with read(tmp_path, reports={"file": "r.csv"}) as source:
        assert next(source.case_records()).reports[0].truncated is is_truncated


def test_columns_values_constants_and_nulls_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text("CaseNo\tBody\tKind\ns23-00017 \tx\tA\nS23-18\ty\tNULL\n")
    table = {
        "file": "r.tsv",
        "columns": {"accession": "caseno", "text": "BODY", "version_kind": "Kind", "format": "=rtf"},
        "values": {"version_kind": {"A": "amended"}},
    }
    pattern = r"(?P<cls>[A-Z]+)(?P<yy>\d\d)-(?P<num>\d+)"
    with read(tmp_path, reports=table, null_values=["NULL"], accession_pattern=pattern) as source:
        found = [(row["accession"], row["version_kind"], row["format"]) for row in reports(source)]
        assert found == [("S23-17", "amended", "rtf"), ("S23-18", None, "rtf")]


def test_accessions_outside_the_declared_form_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(REPORT_HEADER + "S23-1,x\ntest,y\n")
    with read(tmp_path, reports={"file": "r.csv"}, accession_pattern=r"S\d\d-\d+") as source:
        assert reasons(source) == {"bad_accession": 1}


def test_excel_keeps_shown_zeros_and_refuses_dates_and_errors_as_identifiers(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["slide_id", "accession", "part", "scanned_at"])
    sheet.append([27670, "S1", "A", dt.datetime(2023, 4, 5)])
    sheet["A2"].number_format = "00000000"
    sheet.append([17, "S2", "A", None])
    sheet.append(["i3", "S3", dt.datetime(2023, 12, 3), None])
    sheet.append(["i4", "S4", "#N/A", None])
    sheet["C5"].data_type = "e"
    sheet.append([None, None, None, None])
    book.save(tmp_path / "slides.xlsx")
    with read(tmp_path, slides={"file": "slides.xlsx"}) as source:
        found = source.table("slides").select(["slide_id", "scanned_at"]).to_pylist()
        assert found == [
            {"slide_id": "00027670", "scanned_at": "2023-04-05 00:00:00"},
            {"slide_id": "17", "scanned_at": None},
        ]
        assert reasons(source) == {"date_in_identifier": 1, "excel_error_value": 1}


def test_parquet_of_any_type_becomes_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "slide_id": pa.array([27670, None, 3], pa.int64()),
            "accession": pa.array(["S1", "S2", "S3"]).dictionary_encode(),
            "part": pa.array([1.0, 2.0, None]),
            "scanned_at": pa.array([dt.datetime(2023, 4, 5), None, None], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    with read(tmp_path, slides={"file": "s.parquet"}) as source:
        found = source.table("slides").select(["slide_id", "accession", "part", "scanned_at"]).to_pylist()
        assert [tuple(row.values()) for row in found] == [
            ("27670", "S1", "1", "2023-04-05 00:00:00"),
            ("3", "S3", None, None),
        ]
        assert reasons(source) == {"missing_slide_id": 1}


def test_numbers_too_long_for_a_float_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"slide_id": [1.2345678901234567e17, 5.0]}), tmp_path / "s.parquet")
    with read(tmp_path, slides={"file": "s.parquet"}) as source:
        assert source.table("slides")["slide_id"].to_pylist() == ["5"]
        assert reasons(source) == {"number_too_long": 1}


def test_damaged_and_empty_files_are_rejected_as_files_and_the_others_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"slide_id": ["good"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is none")
    (tmp_path / "c.xlsx").write_bytes(b"not a zip")
    (tmp_path / "d.csv").write_bytes(b"")
    with read(tmp_path, slides={"file": "*.*"}) as source:
        assert source.table("slides")["slide_id"].to_pylist() == ["good"]
        assert {(entry.entity, entry.reason) for entry in source.rejected()} == {
            ("file", "damaged_file"),
            ("file", "empty_file"),
        }
        assert sum(entry.count for entry in source.rejected()) == 3


def test_systemic_faults_stop_with_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("accession;text\nS1;x\n")
    (tmp_path / "none.csv").write_text(REPORT_HEADER)
    with pytest.raises(InputError, match=r"column 'accession' is missing among 1 columns.*delimiter"):
        read(tmp_path, reports={"file": "r.csv"})
    with pytest.raises(InputError, match=r"source\.tables\.reports: no file matches"):
        read(tmp_path, reports={"file": "absent-*.csv"})
    with pytest.raises(InputError, match="no usable report among 0 rows"):
        read(tmp_path, reports={"file": "none.csv"})
    with pytest.raises(ConfigError, match="no column 'acession'"):
        read(tmp_path, reports={"file": "r.csv", "delimiter": ";", "columns": {"acession": "x"}})
    with pytest.raises(ConfigError, match="no such encoding"):
        read(tmp_path, reports={"file": "r.csv"}, encoding="cp12520")
    with pytest.raises(ValidationError, match="exactly one of query, query_file, file"):
        SourceConfig.model_validate({"tables": {"reports": {"file": "x.csv", "query": "SELECT 1"}}})


def test_staging_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(REPORT_HEADER + "S1,x\n")
    staging = tmp_path / "staging"
    staging.mkdir()
    config = SourceConfig.model_validate({"tables": {"reports": {"file": "r.csv"}}})
    with read_source(config, tmp_path, staging) as source:
        assert list(staging.iterdir()) == []  # unlinked already while it is open
        assert source.num_different("reports") == 1
