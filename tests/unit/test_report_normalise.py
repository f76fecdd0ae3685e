"""Report text made clean: encodings, RTF, HL7 escapes, page headers, hyphen breaks, spelling."""

import pytest

from ingest.report.normalise import Spelling, UnreadableReport, decode, normalise, view
from ingest.rulefile import compiled, load_rules

SPELLING = Spelling(
    known=frozenset({"carcinoma", "carcinoid", "lobules", "breast"}),
    repair=frozenset({"carcinoma", "invasive", "negative", "malignancy", "fibroadenoma"}),
    never=frozenset({"carcinoid"}),
)


@pytest.fixture(scope="module")
def spelling() -> Spelling:
    engine = compiled(load_rules("breast"))
    return Spelling(
        engine.known_words,
        engine.typo_words,
        engine.typo_never,
        engine.abbreviation,
        engine.written_out,
    )


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (r"A.\.br\B \T\ C \S\ D \R\ E \F\ F \E\ G", "A.\nB & C ^ D ~ E | F \\ G"),
        (r"\H\BOLD\N\ x\X0D\\X0A\y", "BOLD x\ny"),
    ],
)
def test_hl7_escapes_become_characters(raw: str, clean: str) -> None:
    assert normalise(raw, "hl7_ft").text == clean


def test_cp1252_read_as_latin1_is_mended() -> None:
    text = normalise("LESION \x93X\x94 \x96 PATIENT\x92S").text
    assert text == 'LESION "X" - PATIENT\'S'


def test_utf8_is_strict_and_the_declared_encoding_is_second() -> None:
    assert decode("caf\u00e9".encode()) == "caf\u00e9"
    assert decode("caf\u00e9".encode("cp1252"), "cp1252") == "caf\u00e9"
    with pytest.raises(UnreadableReport, match="encoding") as caught:
        decode(b"caf\xe9")
    assert caught.value.reason == "undecodable"


def test_page_header_goes_and_the_sentence_closes_over_it() -> None:
    raw = (
        "NEGATIVE FOR\n\nS23-90001      SURGICAL PATHOLOGY      Page 1 of 2\n"
        "PATIENT: ZZTEST, PATIENT   MRN: 00000000\n------------\n   CARCINOMA.\nB. NEXT"
    )
    normal = normalise(raw)
    assert normal.text == "NEGATIVE FOR CARCINOMA.\nB. NEXT"
    assert "page_header" in normal.flags


def test_columns_become_answers_from_four_lines_on() -> None:
    rows = [
        "Histologic type      Ductal",
        "DCIS                 Absent",
        "LVI                  Absent",
        "pT                   pT1",
    ]
    rows = [row[:21].ljust(21) + row[21:] for row in rows]
    assert normalise("\n".join(rows[:3])).text == "\n".join(rows[:3])
    assert normalise("\n".join(rows)).text.split("\n")[1] == "DCIS: Absent"


def test_only_checked_boxes_speak() -> None:
    assert normalise("DCIS   [ ] present  [X] absent").text == "DCIS: absent"
    assert normalise("LEFT (A) AND RIGHT (B)").text == "LEFT (A) AND RIGHT (B)"


def test_digits_read_for_letters_are_mended_only_into_known_words() -> None:
    assert normalise("8REAST CARClN0MA", "text", SPELLING).text == "BREAST CARCINOMA"
    assert normalise("BLOCK A1B0 pT1a N0", "text", SPELLING).text == "BLOCK A1B0 pT1a N0"


def test_abbreviations_are_written_out_before_the_word_they_describe(spelling: Spelling) -> None:
    assert (
        normalise("INV. DUCTAL CA, NO EVID OF MALIG.", "text", spelling).text
        == "INVASIVE DUCTAL CA, NO EVIDENCE OF MALIGNANCY."
    )
    assert normalise("THE FINDINGS ARE THOSE OF AN INV", "text", spelling).text.endswith("AN INV")


