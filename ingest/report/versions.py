"""From the report versions of a case to passages: stretches of text with a role and the parts they speak of.

Deleted versions are left out, a later final replaces an earlier one of the same section and part, addenda add up, and headings
inside one text ("AMENDED DIAGNOSIS", "PREVIOUS DIAGNOSIS") do the same within it. Preliminary, frozen, gross, history and
previous text never becomes evidence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ingest.case import ReportVersion
from ingest.report.normalise import NormalText, Spelling, UnreadableReport, normalise, view
from ingest.report.parts import Header, expand_ids, find_parts, find_titles
from ingest.report.sections import DIAGNOSIS_ROLES, Role, find_headings, section_role
from ingest.report.uncounted import described_headers, hides_title, intake_headers, names_two_sides, other_subjects
from ingest.rulefile import Compiled

_PART_ROLES = DIAGNOSIS_ROLES | {"preamble", "comment", "addendum", "synoptic", "ancillary", "specimens"}
_NESTABLE = frozenset({"comment", "ancillary", "synoptic"})
_PART = r"(?:[A-Za-z]|\d{1,2})"
_SYNOPTIC_PART = re.compile(
    r"^[ ]*(?:specimens?|parts?)(?: ?\(s\))?(?: (?:involved|identification|id|label|designation))?[ ]*[:#]?[ ]*"
    rf"({_PART}(?:(?:, ?| ?& ?| and |-){_PART})*)[ ]*$",
    re.IGNORECASE | re.MULTILINE,
)
_EVIDENCE_ROLES = frozenset({"final", "amended", "addendum_diagnosis", "preamble"})
_ANSWERED_TITLE = re.compile(r"[^\n:]{3,100}:[ ]*\S")
_STAGE_LINE = re.compile(
    r"^(?P<indent>[ ]*)(?:(?:AJCC|[a-z]+)[ ])?(?:p|yp)?(?:TNM|stag(?:e|ing))\b[^\n:]{0,30}:",
    re.IGNORECASE | re.MULTILINE,
)
_MIN_FOREIGN_WORDS = 2
_SIDE = re.compile(r"\b(?:left|right|lt|rt|l|r)\b")


class Passage(NamedTuple):  # a named tuple for speed
    """Characters start:end of one normalised version; `parts` empty means the whole case or an unlettered part."""

    version: int
    role: Role
    parts: tuple[str, ...]
    start: int
    end: int
    nested: bool = False  # a comment or synoptic that stands under its part
    duplicate: bool = False  # the identifier had been used in the same section
    unsplit: tuple[str, ...] = ()  # parts that share the text of this passage in a way nobody can tell apart
    body: int = -1  # where the specimen title ends; `start` when there is none, -1 where titles do not matter


@dataclass(frozen=True, slots=True)
class CaseText:
    """All passages of a case with their texts (by version), and what is wrong with the case as reason codes."""

    texts: tuple[str, ...]
    views: tuple[str, ...]
    passages: tuple[Passage, ...]
    flags: tuple[str, ...]
    quarantine: tuple[str, ...]
    has_headings: bool


class _Segment(NamedTuple):
    role: Role
    start: int
    end: int
    indent: int
    parts: tuple[str, ...]


def read_case(reports: Sequence[ReportVersion], engine: Compiled, known: Sequence[str]) -> CaseText:
    """Normalise every standing version and cut it into passages.

    Args:
        known: part identifiers of the LIS part table, empty when there is none.
    """
    spelling = Spelling(
        engine.known_words,
        engine.typo_words,
        engine.typo_never,
        engine.abbreviation,
        engine.written_out,
    )
    standing = _standing(reports)
    texts, views = [""] * len(reports), [""] * len(reports)
    passages: list[Passage] = []
    flags: set[str] = set()
    quarantine: set[str] = set()
    has_headings = False
    for index in standing:
        report = reports[index]
        try:
            normal: NormalText = normalise(report.text, report.format, spelling)
        except UnreadableReport as error:
            quarantine.add(error.reason)
            continue
        texts[index], views[index] = normal.text, view(normal.text)
        flags.update(normal.flags)
        segments = _after_history(normal.text, _segments(normal.text, report, engine), engine)
        has_headings = has_headings or len(segments) > 1 or segments[0].role != "preamble"
        specimens = _specimens(normal.text, segments, engine)
        found = _passages(normal.text, views[index], index, segments, report, engine, known, specimens)
        if report.part is None:
            found = _with_uncounted(found, normal.text, views[index], engine, known, specimens)
        passages += found
    if "text_truncated" in flags:
        quarantine.add("text_truncated")
    if not reports:
        quarantine.add("no_report")
    return CaseText(
        tuple(texts), tuple(views), tuple(passages), tuple(sorted(flags)), tuple(sorted(quarantine)), has_headings
    )


def foreign_language(text_view: str, engine: Compiled) -> bool:
    """Whether two different words of another language occur."""
    return len(set(engine.foreign_words.findall(text_view))) >= _MIN_FOREIGN_WORDS


def _standing(reports: Sequence[ReportVersion]) -> list[int]:
    """Positions of the versions that stand, in order: not deleted, and the latest final per section and part."""
    latest: dict[tuple[str | None, str | None], int] = {}
    for report in reports:
        if report.status not in ("D", "X") and report.kind in ("final", "amended", "corrected"):
            key = (report.section, report.part)
            latest[key] = max(latest.get(key, report.version), report.version)
    corrected = {
        (r.section, r.part) for r in reports if r.status == "C" and r.kind in ("final", "corrected", "amended")
    }  # a corrected result replaces the final one of its section and part
    result = []
    for index, report in enumerate(reports):
        if report.status in ("D", "X"):
            continue
        key = (report.section, report.part)
        if report.kind in ("final", "amended", "corrected"):
            if report.version < latest[key]:
                continue
            if key in corrected and report.status == "F" and report.part is not None:
                continue
        result.append(index)
    return result


def _segments(text: str, report: ReportVersion, engine: Compiled) -> list[_Segment]:
    base: Role = "preamble"
    if report.section is not None:
        base = section_role(report.section, engine) or "disclaimer"  # a section nobody knows is no evidence
    headings = find_headings(text, engine)
    segments: list[_Segment] = []
    first = headings[0].start if headings else len(text)
    if first > 0 or not headings or base != "preamble":
        segments.append(_Segment(base, 0, first, 0, ()))
    amended = preliminary = False
    banner: Role | None = None
    for heading, following in zip(headings, [*headings[1:], None], strict=False):
        end = following.start if following else len(text)
        role = heading.role
        if role == "banner_amended":
            amended = True
            role = "disclaimer"
        elif role == "banner_preliminary":
            preliminary, role = True, "disclaimer"
        elif role == "final":
            if amended:
                role, amended = "amended", False
            elif banner == "addendum":
                role = "addendum_diagnosis"
        banner = "addendum" if role == "addendum" and not text[heading.body : end].strip() else None
        segments.append(
            _Segment(role, heading.body, end, heading.indent, expand_ids(heading.parts) if heading.parts else ())
        )
    if preliminary:
        report = replace(report, kind="preliminary")
    return [segment._replace(role=_by_version(segment.role, report)) for segment in segments]


def _after_history(text: str, segments: list[_Segment], engine: Compiled) -> list[_Segment]:
    """The segments; parts with an answer each that end a report whose only heading is the history's are no history.

    "Clinical: lump / 1 - Left breast core: fibroadenoma / 2 - ..." goes on with its diagnosis on the next line.
    """
    last = segments[-1]
    line_end = text.find("\n", last.start, last.end)
    if last.role != "history" or any(s.role not in ("history", "preamble", "specimens") for s in segments):
        return segments
    if line_end < 0 or not text[last.start : line_end].strip():
        return segments
    headers = find_parts(text, line_end + 1, last.end, engine)
    if len(headers) < 2 or headers[0].ids not in (("1",), ("A",), ("I",)):
        return segments
    ends = [*(header.start for header in headers[1:]), last.end]
    if not all(_ANSWERED_TITLE.match(text, h.body, end) for h, end in zip(headers, ends, strict=True)):
        return segments
    begin = headers[0].start
    return [*segments[:-1], last._replace(end=begin), _Segment("preamble", begin, last.end, 0, ())]


def _by_version(role: Role, report: ReportVersion) -> Role:
    if report.kind == "preliminary" or report.status == "P":
        return "preliminary" if role in ("final", "preamble", "addendum", "addendum_diagnosis") else role
    if report.kind in ("amended", "corrected") and role in ("final", "preamble"):
        return "amended"
    if report.kind == "addendum":
        return "addendum_diagnosis" if role == "final" else "addendum" if role == "preamble" else role
    return role


def _specimens(text: str, segments: Sequence[_Segment], engine: Compiled) -> dict[str, str]:
    """The report's own list of specimens: what is said about each identifier."""
    listed: dict[str, str] = {}
    for segment in segments:
        if segment.role == "specimens":
            headers = find_parts(text, segment.start, segment.end, engine)
            for header, following in zip(headers, [*headers[1:], None], strict=False):
                for part in header.ids:
                    listed.setdefault(part, text[header.body : following.start if following else segment.end])
    return listed


