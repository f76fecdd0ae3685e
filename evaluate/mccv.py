"""Monte-Carlo cross-validation in the form of the paper's Table 1: mean (standard deviation) over the splits.

The standard deviation is no standard error (training sets overlap), so Nadeau and Bengio's interval stands beside it.
"Best epoch of each split" scores the very slides that picked it: at 498 slides that alone adds 0.01-0.04. What picked
the model is therefore a column of the table.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from evaluate.compare import holm, nadeau_bengio
from evaluate.interval import Estimate
from evaluate.levels import Level, Rule, aggregate
from evaluate.predictions import read_predictions
from evaluate.report.chart import Chart, Colour, Layer, Points, even_ticks
from evaluate.report.plot import save_figure
from evaluate.roc import Floats, NotDefinedError, auroc
from ingest.atomic import atomic_file
from ingest.config import Section
from ingest.errors import InputError

NUM_MEAN_DRAWS = 2000  # of the paper's bootstrap of the mean
COLOURS: tuple[Colour, ...] = ("main", "second", "third", "ink", "muted")


class MccvRunConfig(Section):
    algorithm: str  # first column of the table, for example "K=700 (P)"
    predictions: Path  # one table with all folds
    task: str | None = None  # which task of the table; none: its only one
    embedding: str = "NA"
    tiles: str = "All Tiles"
    num_tiles: int | None = Field(default=None, ge=1)  # K, for the figure
    strategy: str = ""  # series of the figure: S single, P parallel, H parallel in half precision
    selected_on: str = "not stated"  # "tune", "test" (the paper's convention), "last epoch"
    test_per_train: float | None = Field(default=None, gt=0)  # of this run; none: that of the table


class MccvConfig(Section):
    runs: tuple[MccvRunConfig, ...] = Field(min_length=1)  # the first is the reference of the p-values
    split: str = "test"
    level: Level = "slide"
    rule: Rule = "max"
    test_per_train: float | None = Field(default=None, gt=0)  # n_test / n_train; None: counted if train rows are there
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MccvRow:
    """One line of the table; areas are 0..1 and are shown times 100.

    Attributes:
        aurocs: fold to area, of the folds where it is defined.
        num_undefined: folds with one class.
        spread: standard deviation over folds with J - 1 in the denominator.
        interval: Nadeau-Bengio interval of the mean.
        mean_interval: percentiles of the bootstrap of the mean, as the paper draws it; it ignores the overlap.
        difference, p_value: against the first run, paired by fold, p after Holm.
    """

    algorithm: str
    embedding: str
    tiles: str
    num_tiles: int | None
    strategy: str
    selected_on: str
    aurocs: dict[int, float]
    num_undefined: int
    mean: float
    spread: float | None
    interval: Estimate
    mean_interval: Estimate
    difference: Estimate
    p_value: float | None

    @property
    def shown(self) -> str:
        """`77.5 (2.0)` as in the paper."""
        spread = "not defined" if self.spread is None else f"{100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f} ({spread})"


def mccv_rows(config: MccvConfig, folder: Path) -> list[MccvRow]:
    """The table; relative paths of predictions are taken from `folder`.

    Raises:
        InputError: no fold of a run is defined, n_test / n_train is neither given nor countable, or several tasks and none named.
    """
    tables = [_of_task(read_predictions(folder / run.predictions), run) for run in config.runs]
    areas = [fold_aurocs(table, config, run.algorithm) for table, run in zip(tables, config.runs, strict=True)]
    rows: list[MccvRow] = []
    for table, run, (found, num_undefined) in zip(tables, config.runs, areas, strict=True):
        ratio = run.test_per_train or config.test_per_train or counted_ratio(table, config.split)
        values = np.array(list(found.values()))
        difference, p_value = _against(found, areas[0][0], ratio, config.confidence) if rows else (Estimate(None), None)
        rows.append(
            MccvRow(
                run.algorithm, run.embedding, run.tiles, run.num_tiles, run.strategy, run.selected_on, found,
                num_undefined, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None,
                _interval(values, ratio, config.confidence), _mean_interval(values, config), difference, p_value,
            )
        )  # fmt: skip
    adjusted = holm([row.p_value for row in rows])
    return [replace(row, p_value=value) for row, value in zip(rows, adjusted, strict=True)]


def fold_aurocs(table: pd.DataFrame, config: MccvConfig, name: str) -> tuple[dict[int, float], int]:
    """Area of each fold's scored split, and the number of folds where it is not defined."""
    found: dict[int, float] = {}
    num_undefined = 0
    for fold, rows in table[table["split"] == config.split].groupby("fold"):
        units = aggregate(rows, config.level, config.rule)
        units = units[units["label"].notna()]
        try:
            found[int(str(fold))] = auroc(units["label"].to_numpy(dtype=float), units["score"].to_numpy(dtype=float))
        except NotDefinedError:
            num_undefined += 1
    if not found:
        raise InputError(f"{name}: no fold has both classes in split {config.split}; nothing to average")
    return found, num_undefined


