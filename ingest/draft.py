"""What the diagnosis text itself says about one part: the draft of its label, before comments, synoptics and codes.

An amended diagnosis stands before an addendum diagnosis, and that before the final one. Text that was cut off or is written in
another language says nothing; a count of positive nodes over several parts allocates nothing unless the parts are named.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ingest.case import BlockLabel, EvidenceSource
from ingest.mentions import Mention, Reading, read
from ingest.report.parts import find_titles
from ingest.report.statements import dangles
from ingest.report.versions import CaseText, Passage, foreign_language
from ingest.rulefile import Compiled
from ingest.specimen_title import Title, site_and_procedure, title_of
from ingest.verdict import NOTHING, Verdict, for_site, judge

DIAGNOSES = ("amended", "addendum_diagnosis", "final")
TITLE_RANK = 60  # findings below this rank, alone in a title, are the diagnosis: "FIBROADENOMA, LEFT BREAST:"
_SAME_WORDS = (
    "the|same|identical|similar|see|as|ditto|diagnos[ie]s|findings?|features|histology|appearances?|changes|to|in|for|with|of|those|that|"
    "described|seen|noted|reported|given|under|above|previous|preceding|part|parts|specimen|specimens|is|are|shows?|showing|essentially|"
    "lesion|tumou?r|process|morphology|and|also"
)
_SAME = re.compile(
    rf"^[\W_]*(?:(?:{_SAME_WORDS})\b[\s,:#]*)+(?:(?P<id>[a-z]{{1,2}}|\d{{1,2}})\b[\s,;.]*)?(?:(?:{_SAME_WORDS})\b[\s,]*)*[\s.,)]*$"
)
_BACK = re.compile(r"\b(?:same|identical|similar|ditto|above|preceding)\b")


@dataclass(frozen=True, slots=True)
class Said:
    """What one source says about one part."""

    source: EvidenceSource
    verdict: Verdict
    version: int
    section: str
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A part on its way to a label."""

    part: str
    title: Title
    said: Said
    flags: frozenset[str]
    body_spans: tuple[tuple[int, int, int], ...]  # version, start, end
    refers: str = ""  # "same as" another part
    blocks: tuple[BlockLabel, ...] = ()


def draft_part(name: str, names: Sequence[str], case: CaseText, engine: Compiled, description: str) -> Draft:
    own = [p for p in case.passages if _speaks_of(p, name, names)]
    title = title_of(own, case, engine, description)
    flags: set[str] = {flag for flag in case.flags if flag in ("typo_repaired", "replacement_characters")}
    diagnosis = [p for p in own if p.role in DIAGNOSES]
    spans = tuple((p.version, p.start, p.end) for p in diagnosis)
    best: Said | None = None
    for role, source in (("amended", "amended"), ("addendum_diagnosis", "addendum"), ("final", "final")):
        texts = [p for p in diagnosis if p.role == role]
        if not texts:
            continue
        said = _said(name, texts, case, engine, title, flags, source)  # type: ignore[arg-type]
        if best is None or not best.verdict.decided:
            best = said if best is None or said.verdict.decided or not best.readings else best
    if best is None:
        preliminary = [p for p in own if p.role == "preliminary"]
        if any(name in p.unsplit for p in case.passages):
            flags.add("ambiguous_part")
            finding = "ambiguous_part"
        else:
            missing = "missing" if name in _listed_or_known(case, names) else "no_final_section"
            finding = "preliminary" if preliminary else missing
        nothing = replace(NOTHING, finding=finding, rule=finding)
        return Draft(
            name, title, Said("none", nothing, -1, "preliminary" if preliminary else ""), frozenset(flags), spans
        )
    refers = _reference(best, diagnosis, case, names, name)
    best = _cut_or_foreign(best, diagnosis, case, engine, flags)
    blocks = tuple(_block_labels(best, title)) if best.verdict.decided else ()
    return Draft(name, title, best, frozenset(flags), spans, refers, blocks)


def _listed_or_known(case: CaseText, names: Sequence[str]) -> Sequence[str]:
    return names if len(names) > 1 or any(p.role == "specimens" for p in case.passages) else ()


def _speaks_of(passage: Passage, name: str, names: Sequence[str]) -> bool:
    return name in passage.parts or (not passage.parts and len(names) == 1)


