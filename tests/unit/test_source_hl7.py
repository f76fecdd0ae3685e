"""HL7 v2: parts, versions, escapes, batches, merges; every message and observation is used or rejected."""

from pathlib import Path
from typing import Any

import pytest

from ingest.errors import ConfigError
from ingest.source.config import SourceConfig
from ingest.source.hl7 import split_messages
from ingest.source.read import read_source
from ingest.source.tables import SourceTables

EXAMPLE = Path(__file__).parents[3] / "shared" / "data" / "hl7"
HEADER = "MSH|^~\\&|LAB|NORTH|||20230405101112||ORU^R01|1|P|2.5.1"
PATIENT = "PID|1||123-45-6789^^^^SS~0017^^^NORTH^MR~88^^^SOUTH^MR~E9^^^^EPI||Nobody^Invented"
ORDER = "OBR|1||S23-1|11529-5^Report^LN|||20230401|||||||||||||||20230405||SP|F"


def observation(value: str, code: str = "22637-3", part: str = "", kind: str = "TX", status: str = "F") -> str:
    return f"OBX|1|{kind}|{code}^name^LN|{part}|{value}||||||{status}"


def message(*segments: str, header: str = HEADER, patient: str = PATIENT) -> bytes:
    return "\r".join((header, patient, *segments)).encode()


def read(folder: Path, *files: bytes, **settings: Any) -> SourceTables:
    for number, content in enumerate(files):
        (folder / f"{number}.hl7").write_bytes(content)
    encoding = settings.pop("encoding", None)
    return read_source(
        SourceConfig.model_validate({"hl7": {"messages": "*.hl7", **settings}, "encoding": encoding}), folder
    )


def reasons(source: SourceTables) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in source.rejected():
        found[entry.reason] = found.get(entry.reason, 0) + entry.count
    return found


@pytest.mark.skipif(not EXAMPLE.exists(), reason="needs ../shared/data/hl7")
def test_the_published_breast_example_gives_three_parts_and_a_summary_that_belongs_to_none() -> None:
    config = SourceConfig.model_validate({"hl7": {"messages": "*.hl7"}})
    with read_source(config, EXAMPLE) as source:
        (record,) = source.case_records()
        assert record.accession == "97 810430"
        assert [part.part for part in record.parts] == ["1", "2", "3"]
        final = {report.part: report.text for report in record.reports if report.section == "final"}
        assert final.keys() == {None, "1", "2", "3"}
        assert final["2"].startswith("2. Lymph node, no pathologic diagnosis")
        assert source.table("patients")["mrn"].to_pylist() == ["00466144"]
        assert list(source.rejected()) == []


def test_all_numbers_of_one_patient_are_read_but_never_the_social_security_number(tmp_path: Path) -> None:
    with read(tmp_path, message(ORDER, observation("x"))) as source:
        rows = source.table("patients").select(["patient_id", "mrn", "issuer", "empi"]).to_pylist()
        assert {(row["mrn"], row["issuer"], row["empi"]) for row in rows} == {
            ("0017", "NORTH", "E9"),
            ("88", "SOUTH", "E9"),
        }
        assert len({row["patient_id"] for row in rows}) == 1
        assert "6789" not in repr(rows)


def test_one_line_per_observation_is_one_text_with_its_blank_lines(tmp_path: Path) -> None:
    lines = [observation(text) for text in ("A. BREAST:", "", "- CARCINOMA")]
    with read(tmp_path, message(ORDER, *lines)) as source:
        assert [report.text for report in next(source.case_records()).reports] == ["A. BREAST:\n\n- CARCINOMA"]
        assert list(source.rejected()) == []


def test_raw_line_breaks_inside_a_value_stay_in_the_value(tmp_path: Path) -> None:
    with read(
        tmp_path, message(ORDER, observation("A. BREAST:\n\nER is POSITIVE|"), observation("x", "22634-0"))
    ) as source:
        texts = {report.section: report.text for report in next(source.case_records()).reports}
        assert texts["final"].startswith("A. BREAST:\n\nER is POSITIVE")
        assert texts["gross"] == "x"


