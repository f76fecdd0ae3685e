"""Labels of cases: many report styles, the order of evidence, conflicts, policy, and that nothing defaults to benign."""

import io
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ingest.case import BlockLabel, CodeValue, LisPart, PartLabel, ReportVersion, SynopticAnswer
from ingest.explain import explain_report
from ingest.label import ENGINE_FAULT, label_case
from ingest.label_file import label_file, label_line, label_text
from ingest.policy import Policy
from ingest.report.normalise import normalise
from ingest.rulefile import Rules, load_rules

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data"
INVENTED: list[dict[str, Any]] = tomllib.loads((HERE / "invented_reports.toml").read_text())["report"]
CANCER = "FINAL DIAGNOSIS:\nA. BREAST, LEFT, CORE BIOPSY: INVASIVE DUCTAL CARCINOMA."
BENIGN = "FINAL DIAGNOSIS:\nA. BREAST, LEFT, CORE BIOPSY: FIBROADENOMA."


@pytest.fixture(scope="module")
def rules() -> Rules:
    return load_rules("breast")


def labels(text: str, rules: Rules, **more: Any) -> dict[str, str]:
    return {part.part: part.label for part in label_case([ReportVersion(text=text)], rules=rules, **more).parts}


def only(text: str, rules: Rules) -> PartLabel:
    (part,) = label_case([ReportVersion(text=text)], rules=rules).parts
    return part


@pytest.mark.parametrize("report", INVENTED, ids=[report["id"] for report in INVENTED])
def test_invented_report(report: dict[str, Any], rules: Rules) -> None:
    text = report["text"].lstrip("\n")
    found = {part.part: part.label for part in label_text(text, report.get("format", "text"), rules).parts}
    if report.get("abstain"):
        assert set(found.values()) <= {"not_assessable", "indeterminate"}
    else:
        assert found == report["expect"]


def test_torn_and_shuffled_reports_never_reach_a_fault_of_the_engine(rules: Rules) -> None:
    generator = random.Random(0)
    texts = [report["text"] for report in INVENTED]
    for _ in range(600):
        lines = (generator.choice(texts) + generator.choice(texts)).split("\n")
        if generator.random() < 0.5:
            generator.shuffle(lines)
        text = "\n".join(lines)
        text = text[generator.randrange(len(text)) :][: generator.randrange(1, 2000)]
        assert ENGINE_FAULT not in label_case([ReportVersion(text=text)], rules=rules).quarantine, text


def test_a_fault_of_the_engine_is_a_counted_case_and_shows_no_text(
    rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("ZZTEST, PATIENT")

    monkeypatch.setattr("ingest.label._label_case", fail)
    result = label_case([ReportVersion(text=CANCER)], [LisPart(part="A"), LisPart(part="B")], rules=rules)
    assert result.quarantine == (ENGINE_FAULT,)
    assert [(part.part, part.label, part.finding) for part in result.parts] == [
        ("A", "not_assessable", ENGINE_FAULT),
        ("B", "not_assessable", ENGINE_FAULT),
    ]
    assert "ZZTEST" not in repr(result)


def test_tricky_reports(rules: Rules) -> None:
    path = DATA / "reports" / "tricky_breast_reports.jsonl"
    if not path.exists():
        pytest.skip("the tricky reports are not in ../shared/data/reports")
    num_parts = num_exact = num_spurious = 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        expected = {part["part"]: part["label"] for part in row["parts"]}
        found = {answer["part"]: answer["label"] for answer in label_line(line, rules)}
        num_parts += len(expected)
        num_exact += sum(found.get(part) == label for part, label in expected.items())
        num_spurious += len(set(found) - set(expected))
        wrong = {(expected.get(part), label) for part, label in found.items()}
        assert not wrong & {("cancer", "benign"), ("benign", "cancer")}, row["id"]
    assert num_exact / num_parts >= 0.97
    assert num_spurious == 0


def test_public_hl7_example(rules: Rules) -> None:
    path = DATA / "hl7" / "breast_3part_oru_r01.hl7"
    if not path.exists():
        pytest.skip("the HL7 example is not in ../shared/data/hl7")
    found = {part.part: part.label for part in label_text(path.read_text(), "hl7_oru", rules).parts}
    assert found == {"1": "cancer", "2": "benign", "3": "cancer"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "A. BREAST, LEFT, CORE BIOPSY:",
        "GROSS: a benign cyst",
        "Fibroadenoma",
        "QUUX " * 40,
        "FINAL DIAGNOSIS:\nA. BREAST: SEE NOTE.",
    ],
)
def test_nothing_said_is_never_benign(text: str, rules: Rules) -> None:
    assert set(labels(text, rules).values()) == {"not_assessable"}


