"""A pathologist reads a sample, and the labels get an accuracy with a confidence interval.

The sample is stratified so that rare labels and rules are seen. Because rare strata are drawn more densely, every
figure weights a specimen by how many specimens of its stratum it stands for.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from ingest.config import Section
from ingest.errors import ConfigError, GateError

LABELS = ("cancer", "in_situ", "benign", "indeterminate", "not_assessable")
NUM_REPLICATES = 2000  # of the bootstrap for kappa
Z_95 = 1.959963984540054  # two-sided 95 %


class ReviewConfig(Section):
    num_specimens: int = Field(default=200, ge=1)
    stratify: tuple[str, ...] = ("label", "rule_id", "procedure")  # columns of specimens.parquet
    seed: int = 17
    min_ppv: float = Field(default=0.98, ge=0, le=1)  # gate on the label cancer: of those called so, how many are
    min_npv: float = Field(default=0.98, ge=0, le=1)  # gate on the label benign


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A share or a kappa with its 95 % interval; None when nothing was read that it could rest on."""

    value: float | None
    low: float | None
    high: float | None
    num_specimens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewResult:
    """Attributes:
    ppv: of specimens labelled cancer, the share the pathologist calls cancer.
    npv: of specimens labelled benign, the share the pathologist calls benign.
    kappa: Cohen's kappa over all five labels.
    confusion: label of the rules -> label of the pathologist -> number of specimens read.
    rejected: reason -> rows of the sheet that could not be used.
    """

    num_exported: int
    num_read: int
    ppv: Estimate
    npv: Estimate
    kappa: Estimate
    confusion: Mapping[str, Mapping[str, int]]
    rejected: Mapping[str, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=2)


def draw_sample(specimens: pa.Table, num_specimens: int, stratify: Sequence[str], seed: int) -> pa.Table:
    """specimen_key, label, stratum, weight: a stratified sample that does not depend on the order of the rows.

    Every stratum gives at least one specimen as long as they last; the rest is shared by the square root of the
    stratum's size. weight = specimens of the stratum / specimens drawn from it.
    Raises:
        ConfigError: a column to stratify by does not exist.
    """
    missing = [column for column in stratify if column not in specimens.column_names]
    if missing:
        raise ConfigError(
            f"ingest.review.stratify: specimens have no column {missing[0]}; one of {', '.join(specimens.column_names)}"
        )
    strata: dict[str, list[tuple[str, str]]] = defaultdict(list)
    columns = ["specimen_key", "label", *stratify]
    for row in specimens.select(list(dict.fromkeys(columns))).to_pylist():
        stratum = " | ".join(str(row[column]) for column in stratify)
        strata[stratum].append((row["specimen_key"], row["label"]))
    num_drawn = allocate({stratum: len(rows) for stratum, rows in strata.items()}, num_specimens)
    sample = []
    for stratum in sorted(strata):
        ranked = sorted(strata[stratum], key=lambda row: _rank(seed, row[0]))[: num_drawn[stratum]]
        weight = len(strata[stratum]) / max(len(ranked), 1)
        sample += [{"specimen_key": key, "label": label, "stratum": stratum, "weight": weight} for key, label in ranked]
    sample.sort(key=lambda row: _rank(seed + 1, str(row["specimen_key"])))  # mixed, so that the order tells nothing
    schema = pa.schema(
        [("specimen_key", pa.string()), ("label", pa.string()), ("stratum", pa.string()), ("weight", pa.float64())]
    )
    return pa.Table.from_pylist(sample, schema=schema)


def allocate(sizes: Mapping[str, int], num_specimens: int) -> dict[str, int]:
    """How many to draw from each stratum: one each (greatest first), the rest by square root, never more than it has."""
    drawn = dict.fromkeys(sizes, 0)
    for _ in range(min(num_specimens, sum(sizes.values()))):
        open_strata = [stratum for stratum in sizes if drawn[stratum] < sizes[stratum]]
        # The next specimen goes where the fewest were drawn for the stratum's share.
        chosen = min(
            open_strata, key=lambda name: (drawn[name] > 0, drawn[name] / sizes[name] ** 0.5, -sizes[name], name)
        )
        drawn[chosen] += 1
    return drawn


