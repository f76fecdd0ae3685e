"""Areas and curves of one score against one binary label; tied scores count one half.

Everything here is a function of three arrays of length n: labels (0 or 1), scores (higher means more positive) and
optional weights. What cannot be computed raises `NotDefinedError` with the reason: no value is ever made up.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ingest.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class NotDefinedError(InputError):
    """The quantity does not exist for these data, for example an area under the curve with one class."""


@dataclass(frozen=True, slots=True)
class RocCurve:
    """Points of the curve from (0, 0) to (1, 1); positive means score >= threshold, the first threshold is inf."""

    false_positive_rates: Floats
    true_positive_rates: Floats
    thresholds: Floats


@dataclass(frozen=True, slots=True)
class PrecisionRecallCurve:
    """One point for each distinct score, from the highest threshold down; recall does not fall."""

    precisions: Floats
    recalls: Floats
    thresholds: Floats


@dataclass(frozen=True, slots=True)
class Ranking:
    """One sort, used by every curve and every resample.

    Attributes:
        order: [n] positions from the highest score to the lowest.
        ends: [g] index into `order` of the last member of each group of tied scores.
        thresholds: [g] the distinct scores, falling.
    """

    order: Ints
    ends: Ints
    thresholds: Floats


def rank_scores(scores: Floats) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1).astype(np.int64)
    return Ranking(order, ends, ordered[ends])


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The chance that a positive scores above a negative, ties counted one half; in [0, 1].

    Raises:
        NotDefinedError: one of the two classes is absent or has no weight.
        InputError: a score is not finite, a label is not 0 or 1, or the lengths differ.
    """
    true, false = _cumulated(*checked(labels, scores, weights))
    steps = np.diff(false, prepend=0.0)
    before = np.concatenate([[0.0], true[:-1]])
    return float(np.sum(steps * (true + before)) / (2.0 * true[-1] * false[-1]))


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Step-wise area under the precision-recall curve (no interpolation, as in scikit-learn); errors as `auroc`."""
    true, false = _cumulated(*checked(labels, scores, weights))
    return float(np.sum(np.diff(true, prepend=0.0) * true / (true + false)) / true[-1])


def roc_curve(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> RocCurve:
    """Every distinct threshold of the scores; errors as `auroc`."""
    valid = checked(labels, scores, weights)
    true, false = _cumulated(*valid)
    return RocCurve(
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], rank_scores(valid[1]).thresholds]),
    )


def precision_recall_curve(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> PrecisionRecallCurve:
    """Every distinct threshold of the scores; errors as `auroc`."""
    valid = checked(labels, scores, weights)
    true, false = _cumulated(*valid)
    return PrecisionRecallCurve(true / (true + false), true / true[-1], rank_scores(valid[1]).thresholds)


def sensitivity_at_specificity(labels: ArrayLike, scores: ArrayLike, specificity: float) -> tuple[float, float]:
    """Best sensitivity among thresholds whose specificity is at least `specificity`, and that threshold.

    No interpolation: the pair is one that a user can switch on. The threshold is inf when only "call nothing
    positive" is specific enough. Errors as `auroc`.
    """
    curve = roc_curve(labels, scores)
    position = last_allowed(curve.false_positive_rates, specificity)
    return float(curve.true_positive_rates[position]), float(curve.thresholds[position])


def specificity_at_sensitivity(labels: ArrayLike, scores: ArrayLike, sensitivity: float) -> tuple[float, float]:
    """Best specificity among thresholds whose sensitivity is at least `sensitivity`, and that threshold."""
    curve = roc_curve(labels, scores)
    position = int(np.searchsorted(curve.true_positive_rates, sensitivity - 1e-12, side="left"))
    return float(1.0 - curve.false_positive_rates[position]), float(curve.thresholds[position])


def interpolated(false_rates: NDArray[Any], true_rates: NDArray[Any], at: Floats) -> Floats:
    """Height of a curve at false positive rates `at`: the top of a vertical step, a straight line between points."""
    before = np.searchsorted(false_rates, at + 1e-7, side="right") - 1  # 1e-7: the draws are float32
    after = np.minimum(before + 1, len(false_rates) - 1)
    gap = false_rates[after] - false_rates[before]
    share = np.divide(at - false_rates[before], gap, out=np.zeros(len(at)), where=gap > 0)
    heights: Floats = true_rates[before] + np.clip(share, 0, 1) * (true_rates[after] - true_rates[before])
    return heights


def last_allowed(false_positive_rates: NDArray[Any], specificity: float) -> int:
    """Index of the most sensitive point that still has `specificity`; 1e-9 forgives the rounding of 1 - 0.9."""
    return int(np.searchsorted(false_positive_rates, 1.0 - specificity + 1e-9, side="right")) - 1


def checked(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[Bools, Floats, Floats]:
    """The three arrays, valid and of one length; weights are 1 when not given.

    Raises:
        NotDefinedError, InputError: as `auroc`.
    """
    given = np.asarray(labels, dtype=np.float64)
    values = np.asarray(scores, dtype=np.float64)
    mass = np.ones(len(given)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not given.shape == values.shape == mass.shape or given.ndim != 1:
        raise InputError(
            f"labels {given.shape}, scores {values.shape}, weights {mass.shape}: give flat arrays of one length"
        )
    if num_bad := int(np.sum(~np.isfinite(values))):
        raise InputError(
            f"{num_bad} of {len(values)} scores are NaN or infinite; predict these again or leave them out"
        )
    if num_bad := int(np.sum((given != 0) & (given != 1))):
        raise InputError(f"{num_bad} of {len(given)} labels are neither 0 nor 1; leave unknown labels out")
    positive = given == 1
    require_two_classes(positive, mass)
    return positive, values, mass


def require_two_classes(positive: Bools, weights: Floats | None = None) -> None:
    """Raises NotDefinedError when the positives or the negatives are absent, and says which."""
    mass = np.ones(len(positive)) if weights is None else weights
    num_positive, num_negative = int(np.sum(mass[positive] > 0)), int(np.sum(mass[~positive] > 0))
    if num_positive and num_negative:
        return
    if not num_positive and not num_negative:
        raise NotDefinedError("no rows with a known label")
    present, absent = ("positive", "negative") if num_positive else ("negative", "positive")
    raise NotDefinedError(f"one class only: all {num_positive + num_negative} are {present}, none is {absent}")


def _cumulated(positive: Bools, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """True and false positives (weighted) at each distinct threshold, from the highest down."""
    ranking = rank_scores(scores)
    true = np.cumsum((weights * positive)[ranking.order])[ranking.ends]
    false = np.cumsum((weights * ~positive)[ranking.order])[ranking.ends]
    return true, false
