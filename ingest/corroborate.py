"""What else speaks about a part: comments, prose addenda, synoptic text, discrete answers and codes.

Comments and addenda settle an open headline; structured sources that disagree with the text make a conflict and an indeterminate
part, never a silent winner.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ingest.case import CodeValue, Conflict, EvidenceSource, Label, SynopticAnswer
from ingest.draft import Draft, Said
from ingest.mentions import Mention, Reading, read
from ingest.report.normalise import view
from ingest.report.versions import CaseText, Passage
from ingest.rulefile import Compiled
from ingest.verdict import Verdict, judge

ASIDE_CHARACTERS = 40  # that may follow a finding which is a sentence of its own
_MORPHOLOGY_SYSTEMS = frozenset({"icdo", "icdo2", "icdo3", "snomed", "snm", "snm3", "snt", "snomed2"})
_B_CODE = re.compile(
    r"(?:[.:;,(-]|\b(?i:category|code|class)|^)[ ]*B([1-5])([abcABC])?"
    r"(?:[ ).]*$|\.[ ]|[ ]+-[ ]+(?i:normal|unsatisf|benign|uncertain|of uncertain|suspicious|malignan))",
    re.MULTILINE,
)
_HAS_B_CODE = re.compile(r"B[1-5]")
_C_CODE = re.compile(r"(?:[.:;,(-]|\b(?i:category|code|class)|^)[ ]*C([1-5])[ab]?[ ).]*$", re.MULTILINE)
_MORPHOLOGY = re.compile(r"\bM?-?([89]\d{3})[-/ ]?([012369])\b")
# Codes within the text of a part: "SNOMED: M85203".
_TEXT_CODES = re.compile(r"(?:ICD-?O|SNOMED|Snomed|Morphology|MORPHOLOGY)[^\n;]{2,60}")
_RESOLVES = re.compile(
    r"\b(?:diagnostic of|diagnosis of|represents?|consistent with|supports?|supporting|confirm(?:s|ed|ing)?|establish(?:es|ed)?|"
    r"indicative of|compatible with|in keeping with|best classified|final diagnosis|is present|are present|identified|"
    r"warrants? (?:a|the) diagnosis|fulfil\w*|meets? (?:the )?criteria|is classified|amount to|constitute|demonstrates?|shows?|"
    r"reveals?|contains?|(?:is|are) th(?:at|ose) of|(?:we|i) interpret (?:this|these|it|the [a-z]+) as|(?:is|are) interpreted as)\b"
)
# What makes a benign name in a comment the answer to an open headline; "shows fibroadenoma" may speak of the background.
_SETTLES = re.compile(
    r"\b(?:diagnostic of|diagnosis of|represents?|confirm(?:s|ed)|establish(?:es|ed)|best classified|is classified|"
    r"consistent with|in keeping with|(?:is|are) th(?:at|ose) of|"
    r"(?:we|i) interpret (?:this|these|it|the [a-z]+) as|(?:is|are) interpreted as)\b"
)
_CHANGED = re.compile(
    r"\b(?:diagnosis|interpretation|report)\b(?![^.\n]{0,30}\b(?:not|never|un\w+)\b)[^.\n]{0,40}"
    r"\b(?:changed|revised|amended|corrected|modified|withdrawn|reversed)\b"
    r"(?: (?P<how>to|from))?"
)
_CASE_NUMBER = re.compile(
    r"\b[a-z]{1,4}\d{2} ?\d{3,8}\b|\b(?:prior|previous|outside|earlier) (?:core|biops|excision|case|slides|material|specimen)"
)
_SEE_MICROSCOPY = re.compile(r"\bsee (?:the )?(?:micro(?:scop(?:ic|y))?|histolog(?:ic|y)|description)")
_PART_NAMED = re.compile(
    r"\b(?:parts?|specimens?|blocks?|slides?|cassettes?)\s+#?([A-Z]{1,2}|\d{1,2})(?:\d{1,3})?\b(?:\s*(?:,|&|and|-)\s*([A-Z]{1,2}|\d{1,2})\b)?",
    re.IGNORECASE,
)


def open_headline(
    draft: Draft, names: Sequence[str], drafts: Mapping[str, Draft], case: CaseText, engine: Compiled
) -> Draft:
    """Let comments and prose addenda speak: they settle an open headline, and an addendum can add a worse finding."""
    for role in ("comment", "addendum"):
        for passage in case.passages:
            if passage.role == role:
                draft = _with_prose(draft, passage, names, drafts, case, engine)
    if not draft.said.verdict.decided and _refers_to_microscopy(draft, case):
        for passage in case.passages:
            if passage.role == "microscopic":
                draft = _with_prose(draft, passage, names, drafts, case, engine)
    return draft


def _refers_to_microscopy(draft: Draft, case: CaseText) -> bool:
    return any(_SEE_MICROSCOPY.search(case.views[version], start, end) for version, start, end in draft.body_spans)


def _with_prose(
    draft: Draft,
    passage: Passage,
    names: Sequence[str],
    drafts: Mapping[str, Draft],
    case: CaseText,
    engine: Compiled,
) -> Draft:
    verdict = draft.said.verdict
    if verdict.finding in ("text_truncated", "unsupported_language", "duplicate_conflict", "preliminary"):
        return draft
    mentions = _prose_mentions(draft.part, passage, names, drafts, case, engine)
    if not mentions:
        return draft
    is_addendum = passage.role == "addendum"
    said = judge(mentions, draft.title.site, draft.title.procedure)
    seen = case.views[passage.version]
    firm = any(_firm(seen, m) for m in said.mentions)
    source: EvidenceSource = "addendum" if is_addendum else "comment"
    new = Said(source, said, passage.version, passage.role, (Reading(tuple(mentions), (), ()),))
    unanswered = not verdict.decided or (verdict.finding in ("deferred",) and verdict.label == "not_assessable")
    is_open = verdict.label == "indeterminate" or unanswered
    changed = _CHANGED.search(seen, passage.start, passage.end) if is_addendum else None
    if changed:
        if said.decided and changed.group("how") == "to":
            return replace(draft, said=new, flags=draft.flags | {"addendum_change"})
        doubt = replace(verdict, label="indeterminate", finding="addendum_change", rule="addendum_change", decided=True)
        return replace(draft, said=replace(draft.said, verdict=doubt), flags=draft.flags | {"addendum_change"})
    if said.label in ("cancer", "in_situ"):
        worse = ("benign", "indeterminate", "not_assessable", "in_situ", "cancer")
        if is_open and firm:
            return replace(draft, said=new)
        if is_addendum and firm and worse.index(said.label) > worse.index(verdict.label):
            return replace(draft, said=new, flags=draft.flags | {"addendum_upgrade"})
        refers = _refers_to_comment(draft) and any(_in_sentence(_SETTLES, seen, m) for m in said.mentions)
        if verdict.label == "benign" and refers and not is_addendum:
            return replace(draft, said=new)  # "sclerosing lesion, see comment": the comment is the diagnosis
        if verdict.label == "benign" and firm and passage.nested and not is_addendum and said.label == "cancer":
            doubt = replace(verdict, label="indeterminate", finding="comment_conflict", rule="comment_conflict")
            return replace(draft, said=replace(draft.said, verdict=doubt), flags=draft.flags | {"comment_conflict"})
    elif said.label == "benign" and unanswered and _answer_expected(draft, verdict):
        return replace(draft, said=new)
    elif said.label == "benign" and is_open and (is_addendum or _answer_expected(draft, verdict)):
        named = any(
            m.context == "affirmed" and m.finding.label == "benign" and m.finding.supports_alone for m in mentions
        )
        denied = any(m.context == "negated" and m.finding.excludes for m in mentions)
        settled = any(
            m.context == "affirmed" and m.finding.label == "benign" and _firm(seen, m, _SETTLES) for m in mentions
        )
        if named and (denied or settled):
            return replace(draft, said=new)
    elif said.label == "indeterminate" and unanswered and said.decided and said.finding != "unspecified_lesion":
        return replace(draft, said=new)
    return draft


def _answer_expected(draft: Draft, verdict: Verdict) -> bool:
    return _refers_to_comment(draft) or verdict.finding == "deferred"


def _refers_to_comment(draft: Draft) -> bool:
    return any(m.finding.id == "see_other_text" for reading in draft.said.readings for m in reading.mentions)


def _prose_mentions(
    name: str, passage: Passage, names: Sequence[str], drafts: Mapping[str, Draft], case: CaseText, engine: Compiled
) -> list[Mention]:
    """The mentions of a comment or addendum that are about this part."""
    text = case.texts[passage.version]
    reading = read(text, case.views[passage.version], passage.start, passage.end, engine)
    mentions = [
        m for m in reading.mentions if not _CASE_NUMBER.search(case.views[passage.version], *_statement_of(text, m))
    ]
    if passage.parts and passage.nested:
        about = name in passage.parts
        named = _parts_named(text, passage.start, passage.end, names)
        if named and name not in named and about:
            return []
        return mentions if about else []
    if len(names) == 1:
        return mentions
    kept = []
    whole = _parts_named(text, passage.start, passage.end, names)
    current: set[str] = set()
    for mention in mentions:
        start, end = _statement_of(text, mention)
        current = _parts_named(text, start, end, names) or _last_named(text, passage.start, start, names) or current
        if name in current:
            kept.append(mention)
    if whole:
        return kept
    waiting = [
        part for part, draft in drafts.items()
        if draft.said.verdict.label == "indeterminate" or not draft.said.verdict.decided or draft.said.verdict.finding == "deferred"
    ]  # fmt: skip
    if passage.role == "comment" and passage.parts and waiting and name == passage.parts[0] and name in waiting:
        return mentions
    return mentions if waiting == [name] else []


def _parts_named(text: str, start: int, end: int, names: Sequence[str]) -> set[str]:
    found = {group.upper() for match in _PART_NAMED.finditer(text, start, end) for group in match.groups() if group}
    return found & set(names)


def _last_named(text: str, start: int, end: int, names: Sequence[str]) -> set[str]:
    """The parts that the last statement before `end` to name any names: "(Part A) p63 is absent. The findings are ..."."""
    last: set[str] = set()
    for found in _PART_NAMED.finditer(text, start, max(start, end)):
        last = {group.upper() for group in found.groups() if group} & set(names) or last
    return last


def _statement_of(text: str, mention: Mention) -> tuple[int, int]:
    start = (
        max(
            text.rfind(". ", 0, mention.start),
            text.rfind("\n\n", 0, mention.start),
            text.rfind(".\n", 0, mention.start),
        )
        + 1
    )
    ends = [position for position in (text.find(". ", mention.end), text.find(".\n", mention.end)) if position >= 0]
    return start, min(ends) if ends else len(text)


def _firm(seen: str, mention: Mention, words: re.Pattern[str] = _RESOLVES) -> bool:
    return _in_sentence(words, seen, mention) or _is_alone(seen, mention)


def _in_sentence(words: re.Pattern[str], seen: str, mention: Mention) -> bool:
    start = max(seen.rfind(".", 0, mention.start), 0)
    return words.search(seen, start, _sentence_end(seen, mention)) is not None


def _is_alone(seen: str, mention: Mention) -> bool:
    """Whether a finding is all or nearly all that its sentence says: "Comment (A): Intraductal papilloma."."""
    start = max(seen.rfind(mark, 0, mention.start) for mark in ".;:") + 1
    return not seen[start : mention.start].strip() and _sentence_end(seen, mention) - mention.end <= ASIDE_CHARACTERS


def _sentence_end(seen: str, mention: Mention) -> int:
    end = seen.find(".", mention.end)
    return end if end >= 0 else len(seen)


def with_structured(
    draft: Draft,
    names: Sequence[str],
    drafts: Mapping[str, Draft],
    case: CaseText,
    engine: Compiled,
    codes: Sequence[CodeValue],
    synoptic: Sequence[SynopticAnswer],
    conflicts: list[Conflict],
) -> Draft:
    """Add synoptic text, discrete answers and codes; disagreement is a conflict and makes the part indeterminate."""
    if (
        draft.said.verdict.finding in ("unsupported_language", "duplicate_conflict")
        or draft.said.verdict.rule == "preliminary"
    ):
        return draft
    in_text = _synoptic_text(draft, names, drafts, case, engine)
    if in_text is not None:
        draft = _agree(draft, in_text, conflicts, settle=True)
    discrete = _discrete(draft, names, engine, synoptic)
    if discrete is not None:
        draft = _agree(draft, discrete, conflicts, settle=False)
    return _with_codes(draft, names, case, engine, codes, conflicts)


def _synoptic_text(
    draft: Draft, names: Sequence[str], drafts: Mapping[str, Draft], case: CaseText, engine: Compiled
) -> Said | None:
    for passage in case.passages:
        if passage.role != "synoptic":
            continue
        if passage.parts and (passage.nested or len(names) == 1):
            mine = draft.part in passage.parts
        elif len(names) == 1:
            mine = True
        else:
            waiting = [
                part for part in names if not drafts[part].said.verdict.decided and drafts[part].said.source != "none"
            ]
            mine = waiting == [draft.part]
        if not mine:
            continue
        reading = read(
            case.texts[passage.version],
            case.views[passage.version],
            passage.start,
            passage.end,
            engine,
            site=draft.title.site,
        )
        verdict = judge(reading.mentions, draft.title.site, draft.title.procedure)
        if verdict.decided:
            return Said("synoptic", verdict, passage.version, "synoptic", (reading,))
    return None


def _discrete(draft: Draft, names: Sequence[str], engine: Compiled, answers: Sequence[SynopticAnswer]) -> Said | None:
    mentions: list[Mention] = []
    for answer in answers:
        if answer.part != draft.part and not (answer.part is None and len(names) == 1):
            continue
        use = next((use for question, use in engine.questions if question.fullmatch(answer.question.strip(" :"))), None)
        if use is None:
            continue
        line = f"{answer.question.strip(' :')}: {answer.answer}" if use == "presence" else answer.answer
        mentions += read(line, view(line), 0, len(line), engine).mentions
    if not mentions:
        return None
    verdict = judge(mentions, draft.title.site, draft.title.procedure)
    return Said("discrete", verdict, -1, "synoptic") if verdict.decided else None


def _agree(draft: Draft, other: Said, conflicts: list[Conflict], settle: bool) -> Draft:
    """Join what a structured source says to what the text said; `settle` = the synoptic is the report's own text."""
    mine, theirs = draft.said.verdict, other.verdict
    if not mine.decided or mine.finding in ("deferred", "no_final_section"):
        return replace(draft, said=other)
    if mine.label == theirs.label:
        return draft if settle else replace(draft, said=replace(draft.said, source=other.source))
    if (
        mine.label in ("indeterminate", "not_assessable")
        and settle
        and mine.rule not in ("text_truncated", "range_unallocatable")
    ):
        return replace(draft, said=other)
    if theirs.label in ("indeterminate", "not_assessable") and settle:
        return draft
    if mine.finding == "text_truncated":
        return replace(draft, said=other)
    conflicts.append(
        Conflict(
            part=draft.part,
            source_a=draft.said.source,
            label_a=mine.label,
            source_b=other.source,
            label_b=theirs.label,
            resolution="indeterminate",
        )
    )
    verdict = replace(mine, label="indeterminate", finding="source_conflict", rule="source_conflict")
    return replace(draft, said=replace(draft.said, verdict=verdict), flags=draft.flags | {"source_conflict"})


