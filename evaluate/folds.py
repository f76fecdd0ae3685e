"""The folds of one scheme as a row of the paper's Table 1, straight from the run folder of `pretrain train --scheme`.

Only the test part of each fold counts; what chose the checkpoint (the tune part, or nothing) is a column of the table. A fold that
is not finished is left out and told; folds of another manifest than today's are refused, because its test part is another one.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluate.mccv import MccvRunConfig
from evaluate.predictions import read_predictions, write_predictions
from evaluate.whole import EvaluateConfig, predict_run
from ingest.errors import ConfigError, InputError, ManifestError
from pretrain.cohort import Cohort
from pretrain.config import PretrainConfig
from pretrain.folds import Fold, fold_folder, manifest_digest, read_folds
from pretrain.start import open_cohort
from pretrain.trained import Trained, open_trained

SCORED = "test"


@dataclass(frozen=True, slots=True)
class CollectedFolds:
    """The rows of one run folder (one per binary task), and what a reader of the table must know about it."""

    runs: tuple[MccvRunConfig, ...]
    notes: tuple[str, ...]


def collect_folds(folder: Path, checkpoint: str, config: EvaluateConfig) -> CollectedFolds:
    """Predictions of the test part of every finished fold in `folder/predictions.parquet`; missing ones are made.

    Raises:
        InputError: no ledger, no finished fold, folds of different configurations, or no binary task.
        ManifestError: the manifest is another one than the folds were trained on.
    """
    scheme, states = read_folds(folder)
    finished = [state for state in states if state.status == "finished"]
    if not finished:
        raise InputError(f"run {folder.name}: none of {len(states)} folds of {scheme} is finished; train them first")
    if len({state.config for state in finished}) > 1:
        raise InputError(
            f"run {folder.name}: its folds were trained with different configurations; train them again with one"
        )
    tables, ratios, notes = [], [], [_left_out(scheme, states)]
    for state in finished:
        trained = open_trained(fold_folder(folder, state.fold), checkpoint)
        _require_same_split(folder, scheme, state, trained.config)
        cohort = open_cohort(trained.config)
        table = _predictions(fold_folder(folder, state.fold), trained, cohort, checkpoint, config)
        tables.append(table)
        ratios.append(_num_patients(cohort, SCORED) / _num_patients(cohort, "train"))
        if num_missing := len(cohort.part(SCORED)) - table["slide_key"].nunique():
            notes.append(
                f"fold {state.fold}: {num_missing} of {len(cohort.part(SCORED))} test slides could not be read"
            )
    path = folder / "predictions.parquet"
    write_predictions(pd.concat(tables, ignore_index=True), path)
    tasks = [task.name for task in trained.config.tasks if task.kind == "classes" and task.num_classes == 2]
    if not tasks:
        raise InputError(f"run {folder.name}: no task with two classes; the table shows areas under ROC curves")
    parallel = _strategy(trained)
    num_tiles = trained.config.sample.num_tiles
    name = f"{'all tiles' if num_tiles is None else f'K={num_tiles}'} ({parallel})"
    selected_on = "tune" if trained.config.run.select_by == "tune_auc" and checkpoint == "best" else "last epoch"
    runs = tuple(
        MccvRunConfig(
            algorithm=name if len(tasks) == 1 else f"{name}: {task}", task=task, predictions=path.absolute(),
            embedding=trained.config.encoder.name if trained.config.encoder.frozen else "NA",
            tiles="All Tiles" if num_tiles is None else f"{num_tiles} ({trained.config.sample.mode})", num_tiles=num_tiles,
            strategy=parallel, selected_on=selected_on, test_per_train=sum(ratios) / len(ratios),
        )
        for task in tasks
    )  # fmt: skip
    return CollectedFolds(runs, tuple(note for note in notes if note))


def distinct_names(collected: Sequence[tuple[str, CollectedFolds]]) -> tuple[MccvRunConfig, ...]:
    """The rows of several run folders; rows of the same name are told apart by that of their folder."""
    names = Counter(run.algorithm for _, found in collected for run in found.runs)
    return tuple(
        run if names[run.algorithm] == 1 else run.model_copy(update={"algorithm": f"{run.algorithm}, {folder}"})
        for folder, found in collected for run in found.runs
    )  # fmt: skip


def _predictions(
    folder: Path, trained: Trained, cohort: Cohort, checkpoint: str, config: EvaluateConfig
) -> pd.DataFrame:
    """The rows of the test part, made now unless they are there and of these weights."""
    if cohort.part(SCORED) == ():
        raise InputError(
            f"run {folder.name}: its split has no {SCORED} part; what selects is never what is reported: split anew"
        )
    path = folder / "predictions.parquet"
    if path.exists():
        table = read_predictions(path)
        if set(table["run_digest"]) == {trained.digest} and SCORED in set(table["split"]):
            return table[table["split"] == SCORED]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("mccv runs in one process; to predict with several, do it fold by fold before: "
                          "torchrun --nproc-per-node N -m evaluate predict RUN/fold_00 --set splits='[\"test\"]'")  # fmt: skip
    print(f"{folder.name}: predicting its {len(cohort.part(SCORED))} test slides", flush=True)
    table = read_predictions(predict_run(folder, checkpoint, config.model_copy(update={"splits": (SCORED,)})))
    return table[table["split"] == SCORED]


def _require_same_split(folder: Path, scheme: str, state: Fold, config: PretrainConfig) -> None:
    if (config.data.scheme, config.data.fold) != (scheme, state.fold):
        raise InputError(
            f"run {folder.name}: {fold_folder(folder, state.fold).name} holds fold {config.data.fold} of {config.data.scheme}, not "
            f"fold {state.fold} of {scheme}; train it again"
        )
    if state.manifest != manifest_digest(config.data.manifest):
        raise ManifestError(
            f"run {folder.name}: fold {state.fold} was trained on another state of manifest {config.data.manifest.name}; patients "
            "may have changed sides: use that manifest again, or train anew in another folder"
        )


def _left_out(scheme: str, states: Sequence[Fold]) -> str:
    others = [f"fold {state.fold} {state.status}" for state in states if state.status != "finished"]
    return (
        f"{len(states) - len(others)} of {len(states)} folds of {scheme}; left out: {', '.join(others)}"
        if others
        else ""
    )


def _num_patients(cohort: Cohort, part: str) -> int:
    return len({slide.patient_key for slide in cohort.part(part)})


def _strategy(trained: Trained) -> str:
    """As in the paper: S one process, P parallel, H parallel in half precision."""
    environment = json.loads((trained.folder / "environment.json").read_text(encoding="utf-8"))
    is_half = trained.config.step.precision != "float32"
    if environment["num_ranks"] == 1:
        return "S, half precision" if is_half else "S"
    return "H" if is_half else "P"