def test_an_unknown_malignant_word_stops_benign(rules: Rules) -> None:
    part = only("A. BREAST, CORE BIOPSY: FIBROADENOMA AND FIBROQUUXOSARCOMATOSIS.", rules)
    assert (part.label, part.flags) == ("indeterminate", ("unrecognised_term",))


def test_evidence_points_at_the_words_of_the_normalised_text(rules: Rules) -> None:
    text = "FINAL DIAGNOSIS:\nA. BREAST, LEFT, CORE BIOPSY:\n- INVASIVE DUCTAL CARCINOMA. NO DCIS."
    part = only(text, rules)
    words = {item.rule_id: (normalise(text).text[item.start : item.end], item.context) for item in part.evidence}
    assert words == {"breast.idc": ("INVASIVE DUCTAL CARCINOMA", "affirmed"), "breast.dcis": ("DCIS", "negated")}
    assert (part.site, part.laterality, part.procedure) == ("breast", "left", "core_biopsy")
    assert (part.rule_id, part.evidence_source, part.version_kind) == ("breast.idc", "final", "final")


def test_no_output_carries_words_that_no_lexicon_has(rules: Rules) -> None:
    text = "FINAL DIAGNOSIS:\nA. BREAST, LEFT: ZZNAME SARCOMATOIDZZ. NEGATIVE (ZZSECRET). MRS ZZNAME."
    assert "zz" not in repr(label_case([ReportVersion(text=text)], rules=rules)).lower()


# The order of evidence


def test_amended_beats_addendum_and_addendum_beats_final(rules: Rules) -> None:
    final = ReportVersion(text=CANCER, version=0)
    addendum = ReportVersion(text=BENIGN, kind="addendum", version=1)
    amended = ReportVersion(text=CANCER.replace("INVASIVE DUCTAL CARCINOMA", "DCIS"), kind="amended", version=2)
    (part,) = label_case([final, addendum], rules=rules).parts
    assert (part.label, part.evidence_source) == ("benign", "addendum")
    (part,) = label_case([final, addendum, amended], rules=rules).parts
    assert (part.label, part.evidence_source) == ("in_situ", "amended")


@pytest.mark.parametrize("status", ["D", "X"])
def test_a_deleted_version_is_not_read(status: str, rules: Rules) -> None:
    versions = [ReportVersion(text=CANCER, status=status), ReportVersion(text=BENIGN, status="C", kind="corrected")]
    assert [part.label for part in label_case(versions, rules=rules).parts] == ["benign"]


def test_preliminary_alone_is_not_assessable(rules: Rules) -> None:
    case = label_case([ReportVersion(text=CANCER, kind="preliminary")], rules=rules)
    assert [(part.label, part.finding) for part in case.parts] == [("not_assessable", "preliminary")]
    assert "preliminary_only" in case.quarantine


def test_sections_and_parts_given_by_the_lis_are_used(rules: Rules) -> None:
    rows = [
        ReportVersion(text="Firm mass suspicious for carcinoma.", section="gross", part="1"),
        ReportVersion(text="1. Breast, left: Fibroadenoma.", section="final", part="1"),
        ReportVersion(text="Breast, right: DCIS.", section="final", part="2"),
        ReportVersion(text="Carcinoma of breast.", section="final"),  # a summary of the case, about no part
    ]
    parts = [LisPart(part="1"), LisPart(part="2"), LisPart(part="3")]
    found = {part.part: part.label for part in label_case(rows, parts, rules=rules).parts}
    assert found == {"1": "benign", "2": "in_situ", "3": "not_assessable"}


