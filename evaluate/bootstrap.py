"""The patient bootstrap: one sort of the scores, then every draw is a vector of integer patient weights.

Patients are drawn with replacement within patient class (any positive row, or none), so class sizes stay fixed.
2,000 draws of 10,000 slides with area, average precision, sensitivities and the ROC band take about a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.interval import Clusters, cluster_rows
from evaluate.roc import Bools, Floats, NotDefinedError, Ranking, checked, interpolated, last_allowed, rank_scores

CHUNK_RESAMPLES = 200  # 200 draws x 10,000 slides x 4 bytes = 8 MB an array: stays near the cache
BAND_POINTS = 101  # false positive rates 0.00, 0.01, ... 1.00


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What the draws gave; a draw without both classes is NaN in every row and counted.

    Attributes:
        aurocs, average_precisions: [B].
        sensitivities: [B, S] at the `specificities` asked for, without interpolation.
        specificities: [B, Q] at the `at_sensitivities` asked for, without interpolation.
        band_rates: [G] false positive rates of the ROC band.
        band_low, band_high: [G] pointwise limits of the true positive rate.
        num_undefined: draws in which one class was absent.
    """

    aurocs: Floats
    average_precisions: Floats
    sensitivities: Floats
    specificities: Floats
    band_rates: Floats
    band_low: Floats
    band_high: Floats
    num_undefined: int


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    specificities: Sequence[float] = (0.90, 0.95),
    at_sensitivities: Sequence[float] = (0.95,),
    confidence: float = 0.95,
) -> Bootstrap:
    """Patient bootstrap of the area, the average precision, sensitivities and the whole ROC curve.

    Raises:
        NotDefinedError, InputError: as `evaluate.roc.auroc`; a missing patient is an InputError.
    """
    positive, values, _ = checked(labels, scores)
    clusters = cluster_rows(patients, positive)
    ranking = rank_scores(values)
    generator = np.random.default_rng(seed)
    rates = np.linspace(0, 1, BAND_POINTS)
    aurocs, precisions = np.full(num_resamples, np.nan), np.full(num_resamples, np.nan)
    sensitivities = np.full((num_resamples, len(specificities)), np.nan)
    reached = np.full((num_resamples, len(at_sensitivities)), np.nan)
    band = np.full((num_resamples, BAND_POINTS), np.nan, dtype=np.float32)
    for start in range(0, num_resamples, CHUNK_RESAMPLES):
        num = min(CHUNK_RESAMPLES, num_resamples - start)
        true, false = _resampled_counts(patient_weights(clusters, num, generator), clusters, positive, ranking)
        defined = np.flatnonzero((true[:, -1] > 0) & (false[:, -1] > 0))
        true, false = true[defined], false[defined]
        rows = start + defined
        aurocs[rows], precisions[rows] = _areas(true, false)
        for row, true_row, false_row in zip(rows, true / true[:, -1:], false / false[:, -1:], strict=True):
            curve_false, curve_true = np.append(np.float32(0), false_row), np.append(np.float32(0), true_row)
            sensitivities[row] = [curve_true[last_allowed(curve_false, goal - 1e-7)] for goal in specificities]
            positions = np.searchsorted(curve_true, np.asarray(at_sensitivities) - 1e-6, side="left")
            reached[row] = 1 - curve_false[positions]
            band[row] = interpolated(curve_false, curve_true, rates)
    num_undefined = int(np.isnan(aurocs).sum())
    if num_undefined == num_resamples:
        raise NotDefinedError("no bootstrap draw has both classes; too few patients")
    tails = [0.5 - confidence / 2, 0.5 + confidence / 2]
    low, high = np.nanquantile(band, tails, axis=0)
    return Bootstrap(aurocs, precisions, sensitivities, reached, rates, low, high, num_undefined)


def patient_weights(clusters: Clusters, num_resamples: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """[num_resamples, patients] how often each patient is drawn; class by class, so that class sizes stay fixed."""
    weights = np.zeros((num_resamples, clusters.num_patients), dtype=np.float32)
    for members in (np.flatnonzero(clusters.positive), np.flatnonzero(~clusters.positive)):
        if len(members):
            even = np.full(len(members), 1 / len(members))
            weights[:, members] = generator.multinomial(len(members), even, size=num_resamples)
    return weights


def percentile_interval(draws: Floats, confidence: float = 0.95) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _resampled_counts(
    weights: NDArray[np.float32], clusters: Clusters, positive: Bools, ranking: Ranking
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[C, g] weighted true and false positives at each distinct threshold; float32 is exact below 2^24 rows."""
    ordered = weights[:, clusters.codes[ranking.order]]
    all_called = np.cumsum(ordered, axis=1)[:, ranking.ends]
    ordered *= positive[ranking.order]
    true = np.cumsum(ordered, axis=1)[:, ranking.ends]
    return true, all_called - true


def _areas(true: NDArray[np.float32], false: NDArray[np.float32]) -> tuple[Floats, Floats]:
    num_true, num_false = true[:, -1].astype(np.float64), false[:, -1].astype(np.float64)
    false_steps = np.diff(false, axis=1, prepend=np.float32(0))
    true_steps = np.diff(true, axis=1, prepend=np.float32(0))
    middle = true - true_steps / 2
    aurocs = np.einsum("cg,cg->c", false_steps, middle, dtype=np.float64) / (num_true * num_false)
    called = true + false
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    return aurocs, np.einsum("cg,cg->c", true_steps, precision, dtype=np.float64) / num_true
