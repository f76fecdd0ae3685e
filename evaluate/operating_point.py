"""One threshold, chosen on the tune split, frozen, and applied unchanged to the test split.

A threshold chosen on the slides it is judged on flatters itself; so the split it was chosen on travels with it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from evaluate.interval import Interval, proportion_interval
from evaluate.roc import Bools, Floats, NotDefinedError, roc_curve
from ingest.atomic import atomic_file
from ingest.config import Section

Target = Literal["sensitivity", "specificity", "youden", "threshold"]


class OperatingPointConfig(Section):
    target: Target = "sensitivity"  # what is promised on tune; "youden" = best sum; "threshold" = `value` itself
    value: float = Field(default=0.95, ge=0, le=1)  # the promise, or the score when target = "threshold"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Positive means score >= threshold; sensitivity and specificity are those on the split it was chosen on."""

    threshold: float
    rule: str
    chosen_on: str
    sensitivity: float | None
    specificity: float | None
    num_units: int
    num_patients: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of rows at a threshold."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


def choose_operating_point(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, config: OperatingPointConfig, chosen_on: str
) -> OperatingPoint:
    """The threshold that keeps the promise on these rows at the least cost to the other side.

    It lies midway between two neighbouring scores, so that nobody's own score is the border.

    Raises:
        NotDefinedError: one class, or no threshold keeps the promise.
    """
    if config.target == "threshold":
        return OperatingPoint(config.value, f"threshold {config.value:g} given", "given beforehand", None, None, 0, 0)
    curve = roc_curve(labels, scores)
    sensitivity, specificity = curve.true_positive_rates, 1 - curve.false_positive_rates
    if config.target == "sensitivity":
        position, rule = int(np.argmax(sensitivity >= config.value - 1e-9)), f"sensitivity >= {config.value:g}"
    elif config.target == "specificity":
        allowed = np.flatnonzero(specificity >= config.value - 1e-9)
        position, rule = int(allowed[-1]), f"specificity >= {config.value:g}"
    else:
        position, rule = int(np.argmax(sensitivity + specificity)), "largest sensitivity + specificity"
    if position == 0:
        raise NotDefinedError(f"no threshold of the {chosen_on} rows reaches {rule} and calls anything positive")
    threshold = float(curve.thresholds[position])
    if position + 1 < len(curve.thresholds):
        middle = (threshold + float(curve.thresholds[position + 1])) / 2
        threshold = middle if middle > curve.thresholds[position + 1] else threshold
    num_patients = len(set(np.asarray(patients, dtype=object)))
    return OperatingPoint(
        threshold, rule, chosen_on, float(sensitivity[position]), float(specificity[position]),
        len(np.asarray(scores)), num_patients,
    )  # fmt: skip


def confusion(positive: Bools, scores: Floats, threshold: float) -> Confusion:
    called = scores >= threshold
    return Confusion(
        int(np.sum(called & positive)),
        int(np.sum(called & ~positive)),
        int(np.sum(~called & positive)),
        int(np.sum(~called & ~positive)),
    )


def share(part: Bools, of: Bools, patients: ArrayLike, what: str, confidence: float = 0.95) -> tuple[float, Interval]:
    """Share of the rows `of` that are also `part`, with its interval; NotDefinedError when `of` is empty."""
    if not of.any():
        raise NotDefinedError(f"no {what} rows")
    rows = np.asarray(patients, dtype=object)[of]
    return float(part[of].mean()), proportion_interval(part[of], rows, confidence)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Positive and negative predictive value at a stated prevalence, by Bayes' rule.

    Raises:
        NotDefinedError: nothing is ever called positive (or negative) at these rates.
    """
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    if not 0 < called < 1:
        raise NotDefinedError("every case falls on one side of the threshold")
    return sensitivity * prevalence / called, specificity * (1 - prevalence) / (1 - called)


def write_operating_point(point: OperatingPoint, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(point), indent=2, sort_keys=True) + "\n", encoding="utf-8")