def test_the_lis_part_list_is_the_authority(rules: Rules) -> None:
    text = "FINAL DIAGNOSIS:\n1. BREAST, LEFT: FIBROADENOMA.\n2. BREAST, RIGHT: INVASIVE DUCTAL CARCINOMA."
    assert labels(text, rules, parts=[LisPart(part="A"), LisPart(part="B")]) == {"A": "benign", "B": "cancer"}
    case = label_case(
        [ReportVersion(text=text)], [LisPart(part="A"), LisPart(part="B"), LisPart(part="C")], rules=rules
    )
    assert {part.label for part in case.parts} == {"not_assessable"}
    assert "part_mismatch" in case.quarantine


def test_codes_speak_when_text_does_not_and_conflict_when_it_does(rules: Rules) -> None:
    code = CodeValue(system="icdo", code="8500/3")
    silent = "DIAGNOSIS:\nA. BREAST, LEFT, CORE BIOPSY: SEE CODES."
    (part,) = label_case([ReportVersion(text=silent)], rules=rules, codes=[code]).parts
    assert (part.label, part.finding, part.evidence_source) == ("cancer", "idc", "code")
    case = label_case([ReportVersion(text=BENIGN)], rules=rules, codes=[code])
    assert [part.label for part in case.parts] == ["indeterminate"]
    (conflict,) = case.conflicts
    assert {conflict.label_a, conflict.label_b} == {"benign", "cancer"}


def test_discrete_answers_are_evidence(rules: Rules) -> None:
    text = "DIAGNOSIS:\nA. BREAST, LEFT, LUMPECTOMY: SEE TEMPLATE."
    answers = [
        SynopticAnswer(question="Histologic Type", answer="No residual invasive carcinoma"),
        SynopticAnswer(question="DCIS", answer="Present"),
        SynopticAnswer(question="Margins", answer="Positive for carcinoma"),
    ]
    (part,) = label_case([ReportVersion(text=text)], rules=rules, synoptic=answers).parts
    assert (part.label, part.evidence_source) == ("in_situ", "discrete")


def test_history_codes_are_ignored(rules: Rules) -> None:
    case = label_case([ReportVersion(text=BENIGN)], rules=rules, codes=[CodeValue(system="icd10", code="Z85.3")])
    assert [part.label for part in case.parts] == ["benign"]


def test_block_statements_are_kept_apart(rules: Rules) -> None:
    text = "FINAL DIAGNOSIS:\nA. BREAST, MASTECTOMY: IDC (BLOCKS A5, A6). REMAINING BLOCKS A1-A3: NO CARCINOMA."
    part = only(text, rules)
    assert part.label == "cancer"
    assert {block.block: block.label for block in part.blocks} == {
        "A1": "benign", "A2": "benign", "A3": "benign", "A5": "cancer", "A6": "cancer",
    }  # fmt: skip
    assert all(isinstance(block, BlockLabel) for block in part.blocks)


# Targets


def target(text: str, task: str, rules: Rules) -> tuple[str, str, float | None]:
    (value,) = [value for value in only(text, rules).targets if value.task == task]
    return value.value, value.status, value.y


@pytest.mark.parametrize(
    ("words", "task", "expected"),
    [
        ("ER POSITIVE (95%), PR NEGATIVE (0%), HER2 NEGATIVE (1+).", "er", ("positive", "stated", 1)),
        ("ER POSITIVE (95%), PR NEGATIVE (0%), HER2 NEGATIVE (1+).", "pr", ("negative", "stated", 0)),
        ("ER POSITIVE (95%), PR NEGATIVE (0%), HER2 NEGATIVE (1+).", "her2", ("negative", "stated", 0)),
        ("HER2: EQUIVOCAL (2+).", "her2", ("equivocal", "equivocal", None)),
        ("ESTROGEN RECEPTOR: 5%.", "er", ("low_positive", "stated", 1)),
        ("HER2 NOT PERFORMED.", "her2", ("", "not_reported", None)),
        ("NO SPECIAL STAINS.", "er", ("", "not_reported", None)),
    ],
)
def test_receptors(words: str, task: str, expected: tuple[str, str, float | None], rules: Rules) -> None:
    assert target(f"{CANCER}\n{words}", task, rules) == expected


