"""The predictions table: one row for each slide, task and fold; what `evaluate` accepts and what it refuses.

Any Parquet or CSV file with a slide, a label and a score can be read: the column names of other tools are known
(OPAL `slide, target, mccv1..`; STAMP `patient-preds.csv`; CLAM `split_*_results`). The checks name the fault and the
next action; a row is never dropped without being counted.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.atomic import atomic_file
from ingest.errors import GateError, InputError

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("slide_key", pa.string()),
        ("specimen_key", pa.string()),
        ("case_key", pa.string()),
        ("patient_key", pa.string()),
        ("task", pa.string()),
        ("label", pa.float32()),  # 0 or 1; null = not known, never "negative"
        ("score", pa.float32()),  # probability of the positive class
        ("split", pa.string()),  # train, tune or test
        ("fold", pa.int16()),
        ("num_tiles", pa.int32()),
        ("run_digest", pa.string()),
    ]
)
SPLITS = ("train", "tune", "test")
SCHEMA_MAJOR = 1
ALIASES: Mapping[str, tuple[str, ...]] = {
    "slide_key": ("slide", "slide_id", "slide_name", "filename", "image_id"),
    "specimen_key": ("specimen", "specimen_id", "part", "part_id"),
    "case_key": ("case", "case_id", "accession_key"),
    "patient_key": ("patient", "patient_id", "patientid", "subject_id"),
    "label": ("target", "y", "y_true", "ground_truth", "gt"),
    "score": ("prob", "probability", "p_1", "prob_1", "y_prob", "y_score"),
    "split": ("set", "partition", "subset"),
    "fold": ("mccv", "run", "repeat", "split_index"),
}
SPLIT_ALIASES = {
    "val": "tune",
    "valid": "tune",
    "validation": "tune",
    "dev": "tune",
    "training": "train",
    "testing": "test",
}
UNIT_LEVELS = {"slide": "slide_key", "specimen": "specimen_key", "patient": "patient_key"}


@dataclass(frozen=True, slots=True)
class PredictionCounts:
    """Where the rows of a table went; `num_rows = num_scored_labelled + num_unlabelled`."""

    num_rows: int
    num_unlabelled: int
    num_scored_labelled: int
    num_slides: int
    num_patients: int


def write_predictions(frame: pd.DataFrame, path: Path) -> None:
    """Checked, sorted by task, fold, split and slide, written whole or not at all."""
    table = check_predictions(frame).sort_values(["task", "fold", "split", "slide_key"], kind="stable")
    arrow = pa.Table.from_pandas(table[PREDICTIONS_SCHEMA.names], schema=PREDICTIONS_SCHEMA, preserve_index=False)
    arrow = arrow.replace_schema_metadata({"fullslide_schema": f"predictions/{SCHEMA_MAJOR}"})
    with atomic_file(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd")


def read_predictions(path: Path, *, positive_class: str | None = None, mccv_column: str | None = None) -> pd.DataFrame:
    """A checked table with the columns of `PREDICTIONS_SCHEMA` first; further columns (groups) are kept.

    Args:
        positive_class: the label text that counts as 1, for files whose labels are words.
        mccv_column: which of OPAL's split columns (`mccv1`, ...) gives the split; its number becomes the fold.
    Raises:
        InputError: unreadable, a column is missing or ambiguous, or a value breaks the contract.
        GateError: a patient is in two splits of one fold.
    """
    try:
        if path.suffix == ".parquet":
            version = (pq.read_schema(path).metadata or {}).get(b"fullslide_schema", b"predictions/1").decode()
            if version.partition("/")[2].split(".")[0] != str(SCHEMA_MAJOR):
                raise InputError(
                    f"{path.name}: schema {version}, this program reads predictions/{SCHEMA_MAJOR}; predict again"
                )
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype_backend="numpy_nullable")
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such file; run `evaluate predict` first or give an existing table") from None
    except (pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: not a Parquet or CSV table ({type(error).__name__})") from None
    return check_predictions(normalise_columns(frame, positive_class=positive_class, mccv_column=mccv_column))


def normalise_columns(
    frame: pd.DataFrame, *, positive_class: str | None = None, mccv_column: str | None = None
) -> pd.DataFrame:
    """Foreign column names, label words and split words put into ours; values are not checked here."""
    frame = _without_stamp_names(frame, positive_class)
    frame = _with_mccv_split(frame, mccv_column)
    lowered = {str(name).strip().lower(): str(name) for name in frame.columns}
    renames: dict[str, str] = {}
    for ours, aliases in ALIASES.items():
        if ours in frame.columns:
            continue
        found = [lowered[alias] for alias in (ours, *aliases) if alias in lowered]
        if len(found) > 1:
            raise InputError(f"columns {', '.join(found)} could all be {ours}; rename one of them to {ours}")
        renames.update(dict.fromkeys(found, ours))
    frame = frame.rename(columns=renames)
    missing = [name for name in ("slide_key", "label", "score") if name not in frame.columns]
    if missing == ["slide_key"] and "patient_key" in frame.columns:
        frame = frame.assign(slide_key=frame["patient_key"])  # one row a patient, as STAMP writes it
    elif missing:
        raise InputError(f"column {', '.join(missing)} missing; found {', '.join(map(str, frame.columns[:12]))}")
    if positive_class is not None and not pd.api.types.is_numeric_dtype(frame["label"]):
        frame = frame.assign(label=_binary_label(frame["label"], positive_class))
    if "split" in frame.columns:
        words = frame["split"].astype("string").str.strip().str.lower()
        frame = frame.assign(split=words.replace(SPLIT_ALIASES))
    return frame


def check_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with every column of the contract in its type, or an error that names the first fault.

    A missing `patient_key` column is an error: without it every interval is too narrow. `specimen_key` and `case_key`
    may be missing (null). `split` defaults to "test", `task` to "target", `fold` to 0.
    """
    if frame.empty:
        raise InputError("predictions: no rows; nothing to evaluate")
    table = frame.copy()
    defaults = {"specimen_key": None, "case_key": None, "task": "target", "split": "test", "fold": 0, "num_tiles": None}
    for name, default in (defaults | {"run_digest": ""}).items():
        if name not in table.columns:
            table[name] = default
    if "patient_key" not in table.columns:
        raise InputError("predictions: no patient_key column; slides of one patient are not independent, so add it")
    for name in ("slide_key", "patient_key"):
        texts = table[name].astype("string")
        if num_missing := int((texts.isna() | (texts.str.strip() == "")).sum()):
            raise InputError(
                f"predictions: {num_missing} of {len(table)} rows have no {name}; fill it or leave the rows out"
            )
    for name in ("slide_key", "specimen_key", "case_key", "patient_key", "task", "split", "run_digest"):
        table[name] = table[name].astype("string")
    for name in ("label", "score"):
        table[name] = _numbers(table[name], name)
    table["fold"] = _whole(table["fold"], "fold").astype("int16")
    table["num_tiles"] = _whole(table["num_tiles"], "num_tiles").astype("Int32")
    _refuse_bad_scores(table)
    _refuse_bad_rows(table)
    names: list[str] = PREDICTIONS_SCHEMA.names
    return table[names + [name for name in table.columns if name not in names]].reset_index(drop=True)