def assess(sample: pa.Table, gold: Mapping[str, str], rejected: Mapping[str, int], seed: int) -> ReviewResult:
    """Accuracy of the labels, weighted back to all specimens.

    PPV and NPV have Wilson intervals on Kish's effective sample size (sum w)^2 / sum w^2; kappa has a bootstrap
    interval, drawn within strata. Source: Wilson 1927; Kish 1965; Cohen 1960.
    """
    rows = [row for row in sample.to_pylist() if row["specimen_key"] in gold]
    rows.sort(key=lambda row: row["specimen_key"])
    predicted = np.array([LABELS.index(row["label"]) for row in rows], dtype=np.int64)
    truth = np.array([LABELS.index(gold[row["specimen_key"]]) for row in rows], dtype=np.int64)
    names = sorted({row["stratum"] for row in rows})
    strata = np.array([names.index(row["stratum"]) for row in rows], dtype=np.int64)
    weights = np.array([row["weight"] for row in rows], dtype=np.float64)
    if len(rows):  # unread specimens are stood for by the read ones of their stratum
        size_of_stratum = Counter[str]()
        for row in sample.to_pylist():
            size_of_stratum[row["stratum"]] += row["weight"]
        num_read = np.bincount(strata, minlength=len(names))
        weights = np.array([size_of_stratum[names[index]] / num_read[index] for index in strata])
    confusion: dict[str, dict[str, int]] = {label: dict.fromkeys(LABELS, 0) for label in LABELS}
    for one, other in zip(predicted, truth, strict=True):
        confusion[LABELS[one]][LABELS[other]] += 1
    return ReviewResult(
        num_exported=sample.num_rows,
        num_read=len(rows),
        ppv=_share(predicted, truth, weights, LABELS.index("cancer")),
        npv=_share(predicted, truth, weights, LABELS.index("benign")),
        kappa=_kappa_estimate(predicted, truth, weights, strata, seed),
        confusion=confusion,
        rejected=dict(sorted(rejected.items())),
    )


def require_accuracy(result: ReviewResult, config: ReviewConfig) -> None:
    """Raises:
    GateError: PPV or NPV is below its limit, or could not be estimated.
    """
    for name, estimate, limit in (("PPV", result.ppv, config.min_ppv), ("NPV", result.npv, config.min_npv)):
        if estimate.value is None:
            raise GateError(f"review: no {name}, because no specimen of that label was read; read more of the sheet")
        if estimate.value < limit:
            raise GateError(
                f"review: {name} {estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f}, "
                f"{estimate.num_specimens} specimens) is below {limit}; mend the rules, or lower the limit knowingly"
            )


def wilson(share: float, num: float) -> tuple[float, float]:
    """95 % interval of a share of `num` (an effective number may be fractional)."""
    centre = (share + Z_95**2 / (2 * num)) / (1 + Z_95**2 / num)
    half = Z_95 / (1 + Z_95**2 / num) * np.sqrt(share * (1 - share) / num + Z_95**2 / (4 * num**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def weighted_kappa(predicted: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Cohen's kappa of weighted specimens; NaN when both say one and the same label throughout."""
    return float(_kappas((predicted * len(LABELS) + truth)[None], weights[None])[0])


def _kappas(cells: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of R samples at once: [R, N] cell of the 5 x 5 table (row times 5 plus column) and [R, N] weight."""
    num_samples, num_labels = len(cells), len(LABELS)
    offsets = np.arange(num_samples)[:, None] * num_labels**2
    counts = np.bincount((cells + offsets).ravel(), weights.ravel(), minlength=num_samples * num_labels**2)
    tables = counts.astype(np.float64).reshape(num_samples, num_labels, num_labels)
    tables /= tables.sum(axis=(1, 2), keepdims=True)
    by_chance = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    agreed = np.trace(tables, axis1=1, axis2=2)
    is_defined = by_chance < 1 - 1e-12
    return np.where(is_defined, (agreed - by_chance) / np.where(is_defined, 1 - by_chance, 1), np.nan)


def _share(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.float64], label: int
) -> Estimate:
    called = predicted == label
    if not called.any():
        return Estimate(value=None, low=None, high=None, num_specimens=0)
    chosen = weights[called]
    share = float((chosen * (truth[called] == label)).sum() / chosen.sum())
    low, high = wilson(share, float(chosen.sum() ** 2 / (chosen**2).sum()))
    return Estimate(value=share, low=low, high=high, num_specimens=int(called.sum()))


def _kappa_estimate(
    predicted: NDArray[np.int64],
    truth: NDArray[np.int64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int64],
    seed: int,
) -> Estimate:
    num = len(predicted)
    value = weighted_kappa(predicted, truth, weights) if num else float("nan")
    if np.isnan(value):
        return Estimate(value=None, low=None, high=None, num_specimens=num)
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    drawn = np.concatenate([generator.choice(rows, (NUM_REPLICATES, len(rows))) for rows in members], axis=1)
    replicates = _kappas((predicted * len(LABELS) + truth)[drawn], weights[drawn])
    finite = replicates[np.isfinite(replicates)]  # a replicate of one label only has no kappa
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    is_known = bool(len(finite))
    return Estimate(
        value=value, low=float(low) if is_known else None, high=float(high) if is_known else None, num_specimens=num
    )


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}|{key}".encode()).digest()