def _said(
    name: str,
    passages: Sequence[Passage],
    case: CaseText,
    engine: Compiled,
    title: Title,
    flags: set[str],
    source: EvidenceSource,
) -> Said:
    verdicts: list[tuple[Verdict, Passage, Reading]] = []
    for passage in passages:
        verdict, reading = _read_passage(name, passage, case, engine, title, flags)
        verdicts.append((verdict, passage, reading))
    readings = tuple(reading for _, _, reading in verdicts)
    duplicates = [v for v, p, _ in verdicts if v.decided]
    first = next((p for v, p, _ in verdicts if v.decided), passages[0])
    if len(verdicts) == 1:
        return Said(source, verdicts[0][0], first.version, first.role, readings)
    if any(p.duplicate for p in passages) and len({v.label for v in duplicates}) > 1:
        flags.add("duplicate_conflict")
        verdict = replace(duplicates[0], label="indeterminate", finding="duplicate_conflict", rule="duplicate_conflict")
        return Said(source, verdict, first.version, first.role, readings)
    if len({bool(p.parts) for p in passages}) > 1 and len({v.label for v in duplicates}) > 1:
        flags.add(
            "ambiguous_part"
        )  # a lettered and an unlettered diagnosis that disagree: two parts, or one, told apart by nobody
        verdict = replace(duplicates[0], label="indeterminate", finding="ambiguous_part", rule="ambiguous_part")
        return Said(source, verdict, first.version, first.role, readings)
    if len({p.version for p in passages}) == 1:
        mentions = [m for reading in readings for m in reading.mentions if not m.parts or name in m.parts]
        verdict = judge(mentions, title.site, title.procedure)
        if not verdict.decided:
            verdict = next((v for v, _, _ in verdicts if v.decided), verdict)
        return Said(source, verdict, first.version, first.role, readings)
    order = ("cancer", "in_situ", "indeterminate", "not_assessable", "benign")
    decided = [(v, p) for v, p, _ in verdicts if v.decided] or [(verdicts[0][0], passages[0])]
    last_stands = source in ("addendum", "amended")
    chosen = decided[-1] if last_stands else min(decided, key=lambda pair: order.index(pair[0].label))
    return Said(source, chosen[0], chosen[1].version, chosen[1].role, readings)


def _read_passage(
    name: str, passage: Passage, case: CaseText, engine: Compiled, title: Title, flags: set[str]
) -> tuple[Verdict, Reading]:
    text, seen, body = case.texts[passage.version], case.views[passage.version], passage.body
    reading = read(
        text, seen, body, passage.end, engine, passage.parts,
        site=title.site, side=title.laterality, named=seen[passage.start : body],
    )  # fmt: skip
    if not any(m.finding.id != "see_other_text" for m in reading.mentions) and body > passage.start:
        titled = read(text, seen, passage.start, body, engine, passage.parts, title=True)
        if any(_names_lesion(mention) for mention in titled.mentions):
            reading = titled
    mentions = [m for m in reading.mentions if not m.parts or name in m.parts]
    verdict = judge(mentions, title.site, title.procedure)
    if len(passage.parts) > 1:
        verdict = _shared(verdict, mentions, reading, passage, name, title, flags)
    elif not passage.parts and verdict.decided and _titles_disagree(text, seen, passage, engine):
        flags.add("ambiguous_part")
        verdict = replace(verdict, label="indeterminate", finding="ambiguous_part", rule="ambiguous_part")
    return verdict, reading


def _names_lesion(mention: Mention) -> bool:
    labels = ("cancer", "in_situ", "benign", "indeterminate")
    return mention.context == "affirmed" and mention.finding.label in labels and mention.finding.rank < TITLE_RANK


def _shared(
    verdict: Verdict,
    mentions: Sequence[Mention],
    reading: Reading,
    passage: Passage,
    name: str,
    title: Title,
    flags: set[str],
) -> Verdict:
    """The verdict on one part of a range: a count of some of them allocates nothing unless the text names the parts."""
    said = for_site(reading.mentions, title.site)
    positive = [m for m in said if m.context == "affirmed" and m.finding.label in ("cancer", "in_situ")]
    partial = [count for count in reading.partial_counts if count.whole >= len(passage.parts)]
    named = {part for m in positive for part in m.parts}
    if named and partial and any(not m.parts for m in positive):
        # "in one of three nodes. The positive node is part A": the count's carcinoma is that of the named part
        mine = [m for m in mentions if m.parts or m not in positive] if name not in named else mentions
        verdict = judge(mine, title.site, title.procedure)
    if positive and not named and partial:
        flags.add("range_unallocatable")
        return Verdict(
            "indeterminate", "unallocatable", "range_unallocatable", True, verdict.findings, False, tuple(positive[:1])
        )
    if named and name not in named and not verdict.decided:
        others_clear = any(m.finding.id == "others_negative" for m in reading.mentions)
        if others_clear or any(count.part == len(named) for count in partial):
            finding = "node_negative" if title.site == "lymph_node" else "benign_nos"
            return Verdict("benign", finding, "count_allocates", True, (), False, tuple(positive[:1]))
        flags.add("range_unallocatable")
        return Verdict("indeterminate", "unallocatable", "range_unallocatable", True, (), False, tuple(positive[:1]))
    return verdict


