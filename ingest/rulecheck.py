"""`ingest rules test` runs the tests inside a rule file; `ingest rules diff` shows which parts change label between two files."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ingest.case import CaseLabels
from ingest.errors import ConfigError
from ingest.label_file import label_line, label_text
from ingest.report.normalise import UnreadableReport
from ingest.rulefile import Rules, RuleTest, load_rules


@dataclass(frozen=True, slots=True)
class Failure:
    """A test of a rule file that does not hold: its position (1 = first) and every difference."""

    number: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A part whose label or finding differs between two rule files; "" = the part is not there."""

    id: str
    part: str
    label_a: str
    finding_a: str
    label_b: str
    finding_b: str


def run_tests(rules: Rules) -> list[Failure]:
    """The failures of the rule file's own tests; empty when all hold."""
    failures = []
    for number, test in enumerate(rules.file.tests, 1):
        try:
            differences = tuple(_differences(test, label_text(test.text, test.format, rules)))
        except UnreadableReport as error:
            differences = (f"unreadable: {error.reason}",)
        if differences:
            failures.append(Failure(number, differences))
    return failures


def check_rules(name: Path | str) -> int:
    """Run the tests of a rule file; returns their number.

    Raises:
        ConfigError: as `load_rules`, or a test fails; every failure is named.
    """
    rules = load_rules(name)
    failures = run_tests(rules)
    if failures:
        told = "; ".join(f"test {failure.number}: {', '.join(failure.differences)}" for failure in failures)
        raise ConfigError(
            f"rules {rules.id} {rules.file.ruleset.version}: {len(failures)} of {len(rules.file.tests)} tests fail: {told}"
        )
    return len(rules.file.tests)


def diff_rules(
    name_a: Path | str, name_b: Path | str, lines: Iterable[str]
) -> tuple[list[Change], Counter[tuple[str, str]]]:
    """Label the same report lines with two rule files.

    Returns:
        the parts that change, and counts of (label under a, label under b) over all parts.
    """
    rules_a, rules_b = load_rules(name_a), load_rules(name_b)
    changes: list[Change] = []
    counts: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if not line.strip():
            continue
        a = {answer["part"]: answer for answer in label_line(line, rules_a)}
        b = {answer["part"]: answer for answer in label_line(line, rules_b)}
        identifier = str(json.loads(line)["id"]) if line.lstrip().startswith("{") else ""
        for part in dict.fromkeys([*a, *b]):
            before = (a[part]["label"], a[part]["finding"]) if part in a else ("", "")
            after = (b[part]["label"], b[part]["finding"]) if part in b else ("", "")
            counts[before[0], after[0]] += 1
            if before != after:
                changes.append(Change(identifier, part, *before, *after))
    return changes, counts


def _differences(test: RuleTest, labels: CaseLabels) -> Iterable[str]:
    found = {part.part: part for part in labels.parts}
    for part in dict.fromkeys([*test.expect, *found]):
        if part not in found:
            yield f"part {part} is not found"
        elif part not in test.expect:
            yield f"part {part} is not expected"
        elif found[part].label != test.expect[part]:
            yield f"part {part} is {found[part].label}, not {test.expect[part]}"
    for part, finding in test.findings.items():
        if part in found and found[part].finding != finding:
            yield f"part {part} has finding {found[part].finding}, not {finding}"
    for part, targets in test.targets.items():
        values = {target.task: target.value for target in found[part].targets} if part in found else {}
        for task, value in targets.items():
            if values.get(task) != value:
                yield f"part {part} has {task} {values.get(task)!r}, not {value!r}"