def test_hyphen_break_is_joined_only_into_a_known_word() -> None:
    assert normalise("CARCI-\nNOMA", "text", SPELLING).text == "CARCINOMA"
    assert normalise("well-\n  differentiated", "text", SPELLING).text == "well-differentiated"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("INVASVIE CARCINMOA", "INVASIVE CARCINOMA"),
        ("Negatve for malignacy", "Negative for malignancy"),
        ("carcinoid of lobules", "carcinoid of lobules"),  # one letter from a key word, and another disease
    ],
)
def test_key_words_are_repaired_and_other_diseases_are_not(wrong: str, right: str) -> None:
    assert normalise(wrong, "text", SPELLING).text == right


def test_rtf_table_rows_become_key_and_value() -> None:
    raw = r"{\rtf1\ansi A. BREAST:\par \trowd\cellx1\cellx2\intbl DCIS\cell Present\cell\row\pard\par}"
    assert "DCIS: Present" in normalise(raw, "rtf").text


def test_dotted_leaders_become_a_colon() -> None:
    assert normalise("Histologic type ........ Ductal").text == "Histologic type: Ductal"


@pytest.mark.parametrize("length", [255, 4000, 8000, 32767])
def test_text_of_a_column_width_is_marked_as_cut(length: int) -> None:
    assert "text_truncated" in normalise("x" * length).flags
    assert "text_truncated" not in normalise("x" * (length - 1)).flags


@pytest.mark.parametrize("text", ["In-Situ\nA_B \u00c9t\u00e9", 'ASCII-only "Text"\t\n'])
def test_view_keeps_every_offset(text: str) -> None:
    assert len(view(text)) == len(text)
    assert view("In-Situ") == "in situ"


def test_lost_characters_make_a_report_unreadable() -> None:
    with pytest.raises(UnreadableReport) as caught:
        normalise("\ufffd" * 30 + "abc")
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ("A | Left breast | Cyst\nB | Right breast | Papilloma", "A. Left breast: Cyst\nB. Right breast: Papilloma"),
        ("Part | Diagnosis | Site\nB | Cyst | Skin\nD | Scar | Node", "B. Skin: Cyst\nD. Node: Scar"),
        ("Dx: 1 | Breast | Cyst\n2 | Node | Clear", "Dx:\n1. Breast: Cyst\n2. Node: Clear"),
        ("1 | Breast | Cyst\n2 | Node | Clear | (0/1)", "1. Breast: Cyst\n2. Node: Clear. (0/1)"),
        ("ID | 1 | 2\nSite | Breast | Node\nResult | Cyst | Clear", "1. Breast: Cyst\n2. Node: Clear"),
    ],
)
def test_a_table_of_parts_becomes_a_line_for_each(table: str, lines: str) -> None:
    assert normalise(table).text == lines


@pytest.mark.parametrize(
    "table",
    ["ER | 90 %\nPR | 10 %", "T | 2\nN | 0\nM | X", "A | cyst", "Marker | Result\nER | positive\nPR | negative"],
)
def test_other_tables_stay(table: str) -> None:
    assert normalise(table).text == table


def test_a_tilde_is_a_new_line_in_hl7_text_and_about_elsewhere() -> None:
    assert normalise("X:~A. Cyst, ~3 mm~2. Scar", "hl7_ft").text == "X:\nA. Cyst, ~3 mm\n2. Scar"
    assert normalise("Cyst~scar").text == "Cyst~scar"


def test_no_is_mended_beside_other_misread_words_and_never_in_a_stage(spelling: Spelling) -> None:
    assert normalise("N0 CARCINOMA. CARCIN0MA.", spelling=spelling).text == "NO CARCINOMA. CARCINOMA."
    assert normalise("N0 CARCINOMA.", spelling=spelling).text == "N0 CARCINOMA."
    assert normalise("pT1 N0 BREAST CARCIN0MA.", spelling=spelling).text == "pT1 N0 BREAST CARCINOMA."