def test_receptors_without_a_part_name_belong_to_no_part_of_several(rules: Rules) -> None:
    text = f"{CANCER}\nB. BREAST, RIGHT, CORE BIOPSY: INVASIVE LOBULAR CARCINOMA.\nADDENDUM:\nER: positive."
    case = label_case([ReportVersion(text=text)], rules=rules)
    assert {value.status for part in case.parts for value in part.targets} == {"not_reported"}
    named = label_case([ReportVersion(text=text.replace("ER:", "Block B2: ER:"))], rules=rules)
    assert [[v.value for v in part.targets if v.task == "er"] for part in named.parts] == [[""], ["positive"]]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("EGFR: p.L858R mutation detected.", "mutated"),
        ("EGFR mutation: Not detected.", "wild_type"),
        ("No EGFR mutation was identified. KRAS G12C was detected.", "wild_type"),
        ("KRAS mutation detected.", ""),
        ("EGFR testing failed.", "inconclusive"),
    ],
)
def test_egfr_of_a_lung_biopsy(words: str, value: str) -> None:
    part = only(
        f"FINAL DIAGNOSIS:\nA. LUNG, LEFT, BIOPSY: ADENOCARCINOMA.\nMOLECULAR RESULTS:\n{words}",
        load_rules("lung_egfr"),
    )
    assert [target.value for target in part.targets] == [value]
    assert (part.label, part.site) == ("cancer", "lung")


# Policy


@pytest.mark.parametrize(
    ("label", "finding", "atypia", "expected"),
    [
        ("cancer", "idc", False, (1, "")),
        ("in_situ", "dcis", False, (1, "")),
        ("in_situ", "lcis_classic", False, (None, "policy_lcis_classic")),
        ("benign", "adh", True, (0, "")),
        ("indeterminate", "suspicious", False, (None, "label_indeterminate")),
        ("not_assessable", "missing", False, (None, "label_not_assessable")),
    ],
)
def test_policy_defaults(label: Any, finding: str, atypia: bool, expected: tuple[int | None, str]) -> None:
    assert Policy().y(label, finding, atypia) == expected


def test_policy_changes_y_without_the_report() -> None:
    assert Policy(in_situ="negative").y("in_situ", "dcis") == (0, "")
    assert Policy(in_situ="exclude").y("in_situ", "dcis") == (None, "label_in_situ")
    assert Policy(atypia="exclude").y("benign", "adh", atypia=True) == (None, "policy_atypia")
    assert Policy(finding={"idc": "exclude"}).y("cancer", "idc") == (None, "policy_idc")


# Files


def test_label_file_is_the_same_for_one_and_two_workers(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    lines = [json.dumps({"id": n, "report_text": CANCER if n % 3 else BENIGN, "format": "text"}) for n in range(450)]
    path.write_text(
        "\n".join([*lines, "not json", json.dumps({"id": "x", "report_text": "MSH|", "format": "hl7_oru"})])
    )
    outputs = []
    for num_workers in (1, 2):
        out = io.StringIO()
        assert label_file(path, "breast", out, num_workers) == 452
        outputs.append(out.getvalue())
    assert outputs[0] == outputs[1]
    rows = [json.loads(line) for line in outputs[0].splitlines()]
    assert rows[0] == {
        "id": 0,
        "part": "A",
        "label": "benign",
        "finding": "fibroadenoma",
        "rule_id": "breast.fibroadenoma",
    }
    assert [row["finding"] for row in rows[-2:]] == ["bad_line", "hl7_unreadable"]


def test_explain_shows_words_only_when_asked(tmp_path: Path, rules: Rules) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text(json.dumps({"id": "r1", "report_text": CANCER.replace("INVASIVE", "ZZLEFT INVASIVE")}))
    assert "affirmed     'invasive ductal carcinoma' [breast.idc]" in explain_report(path, "r1", rules)
    assert "ZZLEFT" not in explain_report(path, "r1", rules)
    assert "ZZLEFT >>INVASIVE DUCTAL CARCINOMA<<" in explain_report(path, "r1", rules, show_text=True)