def count_predictions(frame: pd.DataFrame) -> PredictionCounts:
    unlabelled = int(frame["label"].isna().sum())
    return PredictionCounts(
        len(frame), unlabelled, len(frame) - unlabelled, frame["slide_key"].nunique(), frame["patient_key"].nunique()
    )


def predictions_digest(frame: pd.DataFrame) -> str:
    """SHA-256 of the contract's columns in sorted row order: the same for CSV, Parquet and any row order."""
    names = ["task", "fold", "split", "slide_key", "specimen_key", "patient_key", "label", "score"]
    ordered = frame.sort_values(["task", "fold", "split", "slide_key"], kind="stable")[names]
    rounded = ordered.assign(score=ordered["score"].astype("float32"), label=ordered["label"].astype("float32"))
    return hashlib.sha256(rounded.to_csv(index=False, float_format="%.9g").encode()).hexdigest()


def _refuse_bad_scores(table: pd.DataFrame) -> None:
    scores = table["score"].to_numpy(dtype=np.float64)
    slides, num = table["slide_key"], len(table)
    if (bad := ~np.isfinite(scores)).any():
        what = f"{int(bad.sum())} of {num} scores are NaN or infinite, first slide {slides[bad].iloc[0]}"
        raise InputError(f"predictions: {what}; predict these again")
    if (bad := (scores < 0) | (scores > 1)).any():
        what = f"{int(bad.sum())} of {num} scores lie outside 0..1, first slide {slides[bad].iloc[0]}"
        raise InputError(f"predictions: {what}; give probabilities, not logits")
    labels = table["label"].dropna().to_numpy(dtype=np.float64)
    if num_bad := int(np.sum((labels != 0) & (labels != 1))):
        what = f"{num_bad} of {len(labels)} labels are neither 0 nor 1"
        raise InputError(f"predictions: {what}; give one binary task a table")


