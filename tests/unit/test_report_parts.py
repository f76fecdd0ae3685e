"""Headings and part headers in every style, and what only looks like one."""

import pytest

from ingest.report.normalise import view
from ingest.report.parts import expand_ids, find_parts, find_titles, roman_ordinal
from ingest.report.sections import find_headings, section_role
from ingest.rulefile import Compiled, compiled, load_rules


@pytest.fixture(scope="module")
def engine() -> Compiled:
    return compiled(load_rules("breast"))


def parts(text: str, engine: Compiled, known: tuple[str, ...] = ()) -> list[str]:
    return ["".join(header.ids) for header in find_parts(text, 0, len(text), engine, known)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A. LEFT BREAST, BIOPSY: X.\nB. RIGHT BREAST, BIOPSY: Y.", ["A", "B"]),
        ("A) Left breast: x\nB) Right breast: y", ["A", "B"]),
        ("(A) Left breast: x\n(B) Right breast: y", ["A", "B"]),
        ("A: Left breast - x\nB: Right breast - y", ["A", "B"]),
        ("A - Left breast: x\nB - Right breast: y", ["A", "B"]),
        ("A/1. Breast: x\nB/2. Breast: y", ["A", "B"]),
        ("PART 1: LEFT BREAST\nX\nPART 2: RIGHT BREAST\nY", ["1", "2"]),
        ("SPECIMEN A: LEFT BREAST\nX\nSPECIMEN B: RIGHT BREAST\nY", ["A", "B"]),
        ("1. Breast, left: x\n2. Breast, right: y", ["1", "2"]),
        ("I. BREAST, LEFT: X\nII. BREAST, RIGHT: Y\nIII. NODE: Z", ["I", "II", "III"]),
        ("H. Breast: x\nI. Breast: y\nJ. Breast: z", ["H", "I", "J"]),
        ("Z. BREAST: X\nAA. BREAST: Y\nAB. LYMPH NODE: Z", ["Z", "AA", "AB"]),
        ("LEFT BREAST, CORE (A):\nX\nRIGHT BREAST, CORE (B):\nY", ["A", "B"]),
        ("A  BREAST, LEFT\n   X\nB  BREAST, RIGHT\n   Y", ["A", "B"]),
        ("A-C. LYMPH NODES: X\nD, E. BREAST: Y\nF & H. BREAST: Z", ["ABC", "DE", "FH"]),
        ("A. Left breast: x. B. Right breast: y. C. Lymph node: z.", ["A", "B", "C"]),
        ("1/A. Breast: x\n2/B. Breast: y", ["A", "B"]),
        ("A) & B) BREAST, LEFT AND RIGHT: X\nC) NODE: Y", ["AB", "C"]),
        ("A= Left breast: x\nB= Right breast: y", ["A", "B"]),
        ("SPECIMEN ONE: LEFT BREAST\nX\nSPECIMEN TWO: RIGHT BREAST\nY", ["1", "2"]),
        ("Jar A: Left breast: x\nJar B: Right breast: y", ["A", "B"]),
        ("S24-100 A. Left breast: x\nS24-100 B. Right breast: y", ["A", "B"]),
        ("i. Left breast: x\nii. Right breast: y", ["I", "II"]),
        ("9. BREAST, DEEP MARGIN: X\n10. BREAST, LATERAL MARGIN: Y", ["9", "10"]),
        ("1   RIGHT BREAST, LUMPECTOMY\n    X\n2   RIGHT BREAST, MARGIN\n    Y", ["1", "2"]),
        ("A\nLeft breast, core biopsy:\nX\n\nB\nRight breast, core biopsy:\nY", ["A", "B"]),
        ("Left breast, 2:00, core (A) - x\nLeft breast, 4:00, core (B) - y", ["A", "B"]),
        ("<A> Left breast: x\n<B> Right breast: y", ["A", "B"]),
        ("#1 Left breast: x\n#2 Right breast: y", ["1", "2"]),
        ("A, BREAST, LEFT: X\nB, BREAST, RIGHT: Y", ["A", "B"]),
        ("A, B AND\nC. BREAST, LEFT: X\nD. BREAST, RIGHT: Y", ["ABC", "D"]),
        ("To 1: Left breast: x\nTo 2: Right breast: y", ["1", "2"]),
        ("No. 1: Left breast: x\nNo. 2: Right breast: y", ["1", "2"]),
        ("Specimen 1 (left breast) shows x, and specimen 2 (right breast) shows y.", ["1", "2"]),
        ("A: Cyst. B: Scar.", ["A", "B"]),
        ("Left breast, 1:00 (A) and right breast, 2:00 (B), cores:\nX", ["AB"]),
    ],
)
def test_every_header_style_is_read(text: str, found: list[str], engine: Compiled) -> None:
    assert parts(text, engine) == found


@pytest.mark.parametrize(
    "text",
    [
        "LEFT BREAST, LUMPECTOMY:\n1. INVASIVE CARCINOMA\n2. MARGINS FREE\n3. LYMPH NODES NEGATIVE",
        "LEFT BREAST, LUMPECTOMY:\nA. INVASIVE CARCINOMA\nB. DCIS",
        "DR. SMITH WAS NOTIFIED.\nER: negative\nPR: negative",
        "2:00 position of the left breast",
        "TO 3 CM FROM THE LEFT NIPPLE",
        "CARCINOMA IN SITU. A: Cyst. B: Scar.",
        "L BREAST STEREO BX: DCIS",
        "TISSUE(S): LEFT BREAST CORE",
        "LEFT BREAST, SENTINEL NODES:\n TWO NODES NEGATIVE (0/2)",
    ],
)
def test_findings_and_abbreviations_are_no_parts(text: str, engine: Compiled) -> None:
    assert parts(text, engine) == []