@pytest.mark.parametrize(
    ("status", "of_order", "kind"),
    [("F", "F", "final"), ("C", "F", "corrected"), ("A", "F", "amended"), ("P", "F", "preliminary"),
     ("", "P", "preliminary"), ("F", "P", "preliminary"), ("F", "C", "corrected"), ("", "", "final")],
)  # fmt: skip
def test_status_of_observation_and_order_gives_the_kind_of_version(
    tmp_path: Path, status: str, of_order: str, kind: str
) -> None:
    order = ORDER[:-1] + of_order
    with read(tmp_path, message(order, observation("x", status=status))) as source:
        assert next(source.case_records()).reports[0].version_kind == kind


def test_later_message_sorts_after_earlier_one_whatever_its_precision(tmp_path: Path) -> None:
    coarse = HEADER.replace("20230405101112", "202304060900")
    first, second = message(ORDER, observation("one")), message(ORDER, observation("two"), header=coarse)
    with read(tmp_path, second, first) as source:
        found = sorted((report.version or "", report.text) for report in next(source.case_records()).reports)
        assert [text for _, text in found] == ["one", "two"]


def test_case_that_was_sent_preliminary_and_final_is_one_case(tmp_path: Path) -> None:
    early = ORDER[:-1].replace("20230405", "") + "P"
    with read(tmp_path, message(early, observation("one")), message(ORDER, observation("two"))) as source:
        (record,) = source.case_records()
        assert [(case.status, case.signed_at) for case in record.cases] == [("F", "20230405")]
        assert len(record.reports) == 2
        assert list(source.rejected()) == []


def test_repetitions_of_a_text_field_are_its_lines(tmp_path: Path) -> None:
    with read(tmp_path, message(ORDER, observation("one~two \\R\\ three"))) as source:
        assert next(source.case_records()).reports[0].text == "one\ntwo \\R\\ three"


def test_every_unusable_message_and_observation_has_a_reason(tmp_path: Path) -> None:
    files = [
        message(ORDER, observation("good")),
        message(ORDER, observation("x", status="D"), observation("x", status="X"), observation("x", status="?")),
        message(ORDER, observation("x", code="LOCAL"), observation("JVBERi0", kind="ED"), observation("x", kind="ZZ")),
        message(ORDER),
        message(ORDER, observation("x"), patient="PID|1||1^^^^SS"),
        message(ORDER, observation("x"), patient="ZZZ|1"),
        message(ORDER.replace("S23-1", ""), observation("x")),
        message(observation("x")),
        message(ORDER, observation("x"), header=HEADER.replace("ORU^R01", "ORM^O01")),
        message(ORDER, observation("x"), header="MSH|^^^^|"),
        message(ORDER, observation("x")).replace(b"|x|", b"|\xff\xfe|"),
        b"MSH",
        b"%PDF-1.4 nothing here",
        b"",
    ]
    with read(tmp_path, *files) as source:
        assert reasons(source) == {
            "deleted_result": 1, "no_result": 1, "unknown_status": 1, "unknown_section_code": 1,
            "encapsulated_document": 1, "unknown_value_type": 1, "no_observations": 1, "no_patient": 2,
            "missing_accession": 1, "observation_without_order": 1, "not_a_report": 1, "bad_delimiters": 1,
            "undecodable": 1, "bad_header": 1, "not_hl7": 2, "empty_file": 1,
        }  # fmt: skip
        assert [record.accession for record in source.case_records()] == ["S23-1"]
        assert "S23" not in repr(list(source.rejected()))


def test_local_codes_are_read_when_declared_and_refused_when_unknown_sections(tmp_path: Path) -> None:
    content = message(ORDER, observation("whole", code="RPT"), observation("dx", code="FDX"))
    with read(tmp_path, content, sections={"RPT": "report", "FDX": "final"}) as source:
        found = {report.section: report.text for report in next(source.case_records()).reports}
        assert found == {None: "whole", "final": "dx"}
    with pytest.raises(ConfigError, match="RPT = 'everything'"):
        read(tmp_path, content, sections={"RPT": "everything"})


@pytest.mark.parametrize("line_end", [b"\r", b"\n", b"\r\n"])
def test_batches_framing_and_line_ends_are_taken_off(tmp_path: Path, line_end: bytes) -> None:
    one = b"\x0b" + message(ORDER, observation("one")) + b"\x1c\r"
    two = message(ORDER.replace("S23-1", "S23-2"), observation("two"))
    content = b"\r".join((b"FHS|^~\\&|x", b"BHS|^~\\&|x", one + two, b"BTS|2", b"FTS|1")).replace(b"\r", line_end)
    with read(tmp_path, content) as source:
        assert [record.accession for record in source.case_records()] == ["S23-1", "S23-2"]
        assert list(source.rejected()) == []


