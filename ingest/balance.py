"""Balanced drawing: a weight per slide instead of lost rows, after the split and in training only by default.

A weight says how often training draws a slide relative to others; 0 is never. Evaluation does not look at it, so tune
and test keep the natural prevalence. Mode "paper" has the order of Campanella et al. 2024 (breast cancer detection):
77,768 slides = 67,654 negative + 10,114 positive are first balanced to 16,302 and then split by patient into 13,050
and 3,252; 16,302 is twice 8,151, so 1,963 positive slides were left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ingest.config import Section
from ingest.errors import ConfigError, InputError
from ingest.manifest import TARGET_PREFIX
from ingest.quota import keyed_ranks
from ingest.split import PARTS, SplitConfig, default_split, patient_table, split_digest, split_patients

if TYPE_CHECKING:
    import pandas as pd

PAPER_SCHEME = "paper"


class BalanceConfig(Section):
    mode: Literal["select", "weight", "none", "paper"] = (
        "select"  # select: 0 or 1; weight: all drawn, rare classes more often
    )
    parts: tuple[Literal["train", "tune", "test"], ...] = (
        "train",
    )  # not used by "paper", which balances before the split
    target: str = "y_cancer"  # classes are its values; slides without a value are left as they are
    ratio: float = Field(default=1.0, gt=0)  # select: at most this many slides of a class per slide of the rarest one
    max_slides_per_patient: int | None = Field(default=None, ge=1)  # the rarer class is kept first
    paper_slides_per_class: int = Field(default=8151, ge=1)  # 16,302 / 2; fewer when the rarer class has fewer
    paper_validation_share: float = Field(default=3252 / 16302, gt=0, lt=1)  # of the balanced slides
    seed: int = Field(default=17, ge=0)


@dataclass(frozen=True, slots=True)
class Cohort:
    """`splits` are the rows of splits.parquet; `split` and `weights` are columns of slides.parquet, on its index;
    `facts` are the counts for dataset.json and the card."""

    splits: "pd.DataFrame"
    split: "pd.Series[str]"
    weights: "pd.Series[float]"
    facts: dict[str, Any]


def plan_cohort(
    slides: "pd.DataFrame", split: SplitConfig, balance: BalanceConfig, previous: "pd.DataFrame | None" = None
) -> Cohort:
    """Split and balance in the order that the mode asks for.

    With several folds a slide trains in some and tests in others. Its one weight is made for the holdout scheme;
    without a holdout scheme every slide counts as training, which balances each fold up to chance.

    Args:
        slides: slide_key, patient_key, label, the strata and the target column.
        previous: earlier rows of splits.parquet, see `split_patients`.
    """
    if balance.mode == "paper":
        splits, weights = paper_cohort(slides, balance)
        column = default_split(slides, splits, PAPER_SCHEME)
    else:
        splits = split_patients(patient_table(slides), split, previous)
        column = default_split(slides, splits)
        in_training = column if "holdout" in split.schemes else column.where(column.isna(), balance.parts[0])
        weights = balance_weights(slides.assign(split=in_training), balance)
    return Cohort(splits, column, weights, cohort_facts(slides.assign(split=column), weights, splits, split, balance))


def balance_weights(slides: "pd.DataFrame", config: BalanceConfig) -> "pd.Series[float]":
    """The `weight` column, float32, on the index of `slides`; 1 where balancing has nothing to say.

    Args:
        slides: slide_key, patient_key, split and the target column.
    Raises:
        ConfigError: the target column is missing, or has so many values that it is no class.
        InputError: a slide is listed twice.
    """
    import pandas as pd

    classes = _classes(slides, config)
    ranks = _slide_ranks(slides, config.seed)
    active = slides["split"].isin(config.parts).to_numpy() & (classes >= 0)
    kept = active
    if config.max_slides_per_patient is not None:
        kept = _within_cap(slides["patient_key"], classes, ranks, active, config.max_slides_per_patient)
    counts = np.bincount(classes[kept], minlength=1)
    rarest = int(counts[counts > 0].min(initial=len(slides)))
    weights = np.ones(len(slides), dtype=np.float32)
    if config.mode == "select":
        kept = _first(classes, (ranks,), kept, max(1, round(config.ratio * rarest)))
    elif config.mode == "paper":
        kept = _first(classes, (ranks,), kept, min(rarest, config.paper_slides_per_class))
    elif config.mode == "weight":
        # Every class adds up to the same sum, and the mean weight is 1.
        weights[kept] = kept.sum() / (np.count_nonzero(counts) * counts[classes[kept]])
    weights[active & ~kept] = 0
    return pd.Series(weights, index=slides.index, name="weight", dtype="float32")


def paper_cohort(slides: "pd.DataFrame", config: BalanceConfig) -> "tuple[pd.DataFrame, pd.Series[float]]":
    """Balance the whole cohort, then split the patients of the selected slides in two: rows of splits.parquet, weights.

    The paper reports the best epoch on the part that chose it, so that part is called "tune" here, not "test". Patients
    without a selected slide have no place.

    Raises:
        InputError: the cohort has only one class.
    """
    import pandas as pd

    weights = balance_weights(slides.assign(split="train"), config.model_copy(update={"parts": ("train",)}))
    classes = _classes(slides, config)
    if len(np.unique(classes[classes >= 0])) < 2:
        raise InputError(f"balance: mode paper needs two classes in {config.target}, found one; use mode none")
    weights[classes < 0] = 0  # the paper's cohort holds labelled slides only
    chosen = pd.DataFrame({"patient_key": slides["patient_key"].astype(str), "y": classes})[weights.to_numpy() > 0]
    patients = chosen.groupby("patient_key", sort=True).agg(num_slides=("y", "size"), y=("y", "max"))
    patients["rank"] = keyed_ranks(patients.index.tolist(), config.seed)
    is_tune = pd.Series(False, index=patients.index)
    num_due = 0.0
    for _, group in patients.sort_values(["y", "rank"]).groupby("y"):
        num_due += config.paper_validation_share * int(group["num_slides"].sum())
        filled = _fill(group["num_slides"].to_numpy(), round(num_due))
        num_due -= int(group["num_slides"].to_numpy()[filled].sum())
        is_tune[group.index[filled]] = True
    splits = pd.DataFrame({"patient_key": patients.index, "scheme": PAPER_SCHEME, "fold": np.int16(0)})
    splits["split"] = pd.Categorical(np.where(is_tune, "tune", "train"), categories=PARTS)
    return splits, weights


def _classes(slides: "pd.DataFrame", config: BalanceConfig) -> NDArray[np.int64]:
    """[S] class of each slide, -1 = not known; mode "none" needs no classes, so there every known value is class 0."""
    if config.target not in slides.columns:
        if config.mode == "none":
            return np.full(len(slides), -1, dtype=np.int64)
        known = ", ".join(name for name in slides.columns if name.startswith(TARGET_PREFIX))
        raise ConfigError(f"balance.target = {config.target}: no such column; the slides have {known or 'no target'}")
    values = slides[config.target].astype("float64").to_numpy(dtype=np.float64, na_value=np.nan)
    is_known = ~np.isnan(values)
    if ((values[is_known] < 0) | (values[is_known] != np.round(values[is_known]))).any():
        if config.mode != "none":
            raise ConfigError(
                f"balance.target = {config.target}: its values are not classes 0, 1, ...; set balance.mode = none"
            )
        values[is_known] = 0
    return np.where(is_known, np.nan_to_num(values), -1).astype(np.int64)


def _slide_ranks(slides: "pd.DataFrame", seed: int) -> NDArray[np.uint64]:
    if slides["slide_key"].duplicated().any():
        num_doubled = int(slides["slide_key"].duplicated().sum())
        raise InputError(f"balance: {num_doubled} slides are listed twice; give one row per slide")
    return keyed_ranks(slides["slide_key"].astype(str).tolist(), seed)


def _within_cap(
    patient_keys: "pd.Series[str]",
    classes: NDArray[np.int64],
    ranks: NDArray[np.uint64],
    active: NDArray[np.bool_],
    max_slides: int,
) -> NDArray[np.bool_]:
    import pandas as pd

    patients, _ = pd.factorize(patient_keys.astype(str))
    abundance = np.bincount(classes[active], minlength=int(classes.max(initial=0)) + 1)[classes]
    return _first(np.asarray(patients), (ranks, abundance), active, max_slides)


def _first(
    groups: NDArray[np.int64], order_by: tuple[NDArray[Any], ...], active: NDArray[np.bool_], limit: int
) -> NDArray[np.bool_]:
    """[S] whether an active slide is among the first `limit` of its group; the last array of `order_by` counts most."""
    rows = np.flatnonzero(active)
    rows = rows[np.lexsort((*(array[rows] for array in order_by), groups[rows]))]
    is_start = np.diff(groups[rows], prepend=-1) != 0
    position = np.arange(len(rows)) - np.maximum.accumulate(np.where(is_start, np.arange(len(rows)), 0))
    result = np.zeros(len(active), dtype=np.bool_)
    result[rows[position < limit]] = True
    return result


def _fill(sizes: NDArray[np.int64], target: int) -> NDArray[np.bool_]:
    """Take sizes in order while they fit: their sum reaches `target` exactly as soon as small ones are left over."""
    taken = np.zeros(len(sizes), dtype=np.bool_)
    total = 0
    for position, size in enumerate(sizes):
        if total + size <= target:
            taken[position] = True
            total += int(size)
    return taken


def cohort_facts(
    slides: "pd.DataFrame",
    weights: "pd.Series[float]",
    splits: "pd.DataFrame",
    split_config: SplitConfig | None,
    config: BalanceConfig,
) -> dict[str, Any]:
    """What dataset.json and the card tell about split and balance; classes by value, parts by name.

    Args:
        slides: patient_key, split and the target column.
        split_config: None for a split that was imported.
    """
    classes = _classes(slides, config)
    drawn = weights.to_numpy() > 0
    part_of = slides["split"].astype("object").where(slides["split"].notna(), "none").to_numpy()
    parts = {}
    for part in (*PARTS, "none"):  # "none": patients without a place
        mine = part_of == part
        if mine.any():
            parts[part] = {
                "patients": int(slides["patient_key"][mine].nunique()),
                "slides": int(mine.sum()),
                "by_class": _by_class(classes[mine]),
                "drawn_by_class": _by_class(classes[mine & drawn]),
            }
    schemes = splits.groupby(splits["scheme"].astype(str))["fold"].nunique()
    return {
        "split": {
            "digest": split_digest(splits),
            "num_folds": {str(name): int(num) for name, num in schemes.items()},
            "config": split_config.model_dump(mode="json") if split_config is not None else "imported",
        },
        "balance": {
            "mode": config.mode,
            "target": config.target,
            "config": config.model_dump(mode="json"),
            "slides_by_class": _by_class(classes),
            "drawn_by_class": _by_class(classes[drawn]),
            "left_out_by_class": _by_class(classes[~drawn]),
            "parts": parts,
        },
    }


def _by_class(classes: NDArray[np.int64]) -> dict[str, int]:
    values, counts = np.unique(classes, return_counts=True)
    names = ["unknown" if value < 0 else str(value) for value in values]
    return dict(zip(names, counts.tolist(), strict=True))