def test_numbers_under_letters_are_findings(engine: Compiled) -> None:
    assert parts("A. LEFT BREAST:\n  1. CARCINOMA\n  2. BREAST CYST\nB. NODE:\n  1. NEGATIVE", engine) == ["A", "B"]


def test_known_parts_need_no_title(engine: Compiled) -> None:
    assert parts("B. Quuxoid.\nD. Fooid.", engine) == []
    assert parts("B. Quuxoid.\nD. Fooid.", engine, ("B", "D")) == ["B", "D"]


def test_ranges_and_lists_are_expanded() -> None:
    assert expand_ids("A-C") == ("A", "B", "C")
    assert expand_ids("1-3") == ("1", "2", "3")
    assert expand_ids("A, B and D") == ("A", "B", "D")
    assert expand_ids("A/1") == ("A",)
    assert expand_ids("Y-AB") == ("Y", "Z", "AA", "AB")
    assert [roman_ordinal(text) for text in ("I", "IV", "IX", "B")] == [1, 4, 9, 0]


@pytest.mark.parametrize(
    ("line", "role"),
    [
        ("FINAL DIAGNOSIS:", "final"),
        ("FINAL, DIAGNOSIS:", "final"),
        ("Microscopic Exam/Diagnosis:", "final"),
        ("AMENDED FINAL DIAGNOSIS (10/02/2023):", "amended"),
        ("ADDENDUM DIAGNOSIS:", "addendum_diagnosis"),
        ("ADDENDUM (09/14/2023):", "addendum"),
        ("PREVIOUS DIAGNOSIS (09/20/2023):", "previous"),
        ("FROZEN SECTION DIAGNOSIS:", "frozen"),
        ("PRELIMINARY DIAGNOSIS:", "preliminary"),
        ("Pre-operative Diagnosis:", "history"),
        ("CLINICAL HISTORY:", "history"),
        ("GROSS DESCRIPTION", "gross"),
        ("SYNOPTIC REPORT (CAP Breast Invasive 4.9.0.1)", "synoptic"),
        ("SPECIMEN(S):", "specimens"),
        ("SNOMED:", "codes"),
        ("CURRENT DIAGNOSIS (S10-00214):", "final"),
        ("Microscopy and diagnosis:", "final"),
        ("VERSION 1 (superseded) DIAGNOSIS:", "previous"),
        ("PRIOR (INCORRECT) DIAGNOSIS:", "previous"),
        ("PREVIOUS CASES ON THIS PATIENT:", "previous"),
        ("PRELIMINARY REPORT", "banner_preliminary"),
        ("BREAST INVASIVE CARCINOMA TEMPLATE (applies to A)", "synoptic"),
        ("Clinical correlation:", "history"),
        ("IMP:", "final"),
        ("Assessment:", "final"),
        ("M/E:", "microscopic"),
        ("F I N A L  D I A G N O S I S:", "final"),
        ("G R O S S D E S C R I P T I O N", "gross"),
        ("DX - left breast, core: cyst", "final"),
        ("CONCLUSION Fibrocystic change", "final"),
    ],
)
def test_headings_have_roles(line: str, role: str, engine: Compiled) -> None:
    assert [heading.role for heading in find_headings(f"{line}\nx", engine)] == [role]


@pytest.mark.parametrize(
    "line",
    [
        "CONCLUSION OF THE STUDY",
        "Clinical assessments vary",
        "Left breast, core biopsy:",
        "A. DIAGNOSIS OF CARCINOMA WAS MADE",
        "the diagnosis is benign",
    ],
)
def test_other_lines_are_no_headings(line: str, engine: Compiled) -> None:
    assert find_headings(f"{line}\nx", engine) == []


def test_a_heading_may_stand_within_a_line(engine: Compiled) -> None:
    text = "Clinical history: Palpable mass. Gross: Two cores. Diagnosis: Left breast, core: Fibroadenoma."
    assert [heading.role for heading in find_headings(text, engine)] == ["history", "gross", "final"]
    prose = "Breast, left, biopsy. Microscopic: cysts. Carcinoma - none."  # no diagnosis heading: the prose is the diagnosis
    assert find_headings(prose, engine) == []


def test_titles_without_identifiers_are_found(engine: Compiled) -> None:
    text = "Left breast, core biopsy: Fibroadenoma.\nRight breast, core biopsy: Carcinoma. Margins are clear: yes."
    assert [text[start:body] for start, body in find_titles(text, view(text), 0, len(text), engine)] == [
        "Left breast, core biopsy:",
        "Right breast, core biopsy:",
    ]


def test_section_names_of_an_lis_have_roles(engine: Compiled) -> None:
    names = (
        "$final",
        "Final Diagnosis",
        "gross",
        "history",
        "microscopic",
        "comment",
        "addendum",
        "frozen",
        "specimen",
    )
    roles = ("final", "final", "gross", "history", "microscopic", "comment", "addendum", "frozen", "specimens")
    assert tuple(section_role(name, engine) for name in names) == roles
    assert section_role("billing_xyz", engine) is None
