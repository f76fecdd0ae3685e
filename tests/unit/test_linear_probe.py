"""Probes on features whose truth is known: made up with numpy, judged by scikit-learn and by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from evaluate.interval import auroc_interval
from evaluate.linear_probe import (
    choose_cost,
    linear_probe,
    nearest_neighbours,
    patient_folds,
    require_whole_patients,
)
from evaluate.roc import Floats, Ints, auroc
from ingest.errors import GateError, InputError

NUM_PATIENTS, PER_PATIENT = 40, 8


def rows(signal: float, seed: int = 0, patient_spread: float = 1.0) -> tuple[Floats, Ints, NDArray[np.str_]]:
    """320 rows of 40 patients, 10 features on very different scales; the first one carries the label."""
    generator = np.random.default_rng(seed)
    patients = np.repeat([f"p{number:02d}" for number in range(NUM_PATIENTS)], PER_PATIENT)
    labels = (
        generator.random(len(patients)) < np.repeat(generator.uniform(0.1, 0.5, NUM_PATIENTS), PER_PATIENT)
    ).astype(np.int64)
    features = generator.normal(size=(len(patients), 10))
    features += np.repeat(generator.normal(0, patient_spread, (NUM_PATIENTS, 10)), PER_PATIENT, axis=0)
    features[:, 0] += signal * labels
    return features * 10.0 ** np.arange(-4, 6), labels, patients


def test_a_patient_stands_on_one_side_of_every_fold_and_every_row_is_tested_once() -> None:
    _, labels, patients = rows(1.0)
    folds = patient_folds(labels, patients, 5, seed=3)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(labels)))
    for train, test in folds:
        assert not set(patients[train]) & set(patients[test])
        assert sorted([*train, *test]) == list(range(len(labels)))
    assert [list(test) for _, test in folds] != [list(test) for _, test in patient_folds(labels, patients, 5, seed=4)]


def test_folds_with_a_patient_on_both_sides_are_refused_whoever_made_them() -> None:
    features, labels, patients = rows(1.0)
    order = np.random.default_rng(0).permutation(len(labels))
    mixed = [(order[:200], order[200:])]
    with pytest.raises(GateError, match="stands on both sides"):
        require_whole_patients(patients, mixed)
    with pytest.raises(GateError, match="stands on both sides"):
        nearest_neighbours(features, labels, patients, mixed, 5)
    with pytest.raises(GateError, match="stands on both sides"):
        linear_probe(features, labels, patients, mixed, [1.0], 3, 0)


def test_the_linear_probe_is_scikit_learns_on_each_fold() -> None:
    features, labels, patients = rows(1.5)
    folds = patient_folds(labels, patients, 4, seed=0)
    found = linear_probe(features, labels, patients, folds, [0.1], 3, seed=0)
    assert found.chosen_costs == (0.1,) * 4
    for (train, test), area in zip(folds, found.fold_aurocs, strict=True):
        scaler = StandardScaler().fit(features[train])
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(features[train]), labels[train])
        expected = roc_auc_score(labels[test], model.decision_function(scaler.transform(features[test])))
        assert area == pytest.approx(expected, abs=1e-9)
        assert roc_auc_score(labels[test], found.scores[test]) == pytest.approx(expected, abs=1e-9)
        assert sorted(found.scores[test]) == pytest.approx((np.arange(len(test)) + 0.5) / len(test))


def test_both_probes_find_a_signal_and_standardisation_makes_the_scale_of_a_feature_irrelevant() -> None:
    features, labels, patients = rows(2.5, patient_spread=0.3)
    folds = patient_folds(labels, patients, 5, seed=0)
    ones = np.ones_like(features)
    scale = 10.0 ** np.random.default_rng(1).uniform(-3, 3, features.shape[1])
    linear = linear_probe(features, labels, patients, folds, [0.01, 1.0], 3, seed=0)
    assert auroc(labels, linear.scores) > 0.9
    assert auroc(labels, nearest_neighbours(features, labels, patients, folds, 20).scores) > 0.75
    again = linear_probe(features * scale + ones, labels, patients, folds, [0.01, 1.0], 3, seed=0)
    assert again.fold_aurocs == pytest.approx(linear.fold_aurocs, abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_give_an_area_whose_interval_covers_one_half(seed: int) -> None:
    features, labels, patients = rows(2.5, seed=seed)
    labels = np.random.default_rng(seed).permutation(labels)
    folds = patient_folds(labels, patients, 5, seed=0)
    for found in (
        linear_probe(features, labels, patients, folds, [0.01, 1.0], 3, seed=0),
        nearest_neighbours(features, labels, patients, folds, 20),
    ):
        interval = auroc_interval(labels, found.scores, patients)
        assert interval.low < 0.5 < interval.high


def test_pooling_scores_of_folds_without_signal_has_no_bias_where_raw_probabilities_have_one() -> None:
    """A model without any signal predicts the share of positives on its training side: high where its test fold has few."""
    generator = np.random.default_rng(0)
    raw, ranked = [], []
    for seed in range(30):
        labels = (generator.random(60) < 0.3).astype(np.int64)
        patients = np.array([f"p{number:02d}" for number in range(60)])
        features = generator.normal(size=(60, 3))
        folds = [(np.setdiff1d(np.arange(60), test), test) for test in np.array_split(generator.permutation(60), 10)]
        ranked.append(auroc(labels, linear_probe(features, labels, patients, folds, [1e-4], 2, seed).scores))
        probabilities = np.empty(60)
        for train, test in folds:
            model = LogisticRegression(C=1e-4).fit(features[train], labels[train])
            probabilities[test] = model.predict_proba(features[test])[:, 1]
        raw.append(auroc(labels, probabilities))
    assert np.mean(raw) < 0.35
    assert np.mean(ranked) == pytest.approx(0.5, abs=0.05)


def test_the_cost_is_chosen_inside_and_does_not_move_with_the_labels_that_report() -> None:
    features, labels, patients = rows(1.0, seed=5)
    folds = patient_folds(labels, patients, 3, seed=0)
    train, test = folds[0]
    costs = [1e-4, 1e-2, 1.0]
    found = linear_probe(features, labels, patients, folds, costs, 3, seed=0)
    assert found.chosen_costs[0] == choose_cost(features[train], labels[train], patients[train], costs, 3, 0)
    turned = labels.copy()
    turned[test] = 1 - turned[test]
    changed = linear_probe(features, turned, patients, [folds[0]], costs, 3, seed=0)
    assert changed.chosen_costs[0] == found.chosen_costs[0]
    assert changed.scores[test] == pytest.approx(found.scores[test])
    assert changed.fold_aurocs[0] == pytest.approx(1 - found.fold_aurocs[0])


def test_the_nearest_neighbour_alone_decides_with_k_of_one() -> None:
    features = np.array([[1, 0.1], [0, 1], [1, 0], [0.1, 1.0], [1, -0.1], [-0.1, 1]])
    labels = np.array([1, 0, 1, 0, 1, 0])
    patients = np.array(["a", "a", "b", "b", "c", "c"])
    found = nearest_neighbours(features, labels, patients, [(np.arange(4), np.array([4, 5]))], 1)
    assert found.scores[4] > found.scores[5]
    assert found.fold_aurocs == (1.0,)


def test_too_few_patients_of_a_class_are_refused_with_both_numbers() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    patients = np.array(list("aaabcde"))
    with pytest.raises(InputError, match="4 patients have rows of class 0, 5 folds need one each"):
        patient_folds(labels, patients, 5, seed=0)
