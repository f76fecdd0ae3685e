from typing import Any

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from evaluate.calibration import (
    brier_score,
    brier_skill,
    calibration_error,
    calibration_error_floor,
    recalibration,
    reliability,
    shift_prior,
)
from evaluate.roc import NotDefinedError


def sample(num: int = 2000, prevalence: float = 0.5, seed: int = 0) -> Any:
    """Scores that are true probabilities."""
    generator = np.random.default_rng(seed)
    scores = generator.beta(2, 2 / prevalence - 2, num)
    return generator.random(num) < scores, scores, np.arange(num)


def test_true_probabilities_have_slope_one_and_an_error_at_the_floor_of_chance() -> None:
    labels, scores, patients = sample(20_000)
    fit = recalibration(labels, scores, patients)
    assert fit.slope == pytest.approx(1, abs=0.05)
    assert fit.intercept == pytest.approx(0, abs=0.05)
    assert fit.slope_interval.low < 1 < fit.slope_interval.high
    assert calibration_error(labels, scores) < 2 * calibration_error_floor(scores) < 0.02


def test_few_rows_have_a_large_floor() -> None:
    _, scores, _ = sample(100)
    assert 0.06 < calibration_error_floor(scores) < 0.14


def test_recalibration_equals_unpenalised_logistic_regression() -> None:
    labels, scores, patients = sample(500, seed=2)
    wrong = np.clip(scores**2, 1e-6, 1 - 1e-6)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(wrong)[:, None], labels)
    fit = recalibration(labels, wrong, patients)
    assert fit.slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert fit.intercept == pytest.approx(model.intercept_[0], abs=1e-4)


def test_copied_slides_do_not_narrow_the_slope() -> None:
    labels, scores, patients = sample(300, seed=3)
    once = recalibration(labels, scores, patients).slope_interval
    copied = recalibration(np.repeat(labels, 5), np.repeat(scores, 5), np.repeat(patients, 5)).slope_interval
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-6)


def test_prior_shift_undoes_balanced_training() -> None:
    labels, scores, _ = sample(50_000, prevalence=0.13, seed=4)
    prevalence = labels.mean()
    odds = scores / (1 - scores) * (1 - prevalence) / prevalence  # what a model trained at 50:50 says
    balanced = odds / (1 + odds)
    assert calibration_error(labels, balanced) > 0.15
    shifted = shift_prior(balanced, 0.5, prevalence)
    np.testing.assert_allclose(shifted, scores, atol=1e-9)
    assert calibration_error(labels, shifted) < 0.01
    with pytest.raises(NotDefinedError, match="target prevalence 0"):
        shift_prior(scores, 0.5, 0.0)


def test_brier_equals_scikit_learn_and_the_prevalence_alone_has_no_skill() -> None:
    labels, scores, _ = sample(200)
    assert brier_score(labels, scores) == pytest.approx(brier_score_loss(labels, scores))
    assert brier_skill(labels, np.full(200, labels.mean())) == pytest.approx(0)


def test_bins_have_equal_size_and_never_split_a_tie() -> None:
    labels = np.array([0, 0, 1, 0, 1, 1, 0, 1])
    bins = reliability(labels, [0.1, 0.2, 0.3, 0.3, 0.3, 0.6, 0.7, 0.8], np.arange(8), num_bins=4)
    assert [(b.num_rows, round(b.mean_score, 3), round(b.observed, 3)) for b in bins] == [
        (2, 0.15, 0.0),
        (3, 0.3, 0.667),
        (1, 0.6, 1.0),
        (2, 0.75, 0.5),
    ]
    one = reliability([0, 1], [0.5, 0.5], ["a", "b"])
    assert [b.num_rows for b in one] == [2]


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], "separate the classes"),
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], "all scores are equal"),
        ([1, 1], [0.5, 0.6], "one class only"),
    ],
)
def test_a_slope_that_does_not_exist_is_not_defined(labels: Any, scores: Any, reason: str) -> None:
    with pytest.raises(NotDefinedError, match=reason):
        recalibration(labels, scores, np.arange(len(labels)))