def _refuse_bad_rows(table: pd.DataFrame) -> None:
    unknown = sorted(set(table["split"].dropna()) - set(SPLITS))
    if unknown or table["split"].isna().any():
        raise InputError(f"predictions: split {', '.join(unknown) or 'is empty'}; use {', '.join(SPLITS)}")
    repeated = table.duplicated(["slide_key", "task", "fold"])
    if repeated.any():
        what = (
            f"{int(repeated.sum())} rows repeat a slide in one fold, first slide {table['slide_key'][repeated].iloc[0]}"
        )
        raise InputError(f"predictions: {what}; keep one row each")
    owners = table.groupby("slide_key")["patient_key"].nunique()
    if (owners > 1).any():
        raise InputError(f"predictions: slide {owners.idxmax()} belongs to {owners.max()} patients; mend patient_key")
    specimens = table.dropna(subset="specimen_key").groupby("specimen_key")["patient_key"].nunique()
    if (specimens > 1).any():
        what = f"specimen {specimens.idxmax()} belongs to {specimens.max()} patients"
        raise InputError(f"predictions: {what}; mend specimen_key or patient_key")
    splits = table.groupby(["fold", "patient_key"])["split"].nunique()
    if num_leaks := int((splits > 1).sum()):
        leak = splits[splits > 1].reset_index().iloc[0]
        where = f"first patient {leak['patient_key']} in fold {leak['fold']}"
        raise GateError(f"predictions: {num_leaks} patients are in two splits of one fold ({where}); split by patient")


def _numbers(column: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    words = numbers.isna() & column.notna()
    if words.any():
        hint = "; name the positive one with positive_class" if name == "label" else ""
        raise InputError(f"predictions: {int(words.sum())} of {len(column)} values of {name} are not numbers{hint}")
    return pd.Series(numbers.to_numpy(dtype=np.float64, na_value=np.nan), index=column.index)


def _whole(column: pd.Series, name: str) -> pd.Series:
    numbers = _numbers(column, name)
    if ((numbers.dropna() % 1) != 0).any() or (name == "fold" and numbers.isna().any()):
        raise InputError(f"predictions: {name} must be a whole number in every row")
    return numbers


def _binary_label(column: pd.Series, positive_class: str) -> pd.Series:
    words = column.astype("string")
    present = sorted(words.dropna().unique())
    if positive_class not in present:
        raise InputError(f"positive class {positive_class!r} does not occur; labels are {', '.join(present[:8])}")
    return (words == positive_class).astype("Float64").where(words.notna())


def _without_stamp_names(frame: pd.DataFrame, positive_class: str | None) -> pd.DataFrame:
    """STAMP: PATIENT, <target>, pred, <target>_<class> ...; the probability of `positive_class` becomes the score."""
    if "pred" not in frame.columns or "score" in frame.columns:
        return frame
    for target in frame.columns:
        classes = [str(name)[len(str(target)) + 1 :] for name in frame.columns if str(name).startswith(f"{target}_")]
        labels = set(frame[target].dropna().astype(str))
        if len(classes) >= 2 and labels and labels <= set(classes):
            if positive_class not in classes:
                raise InputError(f"classes {', '.join(classes)}: name the positive one with positive_class")
            return frame.rename(columns={target: "label", f"{target}_{positive_class}": "score"})
    return frame


def _with_mccv_split(frame: pd.DataFrame, mccv_column: str | None) -> pd.DataFrame:
    found = [str(name) for name in frame.columns if re.fullmatch(r"mccv\d+", str(name))]
    if not found:
        return frame
    if mccv_column not in found:
        raise InputError(f"{len(found)} split columns {found[0]}..{found[-1]}: say which one with mccv_column")
    number = int(mccv_column.removeprefix("mccv"))
    rows = frame[frame[mccv_column].notna()]
    return rows.drop(columns=found).assign(split=rows[mccv_column], fold=number)
