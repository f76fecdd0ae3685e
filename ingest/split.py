"""Which patients train, tune and test: whole patients only, stratified, and stable while a cohort grows.

Every patient draws a keyed random rank from its own key, the seed, the scheme and the fold; row order never matters.
Within each value of the first stratum the parts get exact quotas; the ranks, sorted by the further strata, are dealt
to the parts as evenly as those quotas allow. What selects a checkpoint ("tune") is never what is reported ("test").
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ingest.config import Section
from ingest.errors import ConfigError, GateError, InputError
from ingest.quota import EPSILON, UNPLACED, Codes, Places, assign, keyed_ranks

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "tune", "test")
COLUMNS = ("patient_key", "scheme", "fold", "split")
LABELS_WORST_FIRST = ("cancer", "in_situ", "indeterminate", "benign", "not_assessable")
NUM_VALUES_BEFORE_BANDS = 12  # a numeric column with more values than this is stratified by its quartiles
MAX_FOLDS = np.iinfo(np.int16).max  # `fold` is int16 in splits.parquet


class SplitConfig(Section):
    schemes: tuple[Literal["holdout", "kfold", "mccv", "site"], ...] = ("holdout",)
    train: float = Field(default=0.6, gt=0, lt=1)  # share of the patients; holdout, mccv, and with tune for site
    tune: float = Field(default=0.2, ge=0, lt=1)  # selects checkpoints; 0 gives the two parts of the EGFR task
    test: float = Field(default=0.2, ge=0, lt=1)  # is reported
    strata: tuple[str, ...] = ("label", "site", "num_slides")  # the first gets exact quotas
    num_folds: int = Field(default=5, ge=3, le=100)  # kfold; one fold tests, the next tunes, so at least 3
    num_repeats: int = Field(default=20, ge=1, le=MAX_FOLDS)  # mccv; 20 in Campanella et al. 2024
    held_out_column: str = "centre"  # site scheme; signatures of a site survive stain normalisation (Howard 2021)
    held_out: tuple[str, ...] = ()  # site scheme: these values together are the test part; empty: each value in turn
    seed: int = Field(default=17, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.train + self.tune + self.test - 1) > EPSILON:
            raise ValueError(f"train + tune + test is {self.train + self.tune + self.test:g}; make it 1")
        if len(set(self.schemes)) != len(self.schemes) or not self.schemes:
            raise ValueError("schemes must name at least one scheme, none of them twice")
        if len(set(self.strata)) != len(self.strata):
            raise ValueError("strata names a column twice")
        return self


def split_patients(
    patients: "pd.DataFrame", config: SplitConfig, previous: "pd.DataFrame | None" = None
) -> "pd.DataFrame":
    """The rows of `splits.parquet` for every configured scheme.

    Within each value of the first stratum the size of each part is within one patient of its share. A value with at
    least as many patients as there are parts is in every part, where that keeps each size within one.

    Args:
        patients: one row per patient: patient_key and the columns named by `strata` (and `held_out_column`).
        previous: an earlier result. Its patients keep their places, whatever their label is now; new patients fill
            up the quotas. Used for holdout and site, for kfold with equal num_folds, for mccv repeat by repeat.
    Returns:
        patient_key, scheme (holdout, kfold5, mccv20, site), fold, split; sorted by scheme, fold and patient_key.
    Raises:
        InputError: no patients, a patient twice, a column is missing, or the site scheme has fewer than two values.
        GateError: `previous` has a patient in two parts.
    """
    import pandas as pd

    _require_columns(patients, ("patient_key", *config.strata))
    patients = patients.sort_values("patient_key", kind="stable").reset_index(drop=True)
    keys = patients["patient_key"].astype(str)
    if not len(keys):
        raise InputError("split: no patients; give a cohort with at least one labelled slide")
    if keys.duplicated().any():
        num_doubled = int(keys.duplicated().sum())
        raise InputError(f"split: {num_doubled} patients have more than one row; give one row per patient")
    if previous is not None:
        _refuse_two_sides(previous)
    ranks = keyed_ranks(keys.tolist(), config.seed)
    strata = [_stratum_codes(patients[column], column) for column in config.strata] or [np.zeros(len(keys), np.int64)]
    frames = []
    for scheme in sorted(config.schemes):
        earlier = _earlier_places(previous, scheme, config, keys)
        if scheme == "site":
            _require_columns(patients, (config.held_out_column,))
            places = _hold_out_sites(patients[config.held_out_column], config, ranks, strata, earlier)
        elif scheme == "kfold":
            places = _folds(config.num_folds, ranks, strata, earlier)
        else:
            num_folds = config.num_repeats if scheme == "mccv" else 1
            shares = np.array([config.train, config.tune, config.test])
            places = [assign(_mix(ranks, scheme, fold), strata, shares, earlier(fold)) for fold in range(num_folds)]
        frames.append(_rows(keys, _scheme_name(scheme, config), places))
    schemes = pd.CategoricalDtype(sorted({str(frame["scheme"].iloc[0]) for frame in frames}))
    return pd.concat([frame.astype({"scheme": schemes}) for frame in frames], ignore_index=True)


def patient_table(slides: "pd.DataFrame") -> "pd.DataFrame":
    """One row per patient for `split_patients`.

    Args:
        slides: patient_key, label and any further columns of slides.parquet.
    Returns:
        patient_key, label (the worst, in the order of LABELS_WORST_FIRST), num_slides, the largest y_<task>, and of
        site, centre and the like the most frequent value (ties: the first in order).
    """
    import pandas as pd

    _require_columns(slides, ("patient_key", "label"))
    slides = slides.assign(patient_key=slides["patient_key"].astype(str))
    groups = slides.groupby("patient_key", sort=True)
    table = pd.DataFrame({"num_slides": groups.size()})
    table["label"] = worst_labels(slides)
    for column in (name for name in slides.columns if name.startswith("y_")):
        table[column] = groups[column].max()
    for column in ("site", "laterality", "procedure", "stain", "scanner", "centre", "year"):
        if column in slides.columns:
            table[column] = _most_frequent(slides["patient_key"], slides[column])
    return table.rename_axis("patient_key").reset_index()


def worst_labels(slides: "pd.DataFrame") -> "pd.Series[str]":
    """Per patient_key the worst label of its slides, in the order of LABELS_WORST_FIRST.

    Raises:
        InputError: a label is not among them.
    """
    severity = {label: rank for rank, label in enumerate(LABELS_WORST_FIRST)}
    ranks = slides["label"].astype(str).map(severity)
    if ranks.isna().any():
        known = ", ".join(LABELS_WORST_FIRST)
        raise InputError(f"split: {int(ranks.isna().sum())} labels are not among {known}; map them first")
    return ranks.groupby(slides["patient_key"].astype(str)).min().map(dict(enumerate(LABELS_WORST_FIRST)))


def merge_places(previous: "pd.DataFrame", merges: Mapping[str, str], acknowledged: bool = False) -> "pd.DataFrame":
    """`previous` after patients turned out to be one: `merges` maps each old patient_key to the one that stays.

    Merged patients from the same part stay there. From two parts they go to train, where they cannot flatter a result.

    Raises:
        GateError: patients of two parts became one and `acknowledged` is false: earlier results have seen both sides.
    """
    _require_columns(previous, COLUMNS)
    renamed = previous.assign(
        patient_key=previous["patient_key"].astype(str).replace(dict(merges)),
        split=previous["split"].astype(str),
        scheme=previous["scheme"].astype(str),
    )
    place = ["scheme", "fold", "patient_key"]
    num_parts = renamed.groupby(place)["split"].nunique()
    num_torn = num_parts[num_parts > 1].index.get_level_values("patient_key").nunique()
    if num_torn and not acknowledged:
        raise GateError(
            f"split: {num_torn} patients join rows of different parts; earlier results have seen both sides; "
            "acknowledge the merge to move them to train"
        )
    torn = (renamed.groupby(place)["split"].transform("nunique") > 1).to_numpy()
    renamed.loc[torn, "split"] = "train"
    return renamed.drop_duplicates(place).sort_values(["scheme", "fold", "patient_key"]).reset_index(drop=True)


def default_split(
    slides: "pd.DataFrame", splits: "pd.DataFrame", scheme: str | None = None, fold: int | None = None
) -> "pd.Series[str]":
    """The `split` column of slides.parquet: the place of each slide's patient, null for a patient without a place.

    Args:
        scheme: None takes holdout, or the first scheme by name when there is no holdout.
        fold: None takes the lowest of the scheme.
    Raises:
        ConfigError: there is no such scheme and fold.
    """
    names = sorted(set(splits["scheme"].astype(str)))
    chosen = scheme if scheme is not None else "holdout" if "holdout" in names else names[0]
    rows = splits[splits["scheme"].astype(str) == chosen]
    rows = rows[rows["fold"] == (rows["fold"].min() if fold is None else fold)]
    if rows.empty:
        raise ConfigError(f"split: no scheme {chosen} with fold {fold}; the table has {', '.join(names)}")
    places = rows[["patient_key", "split"]].astype(str)
    keys = slides["patient_key"].astype(str).to_frame()
    column = keys.merge(places, how="left", on="patient_key", validate="many_to_one")["split"]
    return column.set_axis(slides.index)


def split_digest(splits: "pd.DataFrame") -> str:
    """SHA-256 of the split table, independent of row order; the same digest is in the footer of splits.parquet."""
    import pyarrow as pa

    from ingest.manifest import conform, content_digest, sorted_by_keys

    table = pa.Table.from_pandas(splits[list(COLUMNS)], preserve_index=False)
    return content_digest(sorted_by_keys("splits", conform("splits", table)))


def _folds(num_folds: int, ranks: NDArray[np.uint64], strata: Sequence[Codes], earlier: "_Earlier") -> list[Places]:
    groups_before = np.full(len(ranks), UNPLACED, dtype=np.int8)
    for fold in range(num_folds):
        groups_before[earlier(fold) == PARTS.index("test")] = fold
    groups = assign(_mix(ranks, "kfold", 0), strata, np.full(num_folds, 1 / num_folds), groups_before)
    roles = [np.where(groups == fold, 2, np.where(groups == (fold + 1) % num_folds, 1, 0)) for fold in range(num_folds)]
    return [role.astype(np.int8) for role in roles]


def _hold_out_sites(
    column: "pd.Series[Any]",
    config: SplitConfig,
    ranks: NDArray[np.uint64],
    strata: Sequence[Codes],
    earlier: "_Earlier",
) -> list[Places]:
    values = column.astype("object").where(column.notna(), "").astype(str).to_numpy()
    names = sorted(set(values))
    if len(names) < 2:
        raise InputError(
            f"split: scheme site needs at least 2 values of {config.held_out_column}, found {len(names)}; "
            "leave the scheme out or set split.held_out_column"
        )
    unknown = sorted(set(config.held_out) - set(names))
    if unknown or set(config.held_out) == set(names):
        raise ConfigError(
            f"split: held_out = {list(config.held_out)}; it must name some but not all of the "
            f"{len(names)} values of {config.held_out_column}"
        )
    tests = (
        [np.isin(values, config.held_out)]
        if config.held_out
        else [values == name for name in _in_earlier_order(names, values, earlier)]
    )
    shares = np.array([config.train, config.tune]) / (config.train + config.tune)
    folds = []
    for fold, is_test in enumerate(tests):
        before = earlier(fold)
        before[before == PARTS.index("test")] = UNPLACED  # the held-out value alone decides what is tested
        places = np.full(len(values), PARTS.index("test"), dtype=np.int8)
        rest = ~is_test
        places[rest] = assign(_mix(ranks, "site", fold)[rest], [codes[rest] for codes in strata], shares, before[rest])
        folds.append(places)
    return folds


def _in_earlier_order(names: list[str], values: NDArray[np.object_], earlier: "_Earlier") -> list[str]:
    """Values in order, but those that had a fold keep its number when a new value sorts before them."""
    known: list[str] = []
    for fold in range(len(names)):
        tested = sorted(set(values[earlier(fold) == PARTS.index("test")]) - set(known))
        if not tested:
            break
        known.append(tested[0])
    return known + [name for name in names if name not in known]


_Earlier = Callable[[int], Places]


def _earlier_places(
    previous: "pd.DataFrame | None", scheme: str, config: SplitConfig, keys: "pd.Series[Any]"
) -> _Earlier:
    import pandas as pd

    nothing = np.full(len(keys), UNPLACED, dtype=np.int8)
    if previous is None:
        return lambda fold: nothing.copy()
    pattern = r"mccv\d+" if scheme == "mccv" else re.escape(_scheme_name(scheme, config))
    names = previous["scheme"].astype(str)
    mine = previous[names.str.fullmatch(pattern)]
    index = pd.Index(keys)
    by_fold = {}
    for fold, rows in mine.groupby("fold"):
        positions = index.get_indexer(rows["patient_key"].astype(str))
        codes = pd.Categorical(rows["split"].astype(str), categories=PARTS).codes
        places = nothing.copy()
        places[positions[positions >= 0]] = codes[positions >= 0]
        by_fold[int(str(fold))] = places
    return lambda fold: by_fold.get(fold, nothing).copy()


def _refuse_two_sides(previous: "pd.DataFrame") -> None:
    _require_columns(previous, COLUMNS)
    place = ["scheme", "fold", "patient_key"]
    num_doubled = int(previous.duplicated(place).sum())
    if num_doubled:
        raise GateError(f"split: the earlier split has {num_doubled} patients twice in one fold; mend it or split anew")


def _rows(keys: "pd.Series[Any]", scheme: str, places: Sequence[Places]) -> "pd.DataFrame":
    import pandas as pd

    num_patients = len(keys)
    codes = np.concatenate(places)
    assert codes.min(initial=0) >= 0, "a patient without a place"
    return pd.DataFrame(
        {
            "patient_key": keys.take(np.tile(np.arange(num_patients), len(places))).reset_index(drop=True),
            "scheme": pd.Categorical.from_codes(np.zeros(len(codes), np.int8), pd.Index([scheme])),
            "fold": np.repeat(np.arange(len(places), dtype=np.int16), num_patients),
            "split": pd.Categorical.from_codes(codes, pd.Index(PARTS)),
        }
    )


def _scheme_name(scheme: str, config: SplitConfig) -> str:
    return {"kfold": f"kfold{config.num_folds}", "mccv": f"mccv{config.num_repeats}"}.get(scheme, scheme)


def _mix(ranks: NDArray[np.uint64], scheme: str, fold: int) -> NDArray[np.uint64]:
    """Random numbers for one fold, by the finaliser of splitmix64 (Steele et al. 2014): cheaper than hashing again."""
    salt = int.from_bytes(hashlib.blake2b(f"{scheme}|{fold}".encode(), digest_size=8).digest(), "little")
    mixed = ranks + np.array([salt], dtype=np.uint64)  # arrays wrap around without a warning, scalars do not
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result


def _stratum_codes(column: "pd.Series[Any]", name: str) -> Codes:
    import pandas as pd

    if name == "num_slides":
        doublings = np.floor(np.log2(np.maximum(column.to_numpy(dtype=np.float64), 1)))
        bands: Codes = np.minimum(doublings, 3).astype(np.int64)
        return bands  # 1, 2-3, 4-7, 8 and more
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > NUM_VALUES_BEFORE_BANDS:
        column = pd.qcut(column, 4, labels=False, duplicates="drop")
    codes, _ = pd.factorize(column.astype("object").where(column.notna(), "").astype(str), sort=True)
    return np.asarray(codes, dtype=np.int64)


def _most_frequent(patient_keys: "pd.Series[Any]", column: "pd.Series[Any]") -> "pd.Series[Any]":
    import pandas as pd

    values = column.astype(str) if isinstance(column.dtype, pd.CategoricalDtype) else column
    counts = pd.DataFrame({"patient_key": patient_keys, "value": values.where(column.notna())}).dropna()
    counts = counts.groupby(["patient_key", "value"], sort=True).size().rename("count").reset_index()
    counts = counts.sort_values(["patient_key", "count", "value"], ascending=[True, False, True])
    return counts.drop_duplicates("patient_key").set_index("patient_key")["value"]


def _require_columns(table: "pd.DataFrame", names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns))
        raise InputError(
            f"split: missing columns {', '.join(missing)}; the table has {found}; add them or change split.strata"
        )
