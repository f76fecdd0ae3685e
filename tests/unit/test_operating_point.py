import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluate.operating_point import (
    OperatingPoint,
    OperatingPointConfig,
    Target,
    choose_operating_point,
    confusion,
    predictive_values,
    share,
    write_operating_point,
)
from evaluate.roc import NotDefinedError

LABELS = [0, 0, 0, 1, 0, 1, 1, 1]
SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def choose(target: Target, value: float = 0.95, labels: Any = LABELS, scores: Any = SCORES) -> OperatingPoint:
    return choose_operating_point(
        labels, scores, range(len(scores)), OperatingPointConfig(target=target, value=value), "tune"
    )


@pytest.mark.parametrize(
    ("target", "value", "threshold", "sensitivity", "specificity"),
    [
        ("sensitivity", 1.0, 0.35, 1.0, 0.75),
        ("sensitivity", 0.75, 0.55, 0.75, 1.0),
        ("specificity", 1.0, 0.55, 0.75, 1.0),
        ("specificity", 0.7, 0.35, 1.0, 0.75),
        ("youden", 0.0, 0.55, 0.75, 1.0),
    ],
)
def test_the_promise_is_kept_at_the_least_cost_midway_between_scores(
    target: Target, value: float, threshold: float, sensitivity: float, specificity: float
) -> None:
    point = choose(target, value)
    assert (point.sensitivity, point.specificity) == (sensitivity, specificity)
    assert point.threshold == pytest.approx(threshold)
    assert (point.chosen_on, point.num_units) == ("tune", 8)


def test_a_given_threshold_is_not_chosen_on_anything() -> None:
    point = choose("threshold", 0.5, labels=[], scores=[])
    assert (point.threshold, point.chosen_on, point.sensitivity) == (0.5, "given beforehand", None)


def test_an_impossible_promise_or_one_class_is_not_defined() -> None:
    with pytest.raises(NotDefinedError, match=r"no threshold of the tune rows reaches specificity >= 0\.95"):
        choose("specificity", labels=[0, 1], scores=[0.9, 0.1])
    with pytest.raises(NotDefinedError, match="one class only"):
        choose("sensitivity", labels=[1, 1], scores=[0.9, 0.1])


def test_counts_and_shares_are_those_of_the_threshold() -> None:
    positive, scores = np.array(LABELS) == 1, np.array(SCORES)
    counts = confusion(positive, scores, 0.45)
    assert (counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative) == (3, 1, 1, 3)
    value, interval = share(scores >= 0.45, positive, np.arange(8), "positive")
    assert value == 0.75
    assert interval.low < 0.75 < interval.high
    with pytest.raises(NotDefinedError, match="no positive rows"):
        share(positive, np.zeros(8, dtype=bool), np.arange(8), "positive")


def test_predictive_values_follow_bayes() -> None:
    ppv, npv = predictive_values(0.9, 0.8, 0.1)
    assert (ppv, npv) == pytest.approx((0.09 / 0.27, 0.72 / 0.73))
    with pytest.raises(NotDefinedError, match="one side"):
        predictive_values(1.0, 0.0, 0.1)


def test_a_point_is_written_as_it_is(tmp_path: Path) -> None:
    point = choose("youden")
    write_operating_point(point, tmp_path / "operating_point.json")
    assert OperatingPoint(**json.loads((tmp_path / "operating_point.json").read_text())) == point
