"""From slide scores to specimen and patient scores, by a rule that has a name and is printed beside the number."""

from typing import Literal

import numpy as np
import pandas as pd

from evaluate.predictions import UNIT_LEVELS
from evaluate.roc import NotDefinedError

Level = Literal["slide", "specimen", "patient"]
Rule = Literal["max", "mean", "noisy_or"]
RULE_TEXT = {
    "max": "highest slide score",
    "mean": "mean slide score",
    "noisy_or": "1 - product of (1 - slide score)",
}


def aggregate(frame: pd.DataFrame, level: Level, rule: Rule = "max") -> pd.DataFrame:
    """One row for each unit of `level`: unit_key, patient_key, split, fold, label, score, num_slides and groups.

    A unit is positive when any of its slides is, negative when all are known to be negative, and otherwise null:
    one unread slide may hide a tumour. Unknown labels stay in the score; they only leave the metrics. Other columns
    (groups) are kept where all slides of the unit agree and are "mixed" where not.

    Raises:
        NotDefinedError: a key of the level is missing in some rows.
    """
    key = UNIT_LEVELS[level]
    missing = int(frame[key].isna().sum())
    if missing:
        raise NotDefinedError(f"{level} level needs {key}; it is missing in {missing} of {len(frame)} rows")
    groups = [name for name in frame.columns if name not in (*UNIT_LEVELS.values(), "label", "score", "fold", "split")]
    if level == "slide" or frame.empty:
        kept = frame[["patient_key", "split", "fold", "label", "score", *groups]]
        return kept.assign(unit_key=frame["slide_key"], num_slides=1).reset_index(drop=True)
    with np.errstate(divide="ignore"):  # a score of 1 gives log 0 = -inf, hence noisy_or 1
        frame = frame.assign(log_miss=np.log1p(-frame["score"].to_numpy(dtype=np.float64)))
    units = frame.groupby([key, "fold"], sort=True, observed=True)
    labels = units["label"].agg(["max", "count", "size"])
    label = labels["max"].where((labels["max"] == 1) | (labels["count"] == labels["size"]))
    scores = {
        "max": units["score"].max(),
        "mean": units["score"].mean(),
        "noisy_or": -np.expm1(units["log_miss"].sum()),
    }
    table = pd.DataFrame({"label": label, "score": scores[rule], "num_slides": labels["size"]})
    for name in ("patient_key", "split"):
        if name != key:
            table[name] = units[name].first()
    for name in groups:
        distinct = units[name].nunique(dropna=False)
        table[name] = units[name].first().astype("object").where(distinct == 1, "mixed")
    table = table.reset_index().rename(columns={key: "unit_key"})
    return table.assign(patient_key=table["unit_key"]) if level == "patient" else table