def counted_ratio(table: pd.DataFrame, split: str) -> float:
    """n_test / n_train in patients, averaged over folds."""
    counts = table.groupby(["fold", "split"])["patient_key"].nunique().unstack(fill_value=0)
    if "train" not in counts.columns or (counts["train"] == 0).any():
        raise InputError("no train rows to count n_test / n_train from; set test_per_train (0.25 for an 80/20 split)")
    return float((counts[split] / counts["train"]).mean())


def table_text(rows: Sequence[MccvRow]) -> str:
    """Markdown: the paper's columns, then what the paper leaves out."""
    lines = [
        "| Algorithm | Embedding | Tiles | AUC Avg (Std) | Splits | Interval (Nadeau-Bengio) | p vs first (Holm) "
        "| Selected on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.interval.low, row.interval.high
        interval = "not defined" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        splits = f"{len(row.aurocs)}" + (f" (+{row.num_undefined} not defined)" if row.num_undefined else "")
        p_value = "" if row.p_value is None else f"{row.p_value:.3f}"
        cells = [row.algorithm, row.embedding, row.tiles, row.shown, splits, interval, p_value, row.selected_on]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def tiles_chart(rows: Sequence[MccvRow]) -> Chart | None:
    """K against mean area, one series a strategy (paper, Figure 4c); None when no run says its K.

    The thick bar is the paper's bootstrap of the mean, the thin one the Nadeau-Bengio interval.
    """
    known = [row for row in rows if row.num_tiles is not None]
    if not known:
        return None
    layers: list[Layer] = []
    strategies = sorted({row.strategy for row in known})
    lows, highs = [], []
    for number, strategy in enumerate(strategies):
        series = sorted((row for row in known if row.strategy == strategy), key=lambda row: row.num_tiles or 0)
        shift = (number - (len(strategies) - 1) / 2) * 0.025  # bars of equal K stand side by side
        x = np.array([np.log10(row.num_tiles or 1) + shift for row in series])
        y = np.array([row.mean for row in series])
        colour = COLOURS[number % len(COLOURS)]
        wide_low, wide_high = _limits(series, "interval")
        low, high = _limits(series, "mean_interval")
        layers.append(Points(x=x, y=y, y_low=wide_low, y_high=wide_high, colour="muted", size=1))
        layers.append(Points(x=x, y=y, y_low=low, y_high=high, colour=colour, size=5, label=strategy or "all runs"))
        lows.append(float(min(wide_low.min(), low.min())))
        highs.append(float(max(wide_high.max(), high.max())))
    y_range = (max(0.0, min(lows) - 0.02), min(1.0, max(highs) + 0.02))
    counts = sorted({row.num_tiles or 1 for row in known})
    ends = (float(np.log10(counts[0])) - 0.15, float(np.log10(counts[-1])) + 0.15)
    return Chart(
        name="tiles_against_auroc", title="Tiles per slide and AUROC", alt="Mean AUROC over splits against K",
        x_label="K, tiles per slide (log scale)", y_label="AUROC, mean over splits", x_range=ends, y_range=y_range,
        x_ticks=[(float(np.log10(count)), f"{count:,}") for count in counts], y_ticks=even_ticks(*y_range),
        layers=layers, width_px=560,
    )  # fmt: skip


def splits_chart(rows: Sequence[MccvRow]) -> Chart:
    """Every split of every run, and the mean with its Nadeau-Bengio interval (paper, Figure 4d)."""
    layers: list[Layer] = []
    generator = np.random.default_rng(0)
    for position, row in enumerate(rows):
        values = np.array(list(row.aurocs.values()))
        places = position + generator.uniform(-0.16, 0.16, len(values))
        layers.append(Points(x=places, y=values, colour="muted", size=2.5))
        low, high = _limits([row], "interval")
        layers.append(Points(x=np.array([position + 0.28]), y=np.array([row.mean]), y_low=low, y_high=high, size=5))
    every = np.concatenate([list(row.aurocs.values()) for row in rows])
    y_range = (max(0.0, float(every.min()) - 0.05), min(1.0, float(every.max()) + 0.05))
    return Chart(
        name="splits", title="AUROC of every split", alt="AUROC of every split and run", x_label="", y_label="AUROC",
        x_range=(-0.5, len(rows) - 0.5), y_range=y_range,
        x_ticks=[(float(position), row.algorithm) for position, row in enumerate(rows)], y_ticks=even_ticks(*y_range),
        layers=layers, width_px=max(460, 90 * len(rows)), legend="none",
    )  # fmt: skip


def write_mccv(rows: Sequence[MccvRow], folder: Path) -> None:
    """`table.md`, `mccv.json` (with every split) and the figures as PNG, SVG and PDF."""
    with atomic_file(folder / "table.md") as temporary:
        temporary.write_text(table_text(rows), encoding="utf-8")
    with atomic_file(folder / "mccv.json") as temporary:
        text = json.dumps(
            [asdict(row) | {"shown": row.shown} for row in rows], indent=2, sort_keys=True, allow_nan=False
        )
        temporary.write_text(text + "\n", encoding="utf-8")
    for chart in (tiles_chart(rows), splits_chart(rows)):
        if chart is not None:
            save_figure(chart, folder)


def _of_task(table: pd.DataFrame, run: MccvRunConfig) -> pd.DataFrame:
    tasks = sorted(table["task"].unique())
    if run.task is None and len(tasks) > 1:
        raise InputError(
            f"{run.algorithm}: predictions of {len(tasks)} tasks ({', '.join(tasks)}); say which with task = ..."
        )
    if run.task is not None and run.task not in tasks:
        raise InputError(f"{run.algorithm}: no task {run.task} in its predictions; they hold {', '.join(tasks)}")
    return table if run.task is None else table[table["task"] == run.task]


def _against(
    found: dict[int, float], reference: dict[int, float], ratio: float, confidence: float
) -> tuple[Estimate, float | None]:
    folds = sorted(found.keys() & reference.keys())
    if len(folds) != len(found) or len(folds) != len(reference):
        return Estimate(None, reason="the runs do not share all splits: unpaired"), None
    try:
        result = nadeau_bengio([found[fold] - reference[fold] for fold in folds], ratio, confidence)
    except NotDefinedError as error:
        return Estimate(None, reason=str(error)), None
    return Estimate(result.mean, result.low, result.high, "Nadeau-Bengio, paired by split"), result.p_value


def _interval(values: Floats, ratio: float, confidence: float) -> Estimate:
    try:
        result = nadeau_bengio(values, ratio, confidence)
    except NotDefinedError as error:
        return Estimate(None, reason=str(error))
    return Estimate(result.mean, max(0.0, result.low), min(1.0, result.high), "Nadeau-Bengio")


def _mean_interval(values: Floats, config: MccvConfig) -> Estimate:
    if len(values) < 2:
        return Estimate(None, reason="one split")
    draws = np.random.default_rng(config.seed).choice(values, (NUM_MEAN_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.5 - config.confidence / 2, 0.5 + config.confidence / 2])
    return Estimate(float(values.mean()), float(low), float(high), "bootstrap of the mean over splits")


def _limits(rows: Sequence[MccvRow], name: str) -> tuple[Floats, Floats]:
    estimates: list[Estimate] = [getattr(row, name) for row in rows]
    low = [row.mean if item.low is None else item.low for row, item in zip(rows, estimates, strict=True)]
    high = [row.mean if item.high is None else item.high for row, item in zip(rows, estimates, strict=True)]
    return np.array(low), np.array(high)