def _with_codes(
    draft: Draft,
    names: Sequence[str],
    case: CaseText,
    engine: Compiled,
    codes: Sequence[CodeValue],
    conflicts: list[Conflict],
) -> Draft:
    for special in _special_codes(draft, case, codes, names):
        rule = engine.special_codes.get(special)
        if rule is None:
            continue
        mine = draft.said.verdict
        # "papillary lesion" settles nothing, the code does
        settled = mine.decided and mine.finding != "unspecified_lesion"
        if settled and (mine.label == rule.label or mine.label in rule.compatible):
            flagged = replace(mine, atypia=mine.atypia or (rule.atypia and mine.label == "benign"))
            if rule.atypia and mine.finding == "papilloma":
                flagged = replace(flagged, finding="papilloma_atypia")
            draft = replace(draft, said=replace(draft.said, verdict=flagged))
            continue
        finding = rule.finding or mine.finding
        coded = Verdict(
            rule.label,
            finding if mine.decided else rule.finding or f"{rule.system}_{rule.code}".lower(),
            f"{rule.system}_{rule.code}".lower(),
            True,
            mine.findings,
            rule.atypia,
        )
        refines = mine.rule == "carcinoma_nos" and rule.label == "in_situ"  # "malignant cells", B5a
        if not settled or rule.wins or refines or (mine.label == "not_assessable" and rule.label != "not_assessable"):
            draft = replace(draft, said=replace(draft.said, source="code", verdict=coded))
        elif not (rule.label == "not_assessable" and mine.label in ("benign", "indeterminate")):
            draft = _agree(draft, Said("code", coded, -1, "codes"), conflicts, settle=False)
    morphologies = [code for code in codes if code.part == draft.part or (code.part is None and len(names) == 1)]
    found = [
        pair
        for code in morphologies
        if _system(code) in _MORPHOLOGY_SYSTEMS
        for pair in _MORPHOLOGY.findall(code.code.upper())
    ]
    for version, start, end in draft.body_spans:
        for stretch in _TEXT_CODES.findall(case.texts[version], start, end):
            found += _MORPHOLOGY.findall(stretch.upper())
    if len(names) == 1:
        for passage in case.passages:
            if passage.role == "codes":
                found += _MORPHOLOGY.findall(case.texts[passage.version][passage.start : passage.end].upper())
    verdict = _code_verdict(found, engine)
    return draft if verdict is None else _agree(draft, Said("code", verdict, -1, "codes"), conflicts, settle=False)


