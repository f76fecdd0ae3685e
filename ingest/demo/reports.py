"""Report texts of the demo hospital, in the styles that pathologists use and that mislead keyword searches.

Every text is a function of the planned case. Positive parts mention what is absent ("no evidence of malignancy at the
margins"), benign ones mention cancer (history, indication, frozen section, negations); some diagnoses are overturned by
an addendum or an amended report; some texts are wrapped at 80 columns with a page header in the middle of a sentence.
"""

import random
import textwrap
from dataclasses import dataclass

from ingest.demo.hospital import NODE_FINDINGS, Case, Finding, Part, Patient

COLUMNS = 80
CUT_LENGTHS = (255, 256)  # a text of a database's field length reads as cut off; none is here, so none may look it

_LINES: dict[Finding, tuple[tuple[str, ...], ...]] = {
    "idc": (
        (
            "Invasive ductal carcinoma, Nottingham grade 2, 1.4 cm.",
            "A separate fragment of fibrous tissue shows no evidence of malignancy.",
        ),
        ("Infiltrating carcinoma, no special type (ductal), grade 3.", "Negative for lymphovascular invasion."),
        ("No ductal carcinoma in situ identified; invasive ductal carcinoma, grade 2, is present in all cores.",),
        ("Invasive mammary carcinoma, ductal type.", "Lymphovascular spaces: negative for carcinoma."),
    ),
    "ilc": (
        ("Invasive lobular carcinoma, classic type, grade 2.", "A separate fragment of fat is free of tumor."),
        ("Infiltrating lobular carcinoma.", "No lymphovascular invasion is identified."),
    ),
    "dcis": (
        ("Ductal carcinoma in situ, high grade, with central necrosis.", "No evidence of invasive carcinoma."),
        ("Ductal carcinoma in situ, solid type, nuclear grade 3.", "Negative for invasion."),
    ),
    "node_metastasis": (
        ("Metastatic carcinoma in one of two lymph nodes (1/2).", "No extranodal extension is identified."),
        ("One of three lymph nodes positive for metastatic carcinoma (1/3).",),
    ),
    "normal": (
        ("Unremarkable breast tissue.", "No evidence of malignancy."),
        ("Benign breast parenchyma and adipose tissue, no atypia and no carcinoma seen.",),
    ),
    "fibrocystic": (
        ("Fibrocystic changes with apocrine metaplasia.", "Negative for atypia, in situ or invasive carcinoma."),
        ("Cysts and stromal fibrosis.", "Malignancy is not identified."),
    ),
    "fibroadenoma": (
        ("Fibroadenoma.", "Negative for malignancy."),
        ("Fibroadenoma, 1.1 cm, without atypia.",),
    ),
    "adenosis": (
        ("Sclerosing adenosis with microcalcifications.", "No in situ or invasive carcinoma is seen."),
        ("Sclerosing adenosis.", "Invasive carcinoma: not identified."),
    ),
    "hyperplasia": (
        ("Usual ductal hyperplasia, florid.", "No evidence of atypia or malignancy."),
        ("Florid ductal hyperplasia of usual type, without atypia.", "Carcinoma is absent."),
    ),
    "node_negative": (
        ("Two lymph nodes, negative for metastatic carcinoma (0/2).",),
        ("One lymph node with follicular hyperplasia, no evidence of metastasis (0/1).",),
    ),
    "indeterminate": (("Atypical epithelial proliferation; malignancy cannot be excluded.", "See comment."),),
    "missing": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseText:
    """One row of the text table. `addendum` is 0 for the case itself, otherwise the number of its addendum."""

    text_type: str
    addendum: int
    text: str


def case_texts(case: Case, patient: Patient) -> list[CaseText]:
    """All texts of a case, in the order of the text table."""
    choice = random.Random(case.text_seed)
    lines = {part.number: _lines(part.first_finding or part.finding, choice, case.capitals) for part in case.parts}
    diagnosis = _prose(case.parts[0], lines[1]) if case.prose else _diagnosis(case, lines)
    heading = "PRELIMINARY DIAGNOSIS" if case.turn == "preliminary" else "FINAL DIAGNOSIS"
    final = f"{heading}:\n{diagnosis}"
    if case.frozen_text:
        final = f"INTRAOPERATIVE CONSULTATION:\n{_frozen(case.parts[0])}\n\n{final}"
    if case.wrapped:
        final = _wrapped(final, case, patient)
    if len(final) in CUT_LENGTHS:
        final += "\n\nEnd of diagnosis."
    texts = [
        CaseText(text_type="$clin", addendum=0, text=_history(case)),
        CaseText(text_type="$gross", addendum=0, text=_gross(case)),
        CaseText(text_type="$final", addendum=0, text=final),
    ]
    if any((part.first_finding or part.finding) == "indeterminate" for part in case.parts):
        comment = "COMMENT: The atypical focus is small. Deeper levels and immunostains have been ordered."
        texts.append(CaseText(text_type="$dxcom", addendum=0, text=comment))
    if case.addendum_at is not None:
        texts.append(CaseText(text_type="$procres", addendum=1, text=_addendum(case, choice)))
    return texts


def _diagnosis(case: Case, lines: dict[int, list[str]]) -> str:
    blocks = []
    for part in case.parts:
        if lines[part.number]:
            bullets = "".join(f"\n   - {line}" for line in lines[part.number])
            body = " " + " ".join(lines[part.number]) if case.wrapped else bullets
            blocks.append(_header(case, part) + body)
    return "\n\n".join(blocks)


def _header(case: Case, part: Part) -> str:
    if part.finding in NODE_FINDINGS:
        title = f"Sentinel lymph node, {part.laterality.lower()} axilla, biopsy:"
    else:
        title = f"Breast, {part.laterality.lower()}, {part.procedure.lower()}:"
    title = title.upper() if case.capitals else title
    return {
        "letter_dot": f"{part.designator}. {title}",
        "letter_paren": f"{part.designator}) {title}",
        "part_word": f"PART {part.number}: {title}",
        "specimen_word": f"SPECIMEN {part.designator}: {title}",
    }[case.header_style]


def _lines(finding: Finding, choice: random.Random, capitals: bool) -> list[str]:
    variants = _LINES[finding]
    lines = list(choice.choice(variants)) if variants else []
    return [line.upper() for line in lines] if capitals else lines


def _prose(part: Part, lines: list[str]) -> str:
    """A single part without a header: sentences only."""
    organ = "lymph node" if part.finding in NODE_FINDINGS else "breast"
    side = part.laterality.capitalize()
    body = " ".join(lines)
    return f"{side} {organ}, {part.procedure.lower()}: {body} Adequate for diagnosis."


def _history(case: Case) -> str:
    text = {
        "none": "Abnormal imaging.",
        "cancer_before": "History of invasive ductal carcinoma of the other breast. Rule out recurrence.",
        "family": "Mother had breast cancer at 52. Palpable lump.",
    }[case.history]
    return f"CLINICAL HISTORY: {text}"


def _gross(case: Case) -> str:
    lines = ["GROSS DESCRIPTION:"]
    for part in case.parts:
        lines.append(f'{part.designator}. Received in formalin, labeled "{part.description.lower()}".')
        if part.number == 1 and case.history != "none":
            lines.append("A firm white area is grossly suspicious for carcinoma.")
        lines.append(f"Cassettes {', '.join(block.designator for block in part.blocks)}.")
    return "\n".join(lines)


def _frozen(part: Part) -> str:
    """What the frozen section said, which is not the diagnosis."""
    if part.label == "benign":
        return f"FS{part.designator}: Atypical cells, carcinoma cannot be excluded. Defer to permanent sections."
    return f"FS{part.designator}: No tumor seen on frozen section. Defer to permanent sections."


def _addendum(case: Case, choice: random.Random) -> str:
    part = case.parts[0]
    if case.turn == "adds":
        return (
            "ADDENDUM: Receptors on block " + part.blocks[0].designator + ".\n"
            "Estrogen receptor: positive (90%). Progesterone receptor: negative. HER2: negative (1+)."
        )
    body = "\n".join(f"   - {line}" for line in _lines(part.finding, choice, case.capitals))
    if case.turn == "overturns":
        reason = "Deeper levels and immunostains show loss of the myoepithelial layer."
        return f"ADDENDUM DIAGNOSIS:\n{_header(case, part)}\n{body}\n\nADDENDUM COMMENT: {reason}"
    reason = "Myoepithelial markers are retained in every gland; the diagnosis is changed after review."
    return f"AMENDED DIAGNOSIS:\n{_header(case, part)}\n{body}\n\nREASON FOR AMENDMENT: {reason}"


def _wrapped(text: str, case: Case, patient: Patient) -> str:
    """As a fixed-width printer breaks it, with the header of page 2 wherever the page ends."""
    lines: list[str] = []
    position = 0
    for line in text.split("\n"):
        pieces = textwrap.wrap(line, COLUMNS, subsequent_indent="   ") or [""]
        lines += pieces
        if len(pieces) > 1:
            position = len(lines) - 1  # the last broken sentence is the one that the page splits
    _, number = patient.record_numbers[0]
    page = [
        "",
        f"{case.accession}                    SURGICAL PATHOLOGY REPORT                 Page 1 of 2",
        f"PATIENT: {patient.name.upper()}     MRN: {number}     DOB: {patient.birth_date}",
        "-" * 78,
    ]
    return "\n".join([*lines[:position], *page, *lines[position:]])
