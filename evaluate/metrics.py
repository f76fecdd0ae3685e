"""From the predictions table to every number of the report, with intervals, their methods and what was chosen on what.

A number that these data do not define is null with the reason; nothing falls back to 0.5 or 0.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from evaluate.level_metrics import FEW_PATIENTS, EvaluationConfig, LevelResult, level_result
from evaluate.levels import Level, aggregate
from evaluate.predictions import PredictionCounts, check_predictions, count_predictions, predictions_digest
from evaluate.roc import NotDefinedError
from evaluate.subgroup import SubgroupTable, subgroup_table
from ingest.atomic import atomic_file
from ingest.config import config_digest
from ingest.errors import ConfigError, InputError

__all__ = [
    "Evaluation", "EvaluationConfig", "Selection", "evaluate_predictions", "metrics_document", "write_metrics",
]  # fmt: skip

SCHEMA_VERSION = 1
LEVELS: tuple[Level, ...] = ("slide", "specimen", "patient")


@dataclass(frozen=True, slots=True)
class Selection:
    """How the scored model was picked; printed beside every number.

    Attributes:
        selected_on: "tune", "test", "last epoch (nothing selected)", ... or "not stated".
        num_candidates: checkpoints compared, 1 when the last was taken.
    """

    checkpoint: str = "not stated"
    selected_on: str = "not stated"
    num_candidates: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything known about one table of predictions; `write_metrics` puts it into metrics.json."""

    task: str
    fold: int
    scored_on: str
    selection: Selection
    config: EvaluationConfig
    predictions_sha256: str
    run_digest: str
    counts: PredictionCounts
    levels: Mapping[str, LevelResult]
    missing_levels: Mapping[str, str]
    subgroups: SubgroupTable | None
    warnings: Sequence[str]

    @property
    def headline(self) -> LevelResult:
        return self.levels[self.config.headline_level]


def evaluate_predictions(
    predictions: pd.DataFrame,
    config: EvaluationConfig,
    *,
    selection: Selection | None = None,
    task: str | None = None,
    slides: pd.DataFrame | None = None,
) -> Evaluation:
    """All levels, the operating point, calibration and subgroups of one task and one fold.

    Args:
        predictions: the contract of `evaluate.predictions`; checked again here.
        task: which task of the table; None when it holds one.
        slides: the manifest's slides table, for the columns of `config.groups` that the predictions lack.
    Raises:
        InputError, GateError: the table breaks its contract, or the scored split is empty.
        ConfigError: several tasks or folds and none named.
    """
    chosen = selection or Selection()
    frame = _one_task_and_fold(check_predictions(predictions), task, config.fold)
    frame = _with_groups(frame, slides, config.groups)
    scored, tune = frame[frame["split"] == config.scored_split], frame[frame["split"] == config.chosen_split]
    if scored.empty:
        found = ", ".join(sorted(frame["split"].unique()))
        raise InputError(
            f"predictions: no rows in split {config.scored_split}; found {found}: set scored_split or predict it"
        )
    levels: dict[str, LevelResult] = {}
    missing: dict[str, str] = {}
    for level in LEVELS:
        try:
            units, tune_units = (aggregate(rows, level, config.rule) for rows in (scored, tune))
        except NotDefinedError as error:
            missing[level] = str(error)
            continue
        levels[level] = level_result(level, units, tune_units, config)
    if config.headline_level in missing:
        raise ConfigError(f'headline_level: {missing[config.headline_level]}; set headline_level = "slide"')
    return Evaluation(
        task=str(frame["task"].iloc[0]),
        fold=int(frame["fold"].iloc[0]),
        scored_on=config.scored_split,
        selection=chosen,
        config=config,
        predictions_sha256=predictions_digest(scored),
        run_digest=", ".join(sorted(set(frame["run_digest"].dropna()) - {""})) or "not stated",
        counts=count_predictions(scored),
        levels=levels,
        missing_levels=missing,
        subgroups=_subgroups(scored, levels[config.headline_level], config),
        warnings=_warnings(levels[config.headline_level], chosen, config),
    )


def metrics_document(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json: plain values, NaN and infinity as null, curves left out."""
    document = _plain(evaluation)
    assert isinstance(document, dict)
    for level in document["levels"].values():
        del level["curves"]
    return document | {"schema_version": SCHEMA_VERSION, "config_digest": config_digest(evaluation.config)}


def write_metrics(evaluation: Evaluation, path: Path) -> None:
    text = json.dumps(metrics_document(evaluation), indent=2, sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _subgroups(scored: pd.DataFrame, headline: LevelResult, config: EvaluationConfig) -> SubgroupTable | None:
    columns = [name for name in config.groups if name in scored.columns]
    if not columns:
        return None
    units = aggregate(scored, headline.level, config.rule)
    threshold = headline.operating_point.point.threshold if headline.operating_point else None
    return subgroup_table(
        units[units["label"].notna()], columns, threshold,
        min_positive_patients=config.min_positive_patients, confidence=config.confidence,
    )  # fmt: skip


def _warnings(headline: LevelResult, selection: Selection, config: EvaluationConfig) -> list[str]:
    found = []
    if selection.selected_on == config.scored_split:
        among = f" among {selection.num_candidates}" if (selection.num_candidates or 1) > 1 else ""
        found.append(
            f"The checkpoint was selected{among} on the scored split ({config.scored_split}): every number is optimistic."
        )
    if config.scored_split == config.chosen_split and config.operating_point.target != "threshold":
        found.append(f"The threshold was chosen on the split that is scored ({config.scored_split}).")
    if config.scored_split == "train":
        found.append("The scored split is the training split: these numbers say nothing about new patients.")
    if min(headline.num_positive_patients, headline.num_negative_patients) < FEW_PATIENTS:
        found.append(
            f"Few patients: {headline.num_positive_patients} with positives, {headline.num_negative_patients} with negatives. "
            "Intervals are wide because little is known, not because the model is poor."
        )
    if headline.num_unlabelled:
        found.append(f"{headline.num_unlabelled} scored {headline.level}s have no known label and enter no metric.")
    return found


def _one_task_and_fold(frame: pd.DataFrame, task: str | None, fold: int | None) -> pd.DataFrame:
    tasks = sorted(frame["task"].unique())
    if task is None and len(tasks) > 1:
        raise ConfigError(f"predictions hold {len(tasks)} tasks ({', '.join(tasks)}); name one")
    rows = frame[frame["task"] == (task or tasks[0])]
    if rows.empty:
        raise ConfigError(f"task {task}: not in the predictions; found {', '.join(tasks)}")
    folds = sorted(rows["fold"].unique())
    if fold is None and len(folds) > 1:
        raise ConfigError(f"predictions hold {len(folds)} folds; set fold, or use `evaluate mccv` for all of them")
    rows = rows[rows["fold"] == (folds[0] if fold is None else fold)]
    if rows.empty:
        raise ConfigError(f"fold {fold}: not in the predictions; found {', '.join(map(str, folds))}")
    return rows.sort_values("slide_key", ignore_index=True)  # row order never changes a digit


def _with_groups(frame: pd.DataFrame, slides: pd.DataFrame | None, groups: Sequence[str]) -> pd.DataFrame:
    if slides is None:
        return frame
    columns = [name for name in groups if name in slides.columns and name not in frame.columns]
    return frame.merge(
        slides[["slide_key", *columns]].astype({"slide_key": "string"}),
        on="slide_key",
        how="left",
        validate="many_to_one",
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