def _system(code: CodeValue) -> str:
    return code.system.lower().replace("-", "").replace(" ", "").replace("_", "")


def _special_codes(
    draft: Draft, case: CaseText, codes: Sequence[CodeValue], names: Sequence[str]
) -> list[tuple[str, str]]:
    found = [
        (_system(code), code.code.upper().replace(" ", ""))
        for code in codes
        if _system(code) in ("bcode", "ccode") and (code.part == draft.part or (code.part is None and len(names) == 1))
    ]
    if draft.title.site in ("breast", "unknown", "nipple", "other"):
        for version, start, end in draft.body_spans:
            text = case.texts[version][start:end]
            if _HAS_B_CODE.search(text):
                found += [("bcode", f"B{number}{letter.upper()}") for number, letter in _B_CODE.findall(text)]
            if draft.title.procedure == "cytology":
                found += [("ccode", f"C{number}") for number in _C_CODE.findall(text)]
    return list(dict.fromkeys(found))


def _code_verdict(pairs: Sequence[tuple[str, str]], engine: Compiled) -> Verdict | None:
    order = ("cancer", "in_situ", "indeterminate", "benign")
    best: tuple[int, Label, str] | None = None
    for morphology, behaviour in pairs:
        label = engine.codes_label(behaviour)
        if label is None or label not in order:
            continue
        code = f"{morphology}/{behaviour}"
        if best is None or order.index(label) < best[0]:
            best = (order.index(label), label, code)
    if best is None:
        return None
    _, label, code = best
    finding = engine.finding_by_icdo.get(code)
    named = finding is not None and finding.label == label
    return Verdict(
        label, finding.name if named and finding else f"icdo_{code.replace('/', '_')}", "icdo_behaviour", True
    )
