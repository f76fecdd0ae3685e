"""The same numbers within each site, scanner, procedure or centre, and what the whole loses when one is left out.

Small groups are held back twice: no area under the curve below `min_positive_patients` (it would be noise), and no
counts below `SMALL_CELL` patients (they would point at people).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluate.interval import Estimate, Interval, auroc_interval, estimate
from evaluate.operating_point import share
from evaluate.roc import Bools, NotDefinedError, auroc

SMALL_CELL = 5  # patients; the customary disclosure limit of hospital statistics


@dataclass(frozen=True, slots=True)
class SubgroupRow:
    """One value of one column; counts are None where fewer than `SMALL_CELL` patients are behind them."""

    column: str
    value: str
    num_units: int | None
    num_patients: int | None
    num_positive: int | None
    num_positive_patients: int | None
    auroc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auroc_without: float | None


@dataclass(frozen=True, slots=True)
class SubgroupTable:
    """Rows by column and falling size; `threshold` is the frozen operating point, None when there is none."""

    rows: Sequence[SubgroupRow]
    threshold: float | None
    min_positive_patients: int


def subgroup_table(
    units: pd.DataFrame,
    columns: Sequence[str],
    threshold: float | None,
    *,
    min_positive_patients: int = 10,
    confidence: float = 0.95,
) -> SubgroupTable:
    """One row for each value of each column; a missing value is its own group "not known".

    Args:
        units: label, score, patient_key and the columns; labels known.
    """
    rows = []
    for column in columns:
        values = units[column].astype("string").fillna("not known")
        for value in values.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
            inside = (values == value).to_numpy()
            rows.append(_row(column, str(value), units, inside, threshold, min_positive_patients, confidence))
    return SubgroupTable(rows, threshold, min_positive_patients)


def _row(
    column: str,
    value: str,
    units: pd.DataFrame,
    inside: Bools,
    threshold: float | None,
    min_positive_patients: int,
    confidence: float,
) -> SubgroupRow:
    group = units[inside]
    positive = group["label"].to_numpy(dtype=np.float64) == 1
    scores = group["score"].to_numpy(dtype=np.float64)
    patients = group["patient_key"].to_numpy(dtype=object)
    num_patients, num_positive_patients = len(set(patients)), len(set(patients[positive]))
    num_negative_patients = len(set(patients[~positive]))
    if num_patients < SMALL_CELL:
        hidden = Estimate(None, reason=f"fewer than {SMALL_CELL} patients: not shown")
        return SubgroupRow(column, value, None, None, None, None, hidden, hidden, hidden, None)

    def area() -> tuple[float, Interval]:
        fewer = min(num_positive_patients, num_negative_patients)
        if 0 < fewer < min_positive_patients:
            raise NotDefinedError(f"fewer than {min_positive_patients} patients in a class: too few to say")
        return auroc(positive, scores), auroc_interval(positive, scores, patients, confidence)

    def rate(part: Bools, of: Bools, what: str) -> Estimate:
        return estimate(lambda: share(part, of, patients, what, confidence))

    none = Estimate(None, reason="no operating point")
    called = scores >= (threshold if threshold is not None else np.inf)
    return SubgroupRow(
        column,
        value,
        len(group),
        num_patients,
        int(positive.sum()) if num_positive_patients == 0 or num_positive_patients >= SMALL_CELL else None,
        num_positive_patients if num_positive_patients == 0 or num_positive_patients >= SMALL_CELL else None,
        estimate(area),
        none if threshold is None else rate(called, positive, "positive"),
        none if threshold is None else rate(~called, ~positive, "negative"),
        _area_without(units, inside),
    )


def _area_without(units: pd.DataFrame, inside: Bools) -> float | None:
    """Area under the curve of all units outside the group; None when that is one class or nothing."""
    rest = units[~inside]
    try:
        return auroc(rest["label"].to_numpy(dtype=np.float64), rest["score"].to_numpy(dtype=np.float64))
    except NotDefinedError:
        return None
