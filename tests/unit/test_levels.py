from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluate.levels import Rule, aggregate
from evaluate.roc import NotDefinedError


def rows(*values: Any) -> Any:
    frame = pd.DataFrame(values, columns=["slide_key", "specimen_key", "patient_key", "label", "score"])
    return frame.assign(split="test", fold=0, site=["x", "x", "y", "y"][: len(frame)])


FOUR = rows(("a", "A1", "A", 0, 0.5), ("b", "A1", "A", 1, 0.2), ("c", "A2", "A", 0, 0.1), ("d", "B1", "B", 0, 0.3))


@pytest.mark.parametrize(("rule", "score"), [("max", 0.5), ("mean", 0.35), ("noisy_or", 1 - 0.5 * 0.8)])
def test_a_specimen_score_follows_the_named_rule(rule: Rule, score: float) -> None:
    units = aggregate(FOUR, "specimen", rule).set_index("unit_key")
    assert units["score"].to_dict()["A1"] == pytest.approx(score)
    assert [units[name].to_dict()["A1"] for name in ("label", "num_slides", "patient_key")] == [1, 2, "A"]
    assert units["score"].to_dict()["B1"] == pytest.approx(0.3)


def test_a_patient_is_positive_when_any_slide_is() -> None:
    units = aggregate(FOUR, "patient").set_index("unit_key")
    assert units["label"].tolist() == [1, 0]
    assert units["num_slides"].tolist() == [3, 1]
    assert units["site"].tolist() == ["mixed", "y"]


def test_an_unknown_slide_leaves_a_unit_unknown_unless_another_is_positive() -> None:
    frame = rows(
        ("a", "A", "P", None, 0.5), ("b", "A", "P", 1, 0.2), ("c", "B", "P", None, 0.1), ("d", "B", "P", 0, 0.3)
    )
    units = aggregate(frame, "specimen").set_index("unit_key")
    assert units.loc["A", "label"] == 1
    assert np.isnan(units["label"]["B"])


def test_a_certain_slide_makes_noisy_or_certain_without_a_warning() -> None:
    frame = rows(("a", "A", "P", 1, 1.0), ("b", "A", "P", 1, 0.2))
    assert aggregate(frame, "patient", "noisy_or")["score"].tolist() == [1.0]


def test_a_missing_specimen_is_not_defined_rather_than_guessed() -> None:
    frame = FOUR.assign(specimen_key=[None, "A1", "A2", "B1"])
    with pytest.raises(NotDefinedError, match="specimen level needs specimen_key; it is missing in 1 of 4"):
        aggregate(frame, "specimen")
