"""`ingest rules score`: how well a rule file reads reports whose labels a person wrote down.

The figures that matter for training come first: a cancer called benign or the reverse. A part that the engine makes up, or does
not find, is counted apart, and so is an abstention (not_assessable or indeterminate where the person gave a class).
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ingest.case import LABELS
from ingest.errors import InputError
from ingest.label_file import label_line
from ingest.rulefile import load_rules

ABSENT = "absent"  # of a part that only one side has
ABSTENTIONS = ("not_assessable", "indeterminate")


@dataclass(frozen=True, slots=True)
class Miss:
    """A part whose label is not the person's; `ABSENT` = the part is not there."""

    id: str
    part: str
    label: str
    gold: str
    finding: str


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of (gold label, label) over all parts of either side, and every miss."""

    num_reports: int
    counts: Counter[tuple[str, str]]
    misses: tuple[Miss, ...]

    @property
    def num_parts(self) -> int:
        """Parts of the person's list."""
        return sum(count for (gold, _), count in self.counts.items() if gold != ABSENT)

    @property
    def num_exact(self) -> int:
        return sum(count for (gold, label), count in self.counts.items() if gold == label)

    @property
    def num_confused(self) -> int:
        """Cancer called benign, or benign called cancer."""
        return self.counts["cancer", "benign"] + self.counts["benign", "cancer"]

    @property
    def num_spurious(self) -> int:
        return sum(count for (gold, _), count in self.counts.items() if gold == ABSENT)

    @property
    def num_missing(self) -> int:
        return sum(count for (_, label), count in self.counts.items() if label == ABSENT)

    @property
    def num_abstained(self) -> int:
        """Parts with a class in the person's list and none in ours."""
        return sum(
            count
            for (gold, label), count in self.counts.items()
            if label in ABSTENTIONS and gold not in (*ABSTENTIONS, ABSENT)
        )

    def lines(self) -> list[str]:
        """The figures as text."""
        share = 100 * self.num_exact / self.num_parts
        figures = [
            f"{self.num_reports:,} reports, {self.num_parts:,} parts: {self.num_exact:,} labels exact ({share:.1f} %)",
            f"cancer and benign confused {self.num_confused:,}, spurious parts {self.num_spurious:,}, "
            f"missing parts {self.num_missing:,}, abstained {self.num_abstained:,}",
        ]
        order = (*LABELS, ABSENT)
        wrong = [(gold, label) for gold in order for label in order if gold != label and self.counts[gold, label]]
        return figures + [f"  {gold} called {label}: {self.counts[gold, label]:,}" for gold, label in wrong]


def score_reports(path: Path, rules_name: Path | str) -> Score:
    """Label a file of reports and compare.

    Args:
        path: JSON lines {id, report_text, format, parts: [{part, label}]}.
    Raises:
        InputError: no such file, no lines, or a line without labels.
        ConfigError: as `load_rules`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"reports {path.name}: cannot be opened ({error.strerror}); give a JSON lines file") from None
    return score_lines((line for line in lines if line.strip()), rules_name, path.name)


def score_lines(lines: Iterable[str], rules_name: Path | str, name: str = "lines") -> Score:
    """As `score_reports`, of lines; `name` is what errors call them."""
    rules = load_rules(rules_name)
    counts: Counter[tuple[str, str]] = Counter()
    misses: list[Miss] = []
    num_reports = 0
    for number, line in enumerate(lines, 1):
        gold = _gold(line, name, number)
        num_reports += 1
        found = {answer["part"]: answer for answer in label_line(line, rules)}
        identifier = str(json.loads(line).get("id", number))
        for part in dict.fromkeys([*gold, *found]):
            label = found[part]["label"] if part in found else ABSENT
            counts[gold.get(part, ABSENT), label] += 1
            if gold.get(part, ABSENT) != label:
                finding = found[part]["finding"] if part in found else ""
                misses.append(Miss(identifier, part, label, gold.get(part, ABSENT), finding))
    if not num_reports:
        raise InputError(f"reports {name}: holds no lines; give one JSON object per line")
    return Score(num_reports, counts, tuple(misses))


def _gold(line: str, name: str, number: int) -> dict[str, str]:
    wanted = f"give {{id, report_text, format, parts: [{{part, label}}]}} with labels of {', '.join(LABELS)}"
    try:
        gold = {str(part["part"]): str(part["label"]) for part in json.loads(line)["parts"]}
    except (ValueError, TypeError, KeyError):
        raise InputError(f"reports {name}: line {number} has no labelled parts; {wanted}") from None
    if not gold or not set(gold.values()) <= set(LABELS):
        raise InputError(f"reports {name}: line {number} has a label that is not known, or none; {wanted}")
    return gold