def _by_specimen_list(
    text: str, seen: str, segment: _Segment, engine: Compiled, specimens: Mapping[str, str]
) -> list[Header]:
    """Headers for titles without identifiers, when the specimen list has as many entries and the sides agree in order."""
    if len(specimens) < 2 or segment.role not in ("final", "amended", "addendum_diagnosis"):
        return []
    titles = find_titles(text, seen, segment.start, segment.end, engine)
    if len(titles) != len(specimens):
        return []
    pairs = list(zip(titles, specimens.items(), strict=True))
    if any(_sides(seen[start:body]) != _sides(view(entry)) for (start, body), (_, entry) in pairs):
        return []
    return [Header((part,), "letter", start, start, 0, titled=True) for (start, _), (part, _) in pairs]


def _sides(title: str) -> frozenset[str]:
    return frozenset(side[0] for side in _SIDE.findall(title))


def _passages(
    text: str,
    seen_text: str,
    version: int,
    segments: Sequence[_Segment],
    report: ReportVersion,
    engine: Compiled,
    known: Sequence[str],
    specimens: Mapping[str, str],
) -> list[Passage]:
    passages: list[Passage] = []
    parent: Role | None = None
    parts: tuple[str, ...] = ()
    header_indent = 0
    seen: set[str] = set()
    last_header: Header | None = None
    alternating = sum(segment.role == "final" for segment in segments) > 1
    for segment in segments:
        if segment.role not in _PART_ROLES:
            passages.append(
                Passage(version, segment.role, (report.part,) if report.part else (), segment.start, segment.end)
            )
            continue
        may_interrupt = segment.role in _NESTABLE or segment.indent > header_indent
        before = last_header if parts and may_interrupt else None
        headers = find_parts(text, segment.start, segment.end, engine, known or tuple(specimens), before)
        if not headers and not known and report.part is None:
            headers = _by_specimen_list(text, seen_text, segment, engine, specimens)
        if report.part is not None:
            start = headers[0].body if headers and headers[0].ids == (report.part,) else segment.start
            passages.append(Passage(version, segment.role, (report.part,), start, segment.end, nested=True))
            continue
        role = segment.role
        is_diagnosis = role in DIAGNOSIS_ROLES or role == "preamble"
        nested = bool(parts) and (role in _NESTABLE or (is_diagnosis and segment.indent > header_indent))
        if role == "final" and not nested and alternating and _is_bare_title(passages, segment, text):
            parent, parts, nested = "final", passages[-1].parts, True
            header_indent = min(header_indent, segment.indent)
        if is_diagnosis and not nested:
            continues = role == parent and headers and not _blank(text, segment.start, headers[0].start)
            if not continues:
                parent, parts, seen = role, (), set()
        lead_end = headers[0].start if headers else segment.end
        lead_parts = segment.parts or (parts if nested else ())
        own = False
        if role == "synoptic" and not segment.parts:
            named = list(_SYNOPTIC_PART.finditer(text, segment.start, segment.end))
            if named:
                lead_parts = expand_ids(named[0].group(1)) or lead_parts
                own, headers = len(lead_parts) == 1, []  # a synoptic of several parts speaks of each only in part
                ends = [*(found.start() for found in named[1:]), segment.end]
                lead_end = ends[0]
                passages += [
                    Passage(version, role, expand_ids(found.group(1)), found.start(), stop, True)
                    for found, stop in zip(named[1:], ends[1:], strict=True)
                ]
        if not _blank(text, segment.start, lead_end) or not headers:
            deep = nested and (segment.indent > header_indent or bool(segment.parts))
            lead_role: Role = parent if parent and nested and role == "final" else role
            passages.append(
                Passage(version, lead_role, lead_parts, segment.start, lead_end, deep or own or bool(segment.parts))
            )
        section_seen: set[str] = set()
        for header, following in zip(headers, [*headers[1:], None], strict=False):
            end = following.start if following else segment.end
            fresh = header.titled and not any(part in seen for part in header.ids)
            if parent and nested and fresh and (role in _NESTABLE or header.indent <= header_indent):
                role, is_diagnosis = parent, True
            duplicate = is_diagnosis and any(part in (seen if role == parent else section_seen) for part in header.ids)
            stage = _stage_of_case(text, seen_text, header, end) if following is None and len(headers) > 1 else end
            passages.append(Passage(version, role, header.ids, header.body, stage, True, duplicate))
            if stage < end:
                passages.append(Passage(version, "ancillary", (), stage, end))
            section_seen.update(header.ids)
            if is_diagnosis:
                parts, header_indent, last_header = header.ids, header.indent, header
                seen.update(header.ids)
    return passages


