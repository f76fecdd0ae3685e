"""Review: the sample is fair and blind, and the figures equal those of independent formulas."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score

from ingest.errors import ConfigError, GateError
from ingest.review import (
    LABELS,
    ReviewConfig,
    allocate,
    assess,
    draw_sample,
    require_accuracy,
    weighted_kappa,
    wilson,
)


def specimens(num_benign: int = 90, num_cancer: int = 10) -> pa.Table:
    labels = ["benign"] * num_benign + ["cancer"] * num_cancer
    return pa.table({"specimen_key": [f"s{number:03}" for number in range(len(labels))], "label": labels})


def sample_of(*rows: tuple[str, str, str, float]) -> pa.Table:
    return pa.table(dict(zip(("specimen_key", "label", "stratum", "weight"), zip(*rows, strict=True), strict=True)))


def test_every_stratum_is_seen_and_weights_give_back_its_size() -> None:
    sample = draw_sample(specimens(), 20, ("label",), seed=1)
    drawn = Counter(sample["label"].to_pylist())
    assert drawn.total() == 20
    assert drawn["cancer"] > 2  # its plain share would be 2
    for label, size in (("benign", 90), ("cancer", 10)):
        weights = [row["weight"] for row in sample.to_pylist() if row["label"] == label]
        assert sum(weights) == pytest.approx(size)


def test_sample_does_not_depend_on_row_order_but_on_the_seed() -> None:
    table = specimens()
    reversed_table = table.take(list(reversed(range(table.num_rows))))
    first = draw_sample(table, 20, ("label",), seed=1)
    assert draw_sample(reversed_table, 20, ("label",), seed=1) == first
    assert draw_sample(table, 20, ("label",), seed=2) != first


@pytest.mark.parametrize(
    ("sizes", "num", "expected"),
    [
        ({"a": 100, "b": 1}, 2, {"a": 1, "b": 1}),
        ({"a": 100, "b": 1}, 1, {"a": 1, "b": 0}),
        ({"a": 3, "b": 2}, 50, {"a": 3, "b": 2}),
        ({"a": 100, "b": 25}, 15, {"a": 10, "b": 5}),
        ({}, 5, {}),
    ],
)
def test_allocation_is_one_each_then_by_square_root(sizes: dict[str, int], num: int, expected: dict[str, int]) -> None:
    assert allocate(sizes, num) == expected


def test_unknown_column_to_stratify_by_is_named() -> None:
    with pytest.raises(ConfigError, match="no column organ"):
        draw_sample(specimens(), 5, ("organ",), seed=1)


def test_ppv_npv_and_confusion_of_a_small_sheet_by_hand() -> None:
    sample = sample_of(
        ("a", "cancer", "c", 1.0), ("b", "cancer", "c", 1.0), ("c", "cancer", "c", 1.0), ("d", "cancer", "c", 1.0),
        ("e", "benign", "b", 1.0), ("f", "benign", "b", 1.0),
    )  # fmt: skip
    gold = {"a": "cancer", "b": "cancer", "c": "cancer", "d": "benign", "e": "benign", "f": "benign"}
    result = assess(sample, gold, {}, seed=1)
    assert (result.ppv.value, result.ppv.num_specimens) == (0.75, 4)
    assert (result.npv.value, result.npv.num_specimens) == (1.0, 2)
    assert result.confusion["cancer"] == {**dict.fromkeys(LABELS, 0), "cancer": 3, "benign": 1}
    assert result.kappa.value == pytest.approx(cohen_kappa_score(list("cccc") + list("bb"), list("cccb") + list("bb")))
    assert result.kappa.value is not None
    assert result.kappa.low is not None
    assert result.kappa.high is not None
    assert result.kappa.low <= result.kappa.value <= result.kappa.high
    assert json.loads(result.to_json())["ppv"]["value"] == 0.75


def test_dense_strata_do_not_bias_the_share() -> None:
    # A rare rule, wrong in 5 of 5 read cases, stands for 5 specimens; a common one, right in 5 of 5, for 95.
    rows = [(f"r{number}", "cancer", "rare", 1.0) for number in range(5)]
    rows += [(f"c{number}", "cancer", "common", 19.0) for number in range(5)]
    gold = {f"r{number}": "benign" for number in range(5)} | {f"c{number}": "cancer" for number in range(5)}
    result = assess(sample_of(*rows), gold, {}, seed=1)
    assert result.ppv.value == pytest.approx(0.95)
    assert result.ppv.low is not None
    assert result.ppv.low < 0.6  # five common ones carry it: the interval knows


def test_unread_specimens_are_stood_for_by_the_read_ones_of_their_stratum() -> None:
    rows = [("a", "cancer", "x", 10.0), ("b", "cancer", "x", 10.0), ("c", "cancer", "y", 20.0)]
    result = assess(sample_of(*rows), {"a": "cancer", "c": "benign"}, {}, seed=1)
    assert result.ppv.value == pytest.approx(0.5)
    assert (result.num_exported, result.num_read) == (3, 2)


def test_wilson_interval_of_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(1.0, 20)[1] == 1.0
    assert wilson(0.0, 20)[0] == 0.0


def test_weighted_kappa_equals_scikit_learn_on_repeated_rows() -> None:
    generator = np.random.default_rng(5)
    predicted, truth = generator.integers(0, 5, (2, 80))
    weights = generator.integers(1, 4, 80)
    expected = cohen_kappa_score(np.repeat(predicted, weights), np.repeat(truth, weights))
    assert weighted_kappa(predicted, truth, weights.astype(float)) == pytest.approx(expected)


def test_interval_of_kappa_holds_the_truth_about_as_often_as_it_says() -> None:
    # 100 sheets of 60 specimens, each label right with probability 0.8 on two equally common labels: kappa is 0.6.
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        predicted = generator.integers(0, 2, 60)
        truth = np.where(generator.random(60) < 0.8, predicted, 1 - predicted)
        names = np.array(["cancer", "benign"])
        rows = [(str(number), str(names[label]), str(names[label]), 1.0) for number, label in enumerate(predicted)]
        gold = {str(number): str(names[label]) for number, label in enumerate(truth)}
        kappa = assess(sample_of(*rows), gold, {}, seed=1).kappa
        assert kappa.low is not None
        assert kappa.high is not None
        held += kappa.low <= 0.6 <= kappa.high
    assert 88 <= held <= 100


def test_gate_stops_on_low_accuracy_and_on_none() -> None:
    sample = sample_of(("a", "cancer", "c", 1.0), ("b", "benign", "b", 1.0))
    config = ReviewConfig(min_ppv=0.9, min_npv=0.9)
    require_accuracy(assess(sample, {"a": "cancer", "b": "benign"}, {}, seed=1), config)
    with pytest.raises(GateError, match=r"NPV 0\.000 .* is below 0\.9"):
        require_accuracy(assess(sample, {"a": "cancer", "b": "cancer"}, {}, seed=1), config)
    with pytest.raises(GateError, match="no NPV, because no specimen of that label was read"):
        require_accuracy(assess(sample, {"a": "cancer"}, {}, seed=1), config)
    assert assess(sample, {}, {}, seed=1).kappa.value is None
