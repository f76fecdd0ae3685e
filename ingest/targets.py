"""Targets of the multi-task table: what the report says about an assay (receptors, a mutation). Not reported is not negative."""

import re
from collections.abc import Sequence

from ingest.case import SynopticAnswer, TargetValue
from ingest.report.normalise import view
from ingest.report.statements import statements
from ingest.report.versions import CaseText, Passage
from ingest.rulefile import Compiled, CompiledTarget

_ROLES = frozenset({"final", "amended", "addendum_diagnosis", "addendum", "ancillary", "comment", "synoptic"})
_REACH_CHARACTERS = 90  # from the name of the assay to its value
_PERCENT = re.compile(r"(?P<sign>[<>~]?) ?(?P<number>\d{1,3}(?:\.\d+)?)(?: ?- ?\d{1,3})? ?%")
_NOT_DONE = re.compile(
    r"\b(?:not (?:performed|done|tested|available|evaluated|assessed)|pending|cannot be (?:determined|assessed)|to follow|unknown|"
    r"will be|(?:has been )?ordered)\b"
)
_PART = re.compile(r"\b(?:parts?|specimens?|blocks?|slides?)\s+#?([A-Z]{1,2}|\d{1,2})(?:\d{1,3})?\b", re.IGNORECASE)


def target_values(
    part: str, names: Sequence[str], case: CaseText, engine: Compiled, synoptic: Sequence[SynopticAnswer]
) -> tuple[TargetValue, ...]:
    """One value per task of the rules for this part.

    A passage without part words is about the part only when the case has one part. Two different values are a conflict.
    """
    if not engine.targets:
        return ()
    answers = [a for a in synoptic if a.part == part or (a.part is None and len(names) == 1)]
    passages = [
        p
        for p in case.passages
        if p.role in _ROLES
        and (not p.parts or part in p.parts)
        and engine.assays.search(case.views[p.version], p.start, p.end)
        and _about(p, part, names, case)
    ]
    if not passages and not answers:
        return engine.targets_not_reported
    return tuple(_value(target, passages, answers, case) for target in engine.targets)


def _about(passage: Passage, part: str, names: Sequence[str], case: CaseText) -> bool:
    if passage.parts:
        return part in passage.parts and len(passage.parts) == 1
    if len(names) == 1:
        return True
    named = {found.upper() for found in _PART.findall(case.texts[passage.version], passage.start, passage.end)} & set(
        names
    )
    return named == {part}


def _value(
    target: CompiledTarget, passages: Sequence[Passage], answers: Sequence[SynopticAnswer], case: CaseText
) -> TargetValue:
    found: list[tuple[str, float | None]] = []
    for answer in answers:
        line = f"{answer.question}: {answer.answer}"
        found += _in_statement(target, view(line), 0, len(line))
    for passage in passages if not found else ():
        text, seen = case.texts[passage.version], case.views[passage.version]
        if not target.names.pattern.search(seen, passage.start, passage.end):
            continue
        for start, end in statements(text, passage.start, passage.end):
            found += _in_statement(target, seen, start, end)
    task = target.target.task
    values = {value for value, _ in found}
    if not values:
        return TargetValue(task=task, value="", status="not_reported", y=None)
    if len(values) > 1:
        return TargetValue(task=task, value="", status="conflict", y=None, rule_id=f"{task}.conflict")
    value, number = found[0]
    y = target.target.y.get(value)
    status = "stated" if y is not None else "equivocal"
    return TargetValue(task=task, value=value, status=status, y=y, value_number=number, rule_id=f"{task}.{value}")  # type: ignore[arg-type]


def _in_statement(target: CompiledTarget, seen: str, start: int, end: int) -> list[tuple[str, float | None]]:
    names = list(target.names.pattern.finditer(seen, start, end))
    result: list[tuple[str, float | None]] = []
    for index, name in enumerate(names):
        if target.names.value(name.group()) != 0:
            continue
        following = names[index + 1].start() if index + 1 < len(names) else end
        stop = min(following, _clause_end(seen, name.end(), end), name.end() + _REACH_CHARACTERS)
        zone = seen[name.end() : stop]
        if not target.values.pattern.search(zone):
            before_start = names[index - 1].end() if index else start
            comma = max(seen.rfind(mark, before_start, name.start()) for mark in ",;:")
            zone = seen[max(before_start, comma + 1) : stop]  # "no EGFR mutation was detected"
        else:
            comma = max(seen.rfind(mark, start, name.start()) for mark in ",;:.")
            lead = seen[max(comma + 1, names[index - 1].end() if index else start) : name.start()]
            if re.search(r"\b(?:no|negative for|absence of)\s*$", lead):
                zone = f"no {zone}"
        if _NOT_DONE.search(zone) and not _own_inconclusive(target, zone):
            continue
        value = _read_value(target, zone)
        number = _percent(zone)
        if target.target.percent is not None and number is not None:
            value = _by_percent(target, value, number)
        if value is not None:
            result.append((value, number))
    return result


def _own_inconclusive(target: CompiledTarget, zone: str) -> bool:
    found = target.values.pattern.search(zone)
    return (
        bool(found) and target.value_names[target.values.value(found.group())] not in target.target.y
        if found
        else False
    )


def _clause_end(seen: str, start: int, end: int) -> int:
    ends = [position for position in (seen.find(";", start, end), seen.find(". ", start, end)) if position >= 0]
    return min(ends) if ends else end


def _read_value(target: CompiledTarget, zone: str) -> str | None:
    """The value a zone states: a negation word before a "detected" wins because its phrase is longer."""
    found = [target.value_names[target.values.value(m.group())] for m in target.values.pattern.finditer(zone)]
    if not found:
        return None
    if re.match(r"\s*no\b", zone) and found[0] in target.target.y:
        negatives = [value for value, y in target.target.y.items() if y == 0]
        return negatives[0] if negatives else found[0]
    return found[0]


def _percent(zone: str) -> float | None:
    found = _PERCENT.search(zone)
    if not found:
        return None
    number = float(found.group("number"))
    return number - 0.5 if found.group("sign") == "<" and number <= 1 else number


def _by_percent(target: CompiledTarget, value: str | None, number: float) -> str | None:
    limits = target.target.percent
    assert limits is not None
    if number < limits.negative_below:
        return "negative"
    if limits.low_positive_to is not None and number <= limits.low_positive_to and value != "negative":
        return "low_positive"
    return value if value is not None else "positive"
