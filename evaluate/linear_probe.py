"""Linear probe and nearest neighbours on frozen features: patients in folds, everything fitted on the training side only.

Scores of different folds come from different models. Only their order within a fold means something, so the score of a
row is its mid-rank within its test fold, in 0 .. 1: pooled, it has no bias against folds with few positives, as pooled
probabilities have (shuffled labels give less than 0.5 there).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from evaluate.roc import Floats, Ints, NotDefinedError, auroc
from ingest.errors import GateError, InputError

Fold = tuple[Ints, Ints]  # rows of the training side, rows of the test side


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScores:
    """Out-of-fold scores.

    Attributes:
        scores: [n] mid-rank within the test fold, in 0 .. 1.
        fold_aurocs: one for each fold with both classes.
        chosen_costs: C of each outer fold, from its inner folds; empty for nearest neighbours.
    """

    scores: Floats
    fold_aurocs: tuple[float, ...]
    chosen_costs: tuple[float, ...] = ()


def patient_folds(labels: Ints, patients: NDArray[np.str_], num_folds: int, seed: int) -> list[Fold]:
    """Folds in which every patient stands on one side, with about equal shares of positives.

    Raises:
        InputError: too few patients of a class. GateError: a patient on both sides (checked, whatever made the folds).
    """
    for label in (0, 1):
        if (num := len(set(patients[labels == label]))) < num_folds:
            raise InputError(
                f"probe: {num} patients have rows of class {label}, {num_folds} folds need one each; lower num_folds"
            )
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = [(train, test) for train, test in splitter.split(np.zeros(len(labels)), labels, patients)]
    require_whole_patients(patients, folds)
    return folds


def require_whole_patients(patients: NDArray[np.str_], folds: Sequence[Fold]) -> None:
    """Raises GateError when a patient stands on both sides of a fold."""
    for train, test in folds:
        if both := set(patients[train]) & set(patients[test]):
            raise GateError(f"probe: patient {min(both)} stands on both sides of a fold; split by patient")


def linear_probe(
    features: Floats, labels: Ints, patients: NDArray[np.str_], folds: Sequence[Fold], costs: Sequence[float],
    num_inner_folds: int, seed: int,
) -> ProbeScores:  # fmt: skip
    """Logistic regression on standardised features; C is what scores best on patient folds inside the training side."""
    require_whole_patients(patients, folds)
    scores, chosen = np.empty(len(labels)), []
    for train, test in folds:
        cost = choose_cost(features[train], labels[train], patients[train], costs, num_inner_folds, seed)
        scores[test] = _fit_and_score(features, labels, train, test, cost)
        chosen.append(cost)
    return _pooled(scores, labels, folds, tuple(chosen))


def choose_cost(
    features: Floats, labels: Ints, patients: NDArray[np.str_], costs: Sequence[float], num_folds: int, seed: int
) -> float:
    """The cost with the best mean area over patient folds of these rows; the smallest of equals."""
    if len(costs) == 1:
        return costs[0]
    folds = patient_folds(labels, patients, num_folds, seed)
    means = [
        float(np.mean([
            area for train, test in folds
            if (area := _area(labels[test], _fit_and_score(features, labels, train, test, cost))) is not None
        ]))
        for cost in sorted(costs)
    ]  # fmt: skip
    return sorted(costs)[int(np.nanargmax(means))]


def nearest_neighbours(
    features: Floats, labels: Ints, patients: NDArray[np.str_], folds: Sequence[Fold], num_neighbours: int
) -> ProbeScores:
    """Share of positives among the nearest rows of the training side by cosine of standardised features, nearer ones count
    more.
    """
    require_whole_patients(patients, folds)
    scores = np.empty(len(labels))
    for train, test in folds:
        scaler = StandardScaler().fit(features[train])
        model = NearestNeighbors(n_neighbors=min(num_neighbours, len(train)), metric="cosine", algorithm="brute")
        distances, neighbours = model.fit(scaler.transform(features[train])).kneighbors(
            scaler.transform(features[test])
        )
        weights = np.clip(1 - distances, 1e-6, None)
        scores[test] = (weights * labels[train][neighbours]).sum(axis=1) / weights.sum(axis=1)
    return _pooled(scores, labels, folds)


def _fit_and_score(features: Floats, labels: Ints, train: Ints, test: Ints, cost: float) -> Floats:
    scaler = StandardScaler().fit(features[train])
    model = LogisticRegression(C=cost, max_iter=1000).fit(scaler.transform(features[train]), labels[train])
    scores: Floats = model.decision_function(scaler.transform(features[test]))
    return scores


def _pooled(scores: Floats, labels: Ints, folds: Sequence[Fold], costs: tuple[float, ...] = ()) -> ProbeScores:
    ranks, areas = np.full(len(scores), np.nan), []
    for _, test in folds:
        ranks[test] = (rankdata(scores[test]) - 0.5) / len(test)
        areas.append(_area(labels[test], scores[test]))
    return ProbeScores(scores=ranks, fold_aurocs=tuple(area for area in areas if area is not None), chosen_costs=costs)


def _area(labels: Ints, scores: Floats) -> float | None:
    try:
        return auroc(labels, scores)
    except NotDefinedError:
        return None
