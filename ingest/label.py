"""The label of every part of a case: evidence in the order discrete value, code, amended, addendum, final text.

Sources that disagree become a row of conflicts and an indeterminate part, never a silent winner. A part that was submitted
but not diagnosed, deferred, cut off or written in an unknown language is not_assessable.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from ingest.case import CaseLabels, CodeValue, Conflict, Evidence, LisPart, PartLabel, ReportVersion, SynopticAnswer
from ingest.corroborate import open_headline, with_structured
from ingest.draft import Draft, Said, draft_part, follow_references, with_unplaced
from ingest.mentions import Mention
from ingest.part_names import DEFAULT_PART, evidence_passages, part_names, renamed, with_body
from ingest.report.versions import CaseText, read_case
from ingest.rulefile import Compiled, Rules, compiled
from ingest.statement_tokens import NEGATIVE, NEGATIVE_MARGIN, POSITIVE, UNRECOGNISED
from ingest.targets import target_values

ENGINE_FAULT = "engine_fault"
# Their words are the report's, not the lexicon's: never copied out.
_WORDLESS = frozenset(finding.id for finding in (UNRECOGNISED, NEGATIVE, NEGATIVE_MARGIN, POSITIVE))
_OTHER_CASE = re.compile(
    r"\b(?:see|refer to|reported (?:under|in|with|as)|under)\b[^.;\n]{0,40}\b[a-z]{1,4}\d{2} ?\d{2,8}\b"
)


def label_case(
    reports: Sequence[ReportVersion],
    parts: Sequence[LisPart] | None = None,
    *,
    rules: Rules,
    codes: Sequence[CodeValue] = (),
    synoptic: Sequence[SynopticAnswer] = (),
) -> CaseLabels:
    """Labels of all parts of one case; a pure function of its arguments.

    Args:
        reports: every version of the report text, in any order within one kind; rows of text by section and part are fine.
        parts: the LIS part table of the case, which then is the authority: text parts are matched to it. None or empty: the
            parts are those of the text.
    Returns:
        One `PartLabel` per part in LIS or report order, conflicts, and case-level quarantine reasons. Never raises for what
        a report contains: a case at which this code fails is `engine_fault`, not assessable, and in the ledger.
    """
    try:
        return _label_case(reports, parts, rules, codes, synoptic)
    except Exception:  # a defect of ours; a million cases must not stop at one, and the error's text may name a patient
        nothing = [
            PartLabel(part=part, label="not_assessable", finding=ENGINE_FAULT, rule_id=f"{rules.id}.{ENGINE_FAULT}")
            for part in dict.fromkeys(part.part for part in parts or ()) or (DEFAULT_PART,)
        ]
        return CaseLabels(parts=tuple(nothing), quarantine=(ENGINE_FAULT,))


def _label_case(
    reports: Sequence[ReportVersion],
    parts: Sequence[LisPart] | None,
    rules: Rules,
    codes: Sequence[CodeValue],
    synoptic: Sequence[SynopticAnswer],
) -> CaseLabels:
    engine = compiled(rules)
    known = tuple(part.part for part in parts or ())
    case = read_case(reports, engine, known)
    quarantine = set(case.quarantine)
    names, texts_to_lis = part_names(case, known, quarantine)
    passages = [renamed(passage, texts_to_lis) for passage in evidence_passages(case, engine, quarantine)]
    case = replace(case, passages=tuple(with_body(passage, case, engine) for passage in passages))
    descriptions = {part.part: f"{part.part_type} {part.description}".strip() for part in parts or ()}
    drafts = {name: draft_part(name, names, case, engine, descriptions.get(name, "")) for name in names}
    drafts = with_unplaced(follow_references(drafts), case, engine)
    conflicts: list[Conflict] = []
    for name in names:
        drafts[name] = open_headline(drafts[name], names, drafts, case, engine)
        drafts[name] = with_structured(drafts[name], names, drafts, case, engine, codes, synoptic, conflicts)
    labels = tuple(_finish(drafts[name], names, case, engine, rules, synoptic) for name in names)
    if any("foreign_language" in draft.flags for draft in drafts.values()):
        quarantine.add("unsupported_language")
    return CaseLabels(parts=labels, conflicts=tuple(conflicts), quarantine=tuple(sorted(quarantine)))


def _finish(
    draft: Draft,
    names: Sequence[str],
    case: CaseText,
    engine: Compiled,
    rules: Rules,
    synoptic: Sequence[SynopticAnswer],
) -> PartLabel:
    said, verdict = draft.said, draft.said.verdict
    flags = set(draft.flags) | set(verdict.flags)
    if verdict.finding == "no_finding":
        verdict = replace(verdict, finding=_why_nothing(draft, case))
    evidence = [_evidence(m, said, rules, case) for m in verdict.mentions]
    decided = {(m.start, m.end) for m in verdict.mentions}
    for reading in said.readings:
        evidence += [
            _evidence(m, said, rules, case)
            for m in reading.mentions
            if (m.start, m.end) not in decided and (not m.parts or draft.part in m.parts)
        ]
    kind = case_kind(said.section)
    return PartLabel(
        part=draft.part,
        label=verdict.label,
        finding=verdict.finding,
        findings=verdict.findings,
        atypia=verdict.atypia,
        site=draft.title.site,
        laterality=draft.title.laterality,
        procedure=draft.title.procedure,
        rule_id=f"{rules.id}.{verdict.rule}",
        evidence_source=said.source if verdict.decided else "none",
        version_kind=kind,
        evidence=tuple(evidence),
        flags=tuple(
            sorted(flags - {"foreign_language"} | ({"unsupported_language"} if "foreign_language" in flags else set()))
        ),
        blocks=draft.blocks,
        targets=target_values(draft.part, names, case, engine, synoptic),
    )


def case_kind(section: str) -> str:
    """The version kind a section stands for: amended, addendum, preliminary or final."""
    return {
        "amended": "amended",
        "addendum_diagnosis": "addendum",
        "addendum": "addendum",
        "preliminary": "preliminary",
    }.get(section, "final")


def _why_nothing(draft: Draft, case: CaseText) -> str:
    for version, start, end in draft.body_spans:
        if _OTHER_CASE.search(case.views[version], start, end):
            return "deferred_other_case"
    return "no_finding"


def _evidence(mention: Mention, said: Said, rules: Rules, case: CaseText) -> Evidence:
    seen = case.views[said.version] if said.version >= 0 else ""
    return Evidence(
        rule_id=f"{rules.id}.{mention.finding.id}",
        term=" ".join(seen[mention.start : mention.end].split())
        if mention.finding.id not in _WORDLESS
        else mention.finding.id,
        version=said.version,
        start=mention.start,
        end=mention.end,
        section=said.section,
        context=mention.context,
    )