def _with_uncounted(
    passages: list[Passage],
    text: str,
    seen: str,
    engine: Compiled,
    known: Sequence[str],
    specimens: Mapping[str, str],
) -> list[Passage]:
    """The passages with the specimens that have no text of their own: those of the gross text, and those in another's text."""
    evidence = [p for p in passages if p.role in _EVIDENCE_ROLES]
    lettered = {part for p in evidence for part in p.parts}
    doubtful = {p for p in evidence if len(p.parts) == 1 and names_two_sides(seen, p.start, p.end)}
    within = (evidence[0].start, evidence[-1].end) if evidence else (0, 0)
    names_specimen = seen.find("specimen", *within) >= 0 or seen.find("part ", *within) >= 0
    if len(lettered) > 1 and not names_specimen and not doubtful:
        return passages
    result: list[Passage] = []
    received: list[str] = []
    for passage in passages:
        start, end = passage.start, passage.end
        if passage.role in _EVIDENCE_ROLES:
            if names_specimen:
                others = other_subjects(text, start, end, lettered)
                if len(passage.parts) + len(others) > max(1, len(passage.parts)):
                    passage = passage._replace(unsplit=(*passage.parts, *others), parts=())
            if passage in doubtful and hides_title(text, seen, start, end, engine):
                passage = passage._replace(unsplit=passage.parts, parts=())
        elif passage.role in ("gross", "microscopic") and len(lettered) < 2 and not known:
            if passage.role == "gross":
                headers = intake_headers(text, start, end, engine)
                received += [header.ids[0] for header in headers if header.ids[0] not in received]
            else:
                headers = described_headers(text, start, end, engine, received or tuple(specimens))
            if headers:
                ends = [*(header.start for header in headers[1:]), end]
                result += [
                    passage._replace(parts=header.ids, start=header.body, end=stop)
                    for header, stop in zip(headers, ends, strict=True)
                ]
                continue
        result.append(passage)
    return result


def _stage_of_case(text: str, seen: str, header: Header, end: int) -> int:
    """Where a line with the stage of the whole case follows the last part, no deeper than the part; `end` without one."""
    if seen.find("tnm", header.body, end) < 0 and seen.find("stag", header.body, end) < 0:
        return end
    found = _STAGE_LINE.search(text, header.body, end)
    return found.start() if found and len(found.group("indent")) <= header.indent else end


def _is_bare_title(passages: Sequence[Passage], segment: _Segment, text: str) -> bool:
    """Whether a part header with nothing but its title stands right before: "Specimen A: left breast / Diagnosis: ..."."""
    if not passages or not passages[-1].parts or passages[-1].role not in ("preamble", "final", "specimens"):
        return False
    title = text[passages[-1].start : passages[-1].end].strip()
    return passages[-1].end <= segment.start and 0 < len(title) < 160 and "\n" not in title


def _blank(text: str, start: int, end: int) -> bool:
    return not text[start:end].strip(" \n:*-=")
