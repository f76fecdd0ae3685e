"""An HL7 v2 ORU^R01 message as report versions: LOINC of OBX-3 gives the section, OBX-4 the part, OBX-11 the status."""

import re
from collections.abc import Sequence

from ingest.case import ReportVersion
from ingest.report.normalise import UnreadableReport

SECTIONS = {  # LOINC -> section name
    "22637-3": "final diagnosis", "33746-9": "final diagnosis", "34574-4": "final diagnosis", "60571-7": "final diagnosis",
    "22634-0": "gross description", "22635-7": "microscopic description", "22636-5": "clinical history",
    "22633-2": "nature of specimen", "22638-1": "comment", "60570-9": "comment", "22639-9": "addendum",
    "35265-8": "addendum", "60568-3": "synoptic report",
}  # fmt: skip
_SECTION_WORDS = {  # in the name of a local code, first match
    "diagnosis": "final diagnosis", "gross": "gross description", "micro": "microscopic description",
    "history": "clinical history", "comment": "comment", "addend": "addendum", "synoptic": "synoptic report",
    "site of origin": "nature of specimen", "specimen": "nature of specimen",
}  # fmt: skip


def report_versions(message: str) -> tuple[ReportVersion, ...]:
    """The versions in one message. Values of one section and part are joined in order; sub-ids that only count lines of one
    text (1, 2, 3 ... beside a text with its own headings) are not parts.

    Raises:
        UnreadableReport: no MSH segment, or an embedded document instead of text.
    """
    segments = [segment for segment in re.split(r"[\r\n]+", message.strip("\x0b\x1c\r\n ")) if segment]
    if not segments or not segments[0].startswith("MSH") or len(segments[0]) < 9:
        raise UnreadableReport("hl7_unreadable", "HL7 message: does not begin with MSH; give ORU^R01 messages")
    field, component, repetition = segments[0][3], segments[0][4], segments[0][5]
    rows: list[tuple[str | None, str | None, str, str]] = []  # section, part, status, text
    report_status = ""
    num_documents = 0
    for segment in segments[1:]:
        fields = segment.split(field)
        if fields[0] == "OBR":
            report_status = fields[25] if len(fields) > 25 else ""
        if fields[0] != "OBX" or len(fields) < 6:
            continue
        if fields[2] in ("ED", "RP"):
            num_documents += 1
            continue
        section = _section(fields[3], component)
        part = fields[4].strip() or None
        status = fields[11] if len(fields) > 11 and fields[11] else report_status
        rows.append((section, part, status, fields[5].replace(repetition, "\n")))
    if not rows:
        reason = "embedded_document" if num_documents else "no_text"
        raise UnreadableReport(reason, "HL7 message: holds no report text")
    return tuple(_versions(rows))


def _section(identifier: str, component: str) -> str:
    pieces = identifier.split(component)
    if pieces[0] in SECTIONS:
        return SECTIONS[pieces[0]]
    name = pieces[1].lower() if len(pieces) > 1 else ""
    return next((section for word, section in _SECTION_WORDS.items() if word in name), name or "unknown")


def _versions(rows: Sequence[tuple[str | None, str | None, str, str]]) -> list[ReportVersion]:
    grouped: dict[tuple[str | None, str | None, str], list[str]] = {}
    counting = _sections_with_line_numbers(rows)
    for section, part, status, text in rows:
        key = (section, None if section in counting else part, status)
        grouped.setdefault(key, []).append(text)
    has_parts = any(part is not None and section == "final diagnosis" for section, part, _ in grouped)
    versions = []
    for (section, part, status), texts in grouped.items():
        if has_parts and part is None and section == "final diagnosis":
            continue  # a summary of the case beside diagnoses by part must not reach the parts
        kind = (
            "preliminary"
            if status == "P"
            else "corrected"
            if status == "C"
            else "addendum"
            if section == "addendum"
            else "final"
        )
        versions.append(
            ReportVersion(text="\n".join(texts), format="hl7_ft", kind=kind, status=status, section=section, part=part)  # type: ignore[arg-type]
        )
    return versions


def _sections_with_line_numbers(rows: Sequence[tuple[str | None, str | None, str, str]]) -> set[str | None]:
    """Sections whose sub-ids are line numbers: 1, 2, 3 ... where the text itself carries part headers or breaks off."""
    result: set[str | None] = set()
    for section in {row[0] for row in rows}:
        mine = [row for row in rows if row[0] == section]
        ids = [row[1] for row in mine]
        if len(mine) < 2 or ids != [str(number) for number in range(1, len(mine) + 1)]:
            continue
        headed = [bool(re.match(r"\s*[A-Z]{1,2}[.):]\s", text)) for _, _, _, text in mine]
        own_number = [bool(re.match(rf"\s*{number}[.)]\s", row[3])) for number, row in enumerate(mine, 1)]
        if any(headed) and not all(own_number):
            result.add(section)
    return result