def test_batch_that_lost_messages_is_reported(tmp_path: Path) -> None:
    content = b"\r".join((b"BHS|^~\\&|x", message(ORDER, observation("one")), b"BTS|5"))
    with read(tmp_path, content) as source:
        assert reasons(source) == {"batch_count_mismatch": 1}
        assert source.num_different("reports") == 1


def test_line_ends_across_read_blocks_are_found(tmp_path: Path) -> None:
    # A CR LF whose two bytes lie in different 1 MiB reads (the first read takes 3 bytes).
    first = message(ORDER, observation("x"))
    padding = (1 << 20) + 3 - len(first) - 1
    first = first.replace(b"|x|", b"|" + b"x" * (padding + 1) + b"|")
    assert len(first) == (1 << 20) + 2
    (tmp_path / "m.hl7").write_bytes(first + b"\r\n" + message(ORDER, observation("y")))
    with (tmp_path / "m.hl7").open("rb") as file:
        found = list(split_messages(file))
    assert [len(entry) if isinstance(entry, bytes) else 0 for entry in found] == [
        len(first),
        len(message(ORDER, observation("y"))),
    ]


def test_unusual_delimiters_mean_the_same(tmp_path: Path) -> None:
    usual = message(ORDER, observation("one~two \\T\\ three"))
    swapped = usual.translate(bytes.maketrans(b"|^~\\&", b"!@#$%"))
    with read(tmp_path, usual) as source:
        expected = list(source.case_records())
    with read(tmp_path, swapped) as source:
        assert list(source.case_records()) == expected


def test_character_set_is_utf8_then_the_named_one_then_the_declared_one(tmp_path: Path) -> None:
    body = message(ORDER, observation("na\u00efve")).decode()
    named = body.replace("|2.5.1", "|2.5.1||||||8859/1")
    with read(tmp_path, body.encode(), named.replace("S23-1", "S23-2").encode("latin-1")) as source:
        assert [record.reports[0].text for record in source.case_records()] == ["na\u00efve"] * 2
    with read(tmp_path, body.encode(), encoding="cp1252") as source:  # a declared encoding is only the second choice
        assert next(source.case_records()).reports[0].text == "na\u00efve"
    with read(tmp_path, body.encode("cp1252"), encoding="cp1252") as source:
        assert next(source.case_records()).reports[0].text == "na\u00efve"


def test_merge_message_links_the_old_number_to_the_new_patient(tmp_path: Path) -> None:
    merge = "\r".join((HEADER.replace("ORU^R01", "ADT^A40"), "PID|1||17^^^NORTH^MR", "MRG|99^^^NORTH^MR")).encode()
    with read(tmp_path, message(ORDER, observation("x")), merge) as source:
        rows = {row["mrn"]: row for row in source.table("patients").to_pylist()}
        assert rows["99"]["merged_into"] == "NORTH|17"


def test_coded_answers_become_synoptic_rows_and_codes(tmp_path: Path) -> None:
    coded = "OBX|1|CWE|59847-4^Histologic type^LN|A|8500/3^Invasive ductal carcinoma^ICDO3||||||F"
    with read(tmp_path, message(ORDER, coded, observation("x"))) as source:
        record = next(source.case_records())
        assert (record.synoptic[0].question, record.synoptic[0].answer, record.synoptic[0].part) == (
            "Histologic type", "Invasive ductal carcinoma", "A",
        )  # fmt: skip
        assert (record.codes[0].system, record.codes[0].code) == ("ICDO3", "8500/3")


def test_two_patients_in_one_message_stay_apart(tmp_path: Path) -> None:
    other = ("PID|2||55^^^NORTH^MR", ORDER.replace("S23-1", "S23-9"), observation("y"))
    with read(tmp_path, message(ORDER, observation("x"), *other)) as source:
        found = {record.accession: record.cases[0].mrn for record in source.case_records()}
        assert found == {"S23-1": "0017", "S23-9": "55"}
