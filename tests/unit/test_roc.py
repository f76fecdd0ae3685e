from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from evaluate.roc import (
    NotDefinedError,
    auroc,
    average_precision,
    precision_recall_curve,
    roc_curve,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from ingest.errors import InputError

TIED = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=4, max_size=40).filter(
    lambda rows: {label for label, _, weight in rows if weight} == {True, False}
)


def pair_count(labels: Any, scores: Any) -> Any:
    positives = [s for y, s in zip(labels, scores, strict=True) if y]
    negatives = [s for y, s in zip(labels, scores, strict=True) if not y]
    won = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


def test_tied_scores_count_one_half() -> None:
    assert auroc([1, 0], [0.3, 0.3]) == 0.5
    assert auroc([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1]) == (1 + 1 + 0.5 + 1) / 4


@settings(max_examples=80, deadline=None)
@given(TIED)
def test_area_equals_the_pair_count_and_scikit_learn_with_ties_and_weights(rows: Any) -> None:
    labels, scores, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if len(set(labels)) == 2:
        assert auroc(labels, scores) == pytest.approx(pair_count(labels, scores), abs=1e-12)
        assert average_precision(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))
    assert auroc(labels, scores, weights) == pytest.approx(metrics.roc_auc_score(labels, scores, sample_weight=weights))
    kept = weights > 0
    expected = metrics.average_precision_score(labels[kept], scores[kept], sample_weight=weights[kept])
    assert average_precision(labels[kept], scores[kept], weights[kept]) == pytest.approx(expected)


def test_curves_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    labels, scores = generator.integers(0, 2, 200), np.round(generator.normal(size=200), 1)
    ours = roc_curve(labels, scores)
    false, true, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.false_positive_rates, false)
    np.testing.assert_allclose(ours.true_positive_rates, true)
    np.testing.assert_allclose(ours.thresholds, thresholds)
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    curve = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.precisions[::-1], precision[:-1])
    np.testing.assert_allclose(curve.recalls[::-1], recall[:-1])


def test_sensitivity_at_specificity_is_one_that_a_threshold_reaches() -> None:
    labels, scores = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], [*(k / 10 for k in range(10)), 0.85, 0.95]
    sensitivity, threshold = sensitivity_at_specificity(labels, scores, 0.9)
    assert (sensitivity, threshold) == (1.0, 0.85)
    called = np.array(scores) >= threshold
    assert called[:10].mean() == pytest.approx(0.1)
    assert sensitivity_at_specificity(labels, scores, 1.0) == (0.5, 0.95)
    assert specificity_at_sensitivity(labels, scores, 0.5)[0] == 1.0
    assert specificity_at_sensitivity(labels, scores, 0.95)[0] == pytest.approx(0.9)


def test_nothing_is_called_positive_when_no_threshold_is_specific_enough() -> None:
    assert sensitivity_at_specificity([0, 1], [0.9, 0.1], 0.95) == (0.0, np.inf)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([1, 1, 1], "one class only: all 3 are positive"), ([0, 0, 0], "all 3 are negative"), ([], "no rows")],
)
def test_one_class_is_not_defined_and_never_one_half(labels: Any, reason: str) -> None:
    for function in (auroc, average_precision, roc_curve, precision_recall_curve):
        with pytest.raises(NotDefinedError, match=reason):
            function(labels, [0.1, 0.5, 0.9][: len(labels)])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1, float("nan")], "1 of 2 scores are NaN"),
        ([0, 1], [0.1, float("inf")], "NaN or infinite"),
        ([0, 2], [0.1, 0.2], "1 of 2 labels are neither 0 nor 1"),
        ([0, float("nan")], [0.1, 0.2], "leave unknown labels out"),
        ([0, 1, 1], [0.1, 0.2], "one length"),
    ],
)
def test_bad_input_is_an_error_that_counts(labels: Any, scores: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        auroc(labels, scores)