def _titles_disagree(text: str, seen: str, passage: Passage, engine: Compiled) -> bool:
    """Whether an unlettered diagnosis holds several specimen titles whose texts get different labels: parts without names."""
    titles = find_titles(text, seen, passage.start, passage.end, engine)
    if len(titles) < 2:
        return False
    labels = set()
    for (start, body), following in zip(titles, [*titles[1:], (passage.end, 0)], strict=True):
        site, procedure = site_and_procedure(seen[start:body], engine)
        verdict = judge(read(text, seen, body, following[0], engine, site=site).mentions, site, procedure)
        if verdict.decided:
            labels.add(verdict.label)
    return len(labels) > 1


def _cut_or_foreign(said: Said, passages: Sequence[Passage], case: CaseText, engine: Compiled, flags: set[str]) -> Said:
    last = passages[-1]
    text = case.texts[last.version]
    ends_here = not text[last.end :].strip()
    if ends_here and ("text_truncated" in case.flags or dangles(text)):
        flags.add("text_truncated")
        return replace(said, verdict=replace(NOTHING, finding="text_truncated", rule="text_truncated", decided=True))
    if any(foreign_language(case.views[p.version][p.start : p.end], engine) for p in passages):
        flags.add("foreign_language")
        return replace(
            said, verdict=replace(NOTHING, finding="unsupported_language", rule="unsupported_language", decided=True)
        )
    return said


def _reference(said: Said, passages: Sequence[Passage], case: CaseText, names: Sequence[str], name: str) -> str:
    """The part that a "same as A" points to, or "" ."""
    if (said.verdict.decided and said.verdict.finding != "unspecified_lesion") or len(names) < 2:
        return ""
    for passage in passages:
        found = _SAME.match(case.views[passage.version][passage.body : passage.end].strip())
        if found:
            target = (found.group("id") or "").upper()
            if target in names and target != name:
                return target
            position = names.index(name)
            if not target and _BACK.search(found.group()) and position:
                return names[position - 1]
    return ""


def follow_references(drafts: dict[str, Draft]) -> dict[str, Draft]:
    result = dict(drafts)
    for name, draft in drafts.items():
        target, steps = draft, 0
        while target.refers and steps < len(drafts):
            target, steps = drafts[target.refers], steps + 1
        if target is not draft and not target.refers and target.said.verdict.decided:
            result[name] = replace(draft, said=replace(target.said, source="reference"))
    return result


def with_unplaced(drafts: dict[str, Draft], case: CaseText, engine: Compiled) -> dict[str, Draft]:
    """No part stays benign beside a carcinoma that the diagnosis names for no part and that no part got."""
    stretches = [p for p in case.passages if p.role in DIAGNOSES and not p.parts and not p.unsplit]
    if len(drafts) < 2 or not stretches or any(d.said.verdict.label in ("cancer", "in_situ") for d in drafts.values()):
        return drafts
    for p in stretches:
        reading = read(case.texts[p.version], case.views[p.version], p.start, p.end, engine)
        if judge(reading.mentions, "", "").label in ("cancer", "in_situ"):
            return {name: _in_doubt(draft) for name, draft in drafts.items()}
    return drafts


def _in_doubt(draft: Draft) -> Draft:
    if draft.said.verdict.label != "benign":
        return draft
    doubt = replace(draft.said.verdict, label="indeterminate", finding="ambiguous_part", rule="ambiguous_part")
    return replace(draft, said=replace(draft.said, verdict=doubt), flags=draft.flags | {"ambiguous_part"})


def _block_labels(said: Said, title: Title) -> Iterable[BlockLabel]:
    labelled: dict[str, BlockLabel] = {}
    for reading in said.readings:
        for statement in reading.blocks:
            mentions = [m._replace(scope="") for m in reading.mentions if m.statement == statement.statement]
            verdict = judge(mentions, title.site, title.procedure)
            if verdict.label in ("cancer", "in_situ", "benign"):
                for block in statement.blocks:
                    labelled.setdefault(block, BlockLabel(block=block, label=verdict.label, rule_id=verdict.rule))
    return [labelled[block] for block in sorted(labelled)]
