"""Which parts a case has, under which names, and which passages may speak of them.

The LIS part list is the authority when there is one; a text that counts 1, 2, 3 for its A, B, C is matched by order.
"""

import re
from collections.abc import Mapping, Sequence

from ingest.report.parts import ordinal, roman_ordinal
from ingest.report.uncounted import ends_in_category, is_still_to_come
from ingest.report.versions import CaseText, Passage
from ingest.rulefile import Compiled
from ingest.title_end import split_title

DEFAULT_PART = "A"  # of a report whose only part carries no identifier
PROSE_TITLE_CHARACTERS = 80  # of a text without headings, where its specimen must be named
_SIDE = re.compile(r"\b(?:left|right)\b")
_NOT_A_DIAGNOSIS = re.compile(
    r"\b(?:received|labell?ed|formalin|measur(?:es|ing)|grossly|cut surface|serially|presents?|year old|y/?o|lump|palpable|"
    r"mammogra\w+|birads|ultrasound shows|history of|submitted|inked|unavailable|to follow|preliminary|cancelled)\b"
)
DESCRIPTIONS = ("gross", "microscopic")  # their parts are known only when the diagnosis has one text
TITLED_ROLES = ("final", "amended", "addendum_diagnosis", "specimens", "preliminary", "frozen", "synoptic")


def part_names(case: CaseText, known: Sequence[str], quarantine: set[str]) -> tuple[list[str], dict[str, str]]:
    """The parts of the case in order, and a translation of the text's identifiers to the LIS's."""
    spoken = [p for p in case.passages if p.role in ("final", "amended", "addendum_diagnosis", "preliminary")]
    if not any(p.parts or p.unsplit for p in spoken):
        spoken = [
            p for p in case.passages if p.role in ("final", "amended", "addendum_diagnosis", "preliminary", "preamble")
        ]
    in_text = list(dict.fromkeys(part for passage in spoken for part in (*passage.parts, *passage.unsplit)))
    if not spoken:
        in_text = list(
            dict.fromkeys(p for passage in case.passages if passage.role == "synoptic" for p in passage.parts)
        )
    listed = list(dict.fromkeys(part for p in case.passages if p.role == "specimens" for part in p.parts))
    if len(in_text) < 2:
        received = list(dict.fromkeys(part for p in case.passages if p.role in DESCRIPTIONS for part in p.parts))
        if len(received) > max(len(listed), 1) and all(part in received for part in in_text):
            listed = received
    if known:
        matched = [part for part in in_text if part in known]
        translation: dict[str, str] = {}
        if in_text and not matched:
            by_order = _same_order(in_text, known)
            if by_order:
                translation = by_order
            else:
                quarantine.add("part_mismatch")
        elif len(matched) < len(in_text):
            quarantine.add("part_mismatch")
        return list(dict.fromkeys(known)), translation
    if not in_text and len(listed) == 1:
        return listed, {}
    if not in_text:
        other = [p for p in case.passages if p.role == "frozen" and p.parts]
        in_text = list(dict.fromkeys(part for p in other for part in p.parts)) if not spoken else []
    names = in_text + [part for part in listed if part not in in_text] if in_text or len(listed) > 1 else []
    if listed and in_text and all(part in listed for part in in_text):
        names = listed
    return names or [DEFAULT_PART], {}


def _same_order(in_text: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """1, 2, 3 in the text for A, B, C in the LIS, when both count the same from the start."""
    for value in (ordinal, roman_ordinal):
        if [value(part) for part in in_text] == list(range(1, len(known) + 1)):
            return dict(zip(in_text, known, strict=True))
    return {}


def renamed(passage: Passage, translation: Mapping[str, str]) -> Passage:
    if not translation:
        return passage
    return passage._replace(parts=tuple(translation.get(part, part) for part in passage.parts))


def evidence_passages(case: CaseText, engine: Compiled, quarantine: set[str]) -> list[Passage]:
    """The passages, with the text before any heading promoted to a diagnosis when the report has no diagnosis heading."""
    roles = {passage.role for passage in case.passages}
    if roles & {"final", "amended", "addendum_diagnosis"}:
        return _described_by_part(case)
    promoted = []
    found = False
    for passage in case.passages:
        if passage.role == "preamble" and (passage.parts or _has_title(case, passage, engine)):
            passage, found = passage._replace(role="final"), True
        promoted.append(passage)
    described = [p for p in promoted if p.role == "microscopic"]
    if not found and described and all(_ends_in_category(p, case) for p in described):
        return [p._replace(role="final") if p.role == "microscopic" else p for p in promoted]
    if not found and "preliminary" in roles:
        quarantine.add("preliminary_only")
    elif not found and case.passages:
        quarantine.add("no_final_section")
    return promoted


def _described_by_part(case: CaseText) -> list[Passage]:
    """The passages; a microscopy that describes every part received is the diagnosis where that names none: a summary."""
    described = [part for p in case.passages if p.role == "microscopic" for part in p.parts]
    if len(described) < 2:
        return list(case.passages)
    diagnoses = [p for p in case.passages if p.role in ("final", "amended", "addendum_diagnosis")]
    received = {part for p in case.passages if p.role in ("gross", "specimens") for part in p.parts}
    if any(p.parts or p.unsplit for p in diagnoses) or not received <= set(described):
        return list(case.passages)
    if any(is_still_to_come(case.texts[p.version][p.start : p.end]) for p in diagnoses):
        return list(case.passages)
    return [p._replace(role="final") if p.role == "microscopic" and p.parts else p for p in case.passages]


def _ends_in_category(passage: Passage, case: CaseText) -> bool:
    return ends_in_category(case.texts[passage.version], passage.start, passage.end)


def with_body(passage: Passage, case: CaseText, engine: Compiled) -> Passage:
    if passage.role not in TITLED_ROLES:
        return passage
    text, seen = case.texts[passage.version], case.views[passage.version]
    return passage._replace(body=split_title(text, seen, passage.start, passage.end, engine))


def _has_title(case: CaseText, passage: Passage, engine: Compiled) -> bool:
    text, seen = case.texts[passage.version], case.views[passage.version]
    start = passage.start
    while start < passage.end and text[start] in " \n":
        start += 1
    if split_title(text, seen, start, passage.end, engine) > start:
        return True
    return not case.has_headings and _reads_as_diagnosis(seen, start, passage.end, engine)


def _reads_as_diagnosis(seen: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether a text without any heading begins with its specimen and is neither gross nor clinical: "Sections of the left breast
    core show ..."."""
    stop = min(end, start + PROSE_TITLE_CHARACTERS)
    site = engine.sites.pattern.search(seen, start, stop)
    place = engine.procedures.pattern.search(seen, start, stop) or _SIDE.search(seen, start, stop)
    return bool(site and place) and not _NOT_A_DIAGNOSIS.search(seen, start, end)
