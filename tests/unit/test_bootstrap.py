from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluate.bootstrap import bootstrap, patient_weights, percentile_interval
from evaluate.interval import cluster_rows, clustered_delong
from evaluate.roc import NotDefinedError, roc_curve, sensitivity_at_specificity


def cohort(num_patients: int = 40, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 1 + generator.poisson(2, num_patients))
    labels = patients % 3 == 0
    scores = np.round(generator.normal(size=len(patients)) + labels, 1)
    return labels, scores, patients


def test_every_draw_equals_scikit_learn_with_the_same_weights() -> None:
    labels, scores, patients = cohort()
    drawn = bootstrap(labels, scores, patients, num_resamples=30, seed=4)
    clusters = cluster_rows(patients, labels)
    weights = patient_weights(clusters, 30, np.random.default_rng(4))
    for k in range(30):
        rows = weights[k, clusters.codes]
        kept = rows > 0
        assert drawn.aurocs[k] == pytest.approx(roc_auc_score(labels, scores, sample_weight=rows), abs=1e-6)
        expected = average_precision_score(labels[kept], scores[kept], sample_weight=rows[kept])
        assert drawn.average_precisions[k] == pytest.approx(expected, abs=1e-6)
        repeated = np.repeat(np.arange(len(labels)), rows.astype(int))
        expected, _ = sensitivity_at_specificity(labels[repeated], scores[repeated], 0.9)
        assert drawn.sensitivities[k, 0] == pytest.approx(expected, abs=1e-6)


def test_a_patient_is_drawn_whole_and_class_sizes_stay_fixed() -> None:
    labels, _, patients = cohort()
    clusters = cluster_rows(patients, labels)
    weights = patient_weights(clusters, 50, np.random.default_rng(0))
    assert (weights[:, clusters.positive].sum(axis=1) == clusters.positive.sum()).all()
    assert (weights.sum(axis=1) == clusters.num_patients).all()


def test_spread_of_the_draws_agrees_with_the_clustered_variance() -> None:
    labels, scores, patients = cohort(300, seed=2)
    drawn = bootstrap(labels, scores, patients, num_resamples=1000, seed=1)
    _, covariance = clustered_delong(labels, patients, scores)
    assert drawn.aurocs.std() == pytest.approx(np.sqrt(covariance[0, 0]), rel=0.08)


def test_the_band_holds_the_curve_and_rises() -> None:
    labels, scores, patients = cohort(100, seed=3)
    drawn = bootstrap(labels, scores, patients, num_resamples=400)
    curve = roc_curve(labels, scores)
    on_grid = np.interp(drawn.band_rates[1:-1], curve.false_positive_rates, curve.true_positive_rates)
    assert (drawn.band_low[1:-1] <= on_grid + 0.02).all()
    assert (drawn.band_high[1:-1] >= on_grid - 0.02).all()
    assert (np.diff(drawn.band_low) >= -1e-6).all()
    assert drawn.band_high[-1] == pytest.approx(1.0)


def test_one_seed_gives_one_answer() -> None:
    first, second = (bootstrap(*cohort(), num_resamples=200, seed=9).aurocs for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert percentile_interval(first) == percentile_interval(second)


def test_draws_without_both_classes_are_counted_and_left_out() -> None:
    labels, patients = np.array([1, 0, 1, 1]), np.array(["a", "a", "b", "c"])  # only "a" has a negative
    drawn = bootstrap(labels, [0.9, 0.2, 0.8, 0.1], patients, num_resamples=300)
    assert drawn.num_undefined == np.isnan(drawn.aurocs).sum() > 0
    assert np.isfinite(percentile_interval(drawn.aurocs)).all()
    with pytest.raises(NotDefinedError, match="one class only"):
        bootstrap([1, 1], [0.1, 0.2], ["a", "b"])
