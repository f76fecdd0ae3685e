"""Do scores mean what they say: reliability, Brier score, calibration error with its floor, slope, and prior shift.

Training on a balanced sample (50:50 drawn from 13 %) leaves a mean score of 0.23 where 0.13 is true; adding one
constant to the log odds (`shift_prior`) mends it, and no re-training is needed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from evaluate.interval import Interval, cluster_rows, wilson_interval
from evaluate.roc import Floats, Ints, NotDefinedError, checked

CLIP = 1e-6  # scores of exactly 0 or 1 have no log odds; float32 sigmoids reach them
NUM_FLOOR_DRAWS = 200


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Rows of similar score; `low`, `high` are a Wilson interval of `observed` at the number of patients in the bin."""

    mean_score: float
    observed: float
    low: float
    high: float
    num_rows: int
    num_patients: int


@dataclass(frozen=True, slots=True)
class RecalibrationFit:
    """log odds(label) = intercept + slope * log odds(score); perfect is 0 and 1. Intervals are patient-robust."""

    intercept: float
    slope: float
    intercept_interval: Interval
    slope_interval: Interval


def reliability(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, num_bins: int = 10, confidence: float = 0.95
) -> list[ReliabilityBin]:
    """Bins of equal size in rising score; tied scores never straddle a border. Errors as `evaluate.roc.auroc`."""
    positive, values, _ = checked(labels, scores)
    codes = cluster_rows(patients, positive).codes
    bins = []
    for members in _bin_members(values, num_bins):
        observed = float(positive[members].mean())
        num_patients = len(np.unique(codes[members]))
        low, high = wilson_interval(observed, num_patients, confidence)
        bins.append(ReliabilityBin(float(values[members].mean()), observed, low, high, len(members), num_patients))
    return bins


def calibration_error(labels: ArrayLike, scores: ArrayLike, num_bins: int = 10) -> float:
    """Expected calibration error: mean absolute gap of the bins of `reliability`, weighted by size; 0..1."""
    positive, values, _ = checked(labels, scores)
    gaps = [abs(float(positive[m].mean() - values[m].mean())) * len(m) for m in _bin_members(values, num_bins)]
    return float(sum(gaps)) / len(values)


def calibration_error_floor(scores: ArrayLike, num_bins: int = 10, seed: int = 0) -> float:
    """Mean calibration error of a perfectly calibrated model with these scores: what chance alone gives.

    At 100 slides it is 0.09, at 10,000 it is 0.01: a calibration error means nothing without it. Rows are drawn
    independently, so with many slides a patient the true floor is higher.
    """
    values = np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = generator.random((NUM_FLOOR_DRAWS, len(values))) < values
    gaps = [np.abs((draws[:, m] - values[m]).mean(axis=1)) * len(m) for m in _bin_members(values, num_bins)]
    return float(np.sum(gaps, axis=0).mean()) / len(values)


def brier_score(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean squared distance of score and label; 0 is perfect."""
    positive, values, _ = checked(labels, scores)
    return float(np.mean((values - positive) ** 2))


def brier_with_interval(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """The Brier score with a patient-robust t interval, which is None for fewer than three patients."""
    positive, values, _ = checked(labels, scores)
    losses = (values - positive) ** 2
    clusters = cluster_rows(patients, positive)
    mean, num = float(losses.mean()), clusters.num_patients
    if num < 3:
        return mean, None
    sums = np.bincount(clusters.codes, losses - mean, num)
    error = float(np.sqrt(num / (num - 1) * (sums @ sums))) / len(losses)
    half = float(student.ppf(0.5 + confidence / 2, num - 1)) * error
    return mean, Interval(max(0.0, mean - half), min(1.0, mean + half), f"patient-robust t, {num} patients")


def brier_skill(labels: ArrayLike, scores: ArrayLike) -> float:
    """1 - Brier / Brier of always saying the prevalence; 1 is perfect, 0 no better than that, negative worse."""
    positive, values, _ = checked(labels, scores)
    prevalence = float(positive.mean())
    return 1 - brier_score(positive, values) / (prevalence * (1 - prevalence))


def recalibration(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, confidence: float = 0.95
) -> RecalibrationFit:
    """Logistic recalibration (Cox 1958) by Newton's method, with patient-robust (sandwich) intervals.

    Raises:
        NotDefinedError: one class, all scores equal, or scores that separate the classes (no finite slope).
    """
    positive, values, _ = checked(labels, scores)
    if np.all(values == values[0]):
        raise NotDefinedError("all scores are equal: no slope")
    low_positive, high_negative = values[positive].min(), values[~positive].max()
    if low_positive >= high_negative or values[positive].max() <= values[~positive].min():
        raise NotDefinedError("scores separate the classes: the slope is not finite")
    design = np.column_stack([np.ones(len(values)), logit(np.clip(values, CLIP, 1 - CLIP))])
    weights = np.array([logit(positive.mean()), 0.0])
    for _ in range(50):
        fitted = expit(design @ weights)
        information = design.T @ (design * (fitted * (1 - fitted))[:, None])
        step = np.linalg.solve(information, design.T @ (positive - fitted))
        weights += np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-10:
            break
    else:
        raise NotDefinedError("logistic recalibration did not converge; scores all but separate the classes")
    error = _robust_errors(design, positive - fitted, information, patients)
    half = float(norm.ppf(0.5 + confidence / 2))
    method = "patient-robust Wald"
    return RecalibrationFit(
        float(weights[0]),
        float(weights[1]),
        Interval(float(weights[0] - half * error[0]), float(weights[0] + half * error[0]), method),
        Interval(float(weights[1] - half * error[1]), float(weights[1] + half * error[1]), method),
    )


def shift_prior(scores: ArrayLike, trained_prevalence: float, target_prevalence: float) -> Floats:
    """Scores of a model trained at one prevalence, stated for another: one constant added to the log odds.

    Ranks and so every area under the curve stay as they are. Both prevalences lie inside 0..1.
    """
    for name, value in (("trained", trained_prevalence), ("target", target_prevalence)):
        if not 0 < value < 1:
            raise NotDefinedError(f"{name} prevalence {value}: it must lie between 0 and 1")
    values = np.asarray(scores, dtype=np.float64)
    shifted: Floats = expit(logit(values) + logit(target_prevalence) - logit(trained_prevalence))
    return shifted


def _robust_errors(design: Floats, residual: Floats, information: Floats, patients: ArrayLike) -> Floats:
    clusters = cluster_rows(patients, residual > 0)
    num = clusters.num_patients
    if num < 3:
        raise NotDefinedError(f"{num} patients are too few for an interval")
    sums = np.column_stack([np.bincount(clusters.codes, design[:, k] * residual, num) for k in range(2)])
    bread = np.linalg.inv(information)
    errors: Floats = np.sqrt(np.diag(bread @ (sums.T @ sums) @ bread) * num / (num - 1))
    return errors


def _bin_members(values: Floats, num_bins: int) -> list[Ints]:
    """Row positions of each non-empty bin; borders are moved up to the end of a group of ties."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    goals = {k * len(values) // num_bins for k in range(1, num_bins)} - {0}
    cuts = sorted({int(np.searchsorted(ordered, ordered[goal - 1], side="right")) for goal in goals})
    return [part for part in np.split(order, cuts) if len(part)]
