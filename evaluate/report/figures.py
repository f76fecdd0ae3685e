"""Which charts an evaluation has, and what each shows."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from evaluate.calibration import ReliabilityBin
from evaluate.interval import wilson_interval
from evaluate.level_metrics import FEW_PATIENTS, Curves, LevelResult
from evaluate.metrics import Evaluation
from evaluate.report.chart import (
    UNIT_TICKS,
    Band,
    Bars,
    Chart,
    Colour,
    Layer,
    Legend,
    Line,
    Points,
    Text,
    Ticks,
    even_ticks,
    thinned,
)
from evaluate.report.training import Curve, smoothed
from evaluate.roc import Floats, interpolated
from evaluate.subgroup import SubgroupRow

SCORE_BINS = 25
ROW_PX = 26  # one subgroup in the forest


def evaluation_charts(evaluation: Evaluation, training: Mapping[str, Curve] | None) -> list[Chart]:
    """The charts that these data define, in the order of the page."""
    charts = []
    if (curves := evaluation.headline.curves) is not None:
        level = evaluation.headline
        charts += [roc_chart(level, curves), precision_recall_chart(level, curves)]
        charts += [calibration_chart(level, curves), score_chart(level, curves), net_benefit_chart(level, curves)]
    if evaluation.subgroups is not None and (rows := forest_rows(evaluation)):
        charts.append(forest_chart(rows, evaluation))
    return charts + training_charts(training or {})


def roc_chart(level: LevelResult, curves: Curves) -> Chart:
    area = level.metrics["auroc"]
    layers: list[Layer] = [
        Line(x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]), colour="muted", width=1, dashed=True),
        _roc_band(level, curves),
        Line(
            x=curves.roc.false_positive_rates,
            y=curves.roc.true_positive_rates,
            label=f"AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})",
        ),
    ]
    point = level.operating_point
    if (
        point is not None
        and point.metrics["sensitivity"].value is not None
        and point.metrics["specificity"].value is not None
    ):
        layers.append(
            Points(
                x=np.array([1 - point.metrics["specificity"].value]),
                y=np.array([point.metrics["sensitivity"].value]),
                colour="second", size=5, hollow=True, label=f"threshold from {point.point.chosen_on}",
            )
        )  # fmt: skip
    return _unit_chart(
        "roc", "ROC curve", f"ROC curve, area {area.value:.3f}", "1 - specificity", "Sensitivity", layers, "lower right"
    )


def _roc_band(level: LevelResult, curves: Curves) -> Band:
    """Limits from the draws; with few patients widened to Wilson's, because every draw of a perfect curve is perfect."""
    draws, num = curves.draws, level.num_positive_patients
    if min(num, level.num_negative_patients) >= FEW_PATIENTS:
        return Band(x=draws.band_rates, low=draws.band_low, high=draws.band_high, label="band, patient bootstrap")
    heights = interpolated(curves.roc.false_positive_rates, curves.roc.true_positive_rates, draws.band_rates)
    wilson = np.array([wilson_interval(float(height), num, curves.confidence) for height in heights])
    return Band(
        x=draws.band_rates,
        low=np.minimum(draws.band_low, wilson[:, 0]),
        high=np.maximum(draws.band_high, wilson[:, 1]),
        label=f"band, bootstrap and Wilson at {num} patients",
    )


def precision_recall_chart(level: LevelResult, curves: Curves) -> Chart:
    value, prevalence = level.metrics["average_precision"], level.num_positive / level.num_units
    stop = int(np.argmax(curves.precision_recall.recalls >= 1)) + 1  # lower thresholds only drop precision at recall 1
    recalls = np.concatenate([[0.0], curves.precision_recall.recalls[:stop]])
    # A step of height P_k from recall k-1 to k: the area under this very line is the average precision.
    step_x, step_y = np.repeat(recalls, 2)[1:-1], np.repeat(curves.precision_recall.precisions[:stop], 2)
    layers: list[Layer] = [
        Line(
            x=np.array([0.0, 1.0]), y=np.full(2, prevalence), colour="muted", width=1, dashed=True,
            label=f"chance = prevalence {prevalence:.3f}",
        ),
        Line(x=step_x, y=step_y, label=f"average precision {value.value:.3f}"),
    ]  # fmt: skip
    return _unit_chart(
        "precision_recall", "Precision and recall", f"Precision-recall curve, average precision {value.value:.3f}",
        "Recall (sensitivity)", "Precision (PPV)", layers, "lower left",
    )  # fmt: skip


def calibration_chart(level: LevelResult, curves: Curves) -> Chart:
    layers: list[Layer] = [
        Line(x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]), colour="muted", width=1, dashed=True, label="perfect"),
        _reliability_points(curves.reliability, "main", "scores as they are", False),
    ]
    if curves.shifted_reliability is not None:
        layers.append(_reliability_points(curves.shifted_reliability, "second", "after prior shift", True))
    return _unit_chart(
        "calibration", "Calibration", "Observed share of positives against mean score, in bins of equal size",
        "Mean score of the bin", "Observed share of positives", layers, "upper left",
    )  # fmt: skip


def score_chart(level: LevelResult, curves: Curves) -> Chart:
    """How many units of each class have which score; heights are shares of their class."""
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    shares = []
    for rates in (curves.roc.true_positive_rates, curves.roc.false_positive_rates):
        # The curve holds the share of a class at or above each threshold: its differences are the histogram.
        ordered, share = curves.roc.thresholds[:0:-1], np.diff(rates)[::-1]
        shares.append(np.histogram(ordered, bins=edges, weights=share)[0])
    top = float(max(np.max(shares[0]), np.max(shares[1]))) * 1.35  # room for the legend
    layers: list[Layer] = [
        Bars(
            edges=edges, heights=shares[1], colour="muted", label=f"negative ({level.num_units - level.num_positive:,})"
        ),
        Bars(edges=edges, heights=shares[0], colour="second", label=f"positive ({level.num_positive:,})"),
    ]
    if level.operating_point is not None:
        threshold = level.operating_point.point.threshold
        layers.append(
            Line(x=np.full(2, threshold), y=np.array([0, top]), colour="ink", width=1.2, dashed=True, label="threshold")
        )
    ticks = tuple((value, f"{100 * value:g} %") for value, _ in even_ticks(0, top, 4))
    return Chart(
        name="scores", title="Scores by class", alt="Histogram of scores, one for each class", x_label="Score",
        y_label="Share of the class", x_range=(0, 1), y_range=(0, top), x_ticks=UNIT_TICKS, y_ticks=ticks, layers=layers,
        legend="upper right",
    )  # fmt: skip


def net_benefit_chart(level: LevelResult, curves: Curves) -> Chart:
    """Decision curve (Vickers and Elkin 2006): sensitivity * prevalence - false alarms weighed by the odds of t."""
    prevalence = level.num_positive / level.num_units
    chances = np.linspace(0.01, 0.99, 197)
    # The last threshold at or above t: thresholds fall, so search in the reversed order.
    position = len(curves.roc.thresholds) - 1 - np.searchsorted(curves.roc.thresholds[::-1], chances, side="left")
    odds = chances / (1 - chances)
    benefit = (
        curves.roc.true_positive_rates[position] * prevalence
        - curves.roc.false_positive_rates[position] * (1 - prevalence) * odds
    )
    everyone = prevalence - (1 - prevalence) * odds
    low = -0.15 * prevalence
    shown = np.flatnonzero(everyone >= low)
    layers: list[Layer] = [
        Line(x=np.array([0.0, 1.0]), y=np.zeros(2), colour="ink", width=1, dashed=True, label="call nobody"),
        Line(x=chances[shown], y=everyone[shown], colour="muted", width=1.2, dashed=True, label="call everybody"),
        Line(x=chances, y=np.clip(benefit, low, None), label="call score >= threshold"),
    ]
    top = prevalence * 1.1
    return Chart(
        name="net_benefit", title="Net benefit", alt="Decision curve: net benefit against threshold",
        x_label="Threshold probability", y_label="Net benefit", x_range=(0, 1), y_range=(low, top),
        x_ticks=UNIT_TICKS, y_ticks=even_ticks(low, top), layers=layers, legend="lower left", width_px=940, height_px=320,
    )  # fmt: skip


def forest_rows(evaluation: Evaluation) -> list[SubgroupRow]:
    rows = evaluation.subgroups.rows if evaluation.subgroups is not None else ()
    return [row for row in rows if row.auroc.value is not None]


def forest_chart(rows: Sequence[SubgroupRow], evaluation: Evaluation) -> Chart:
    """Area under the curve of each subgroup beside that of all."""
    whole = evaluation.headline.metrics["auroc"]
    assert whole.value is not None, "a subgroup has both classes"
    estimates = [whole, *(row.auroc for row in rows)]
    value, low, high = (_column([getattr(item, name) for item in estimates]) for name in ("value", "low", "high"))
    height = np.arange(len(rows), -1.0, -1.0)
    names = ["all", *(f"{row.column}: {row.value}" for row in rows)]
    left = max(0.0, np.floor((float(low.min()) - 0.03) * 10) / 10)
    layers: list[Layer] = [
        Line(x=np.full(2, whole.value), y=np.array([-0.7, len(rows) + 0.7]), colour="muted", width=1, dashed=True),
        Points(x=value[:1], y=height[:1], x_low=low[:1], x_high=high[:1], colour="ink", size=5),
        Points(x=value[1:], y=height[1:], x_low=low[1:], x_high=high[1:]),
    ]
    ticks: Ticks = tuple((float(y), _shortened(name)) for y, name in zip(height, names, strict=True))
    return Chart(
        name="subgroups", title="AUROC by subgroup", alt="Area under the ROC curve with interval for each subgroup",
        x_label=f"AUROC ({100 * evaluation.config.confidence:g} % interval)", y_label="",
        x_range=(left, 1.0), y_range=(-0.7, len(rows) + 0.7),
        x_ticks=even_ticks(left, 1.0), y_ticks=ticks, layers=layers, width_px=940, height_px=80 + ROW_PX * len(names),
        left_px=210, legend="none",
    )  # fmt: skip


def training_charts(training: Mapping[str, Curve]) -> list[Chart]:
    """Loss (each step faint, running mean strong; tune loss at epochs) and the tune area under the curve."""
    charts = []
    if "step/loss" in training and len(training["step/loss"][0]) >= 2:
        charts.append(_loss_chart(training))
    areas = {name.rpartition("/")[2]: curve for name, curve in training.items() if name.startswith("epoch/tune_auc")}
    if areas:
        charts.append(_tune_chart(areas))
    return charts


def _loss_chart(training: Mapping[str, Curve]) -> Chart:
    steps, losses = training["step/loss"]
    mean = smoothed(losses)
    shown = [losses[np.isfinite(losses)], mean[np.isfinite(mean)]]
    layers: list[Layer] = [
        Line(x=steps, y=losses, colour="muted", width=0.8, opacity=0.45, label="each step (one slide or batch)"),
        Line(x=steps, y=mean, label="running mean"),
    ]
    if "epoch/tune_loss" in training:
        at, values = training["epoch/tune_loss"]
        layers.append(Line(x=at, y=values, colour="second", width=1.6))
        layers.append(Points(x=at, y=values, colour="second", size=3, label="tune, each epoch"))
        shown.append(values[np.isfinite(values)])
    every = np.concatenate(shown)
    # One bad slide can have a loss of 20 and would flatten the rest; the axis ends at the 99.5th percentile.
    top = max(float(np.quantile(every, 0.995)), float(np.max(shown[1]))) * 1.08
    right = float(steps[-1])
    layers = [_trimmed(layer, (float(steps[0]), right), (0.0, top)) for layer in layers]
    return Chart(
        name="training_loss", title="Training loss", alt="Training loss over optimisation steps", x_label="Step",
        y_label="Loss", x_range=(float(steps[0]), right), y_range=(0, top), x_ticks=even_ticks(float(steps[0]), right),
        y_ticks=even_ticks(0, top), layers=layers, legend="upper right",
    )  # fmt: skip


def _tune_chart(areas: Mapping[str, Curve]) -> Chart:
    layers: list[Layer] = []
    colours: tuple[Colour, ...] = ("main", "second", "third", "ink")
    lowest, last = 1.0, 1.0
    for colour, (task, (steps, values)) in zip(colours, sorted(areas.items()), strict=False):
        best = int(np.nanargmax(values))
        layers.append(Line(x=steps, y=values, colour=colour, label=f"tune, {task}"))
        layers.append(Points(x=steps, y=values, colour=colour, size=3))
        layers.append(Points(x=steps[best : best + 1], y=values[best : best + 1], colour=colour, size=7, hollow=True))
        anchor: Literal["middle", "end"] = "end" if steps[best] > 0.85 * steps[-1] else "middle"
        layers.append(
            Text(x=float(steps[best]), y=float(values[best]) + 0.012, text=f"best {values[best]:.3f}", anchor=anchor)
        )
        lowest, last = min(lowest, float(np.nanmin(values))), max(last, float(steps[-1]))
    low = max(0.0, float(np.floor((lowest - 0.02) * 10) / 10))
    return Chart(
        name="training_auc", title="AUROC on tune during training", alt="Tune AUROC after each epoch", x_label="Step",
        y_label="AUROC on tune", x_range=(0, last * 1.04), y_range=(low, 1.04), x_ticks=even_ticks(0, last),
        y_ticks=even_ticks(low, 1.0), layers=layers,
    )  # fmt: skip


def _trimmed(layer: Layer, x_range: tuple[float, float], y_range: tuple[float, float]) -> Layer:
    """A run has 100,000 steps, a picture 900 columns: of each pixel column the first, lowest, highest and last stay."""
    if not isinstance(layer, Line) or len(layer.x) < 2000:
        return layer
    finite = np.isfinite(layer.y)
    x, y = layer.x[finite], np.clip(layer.y[finite], *y_range)
    column = ((x - x_range[0]) / (x_range[1] - x_range[0]) * 400).astype(np.int64)
    order = np.lexsort((y, column))
    starts = np.flatnonzero(np.append(True, np.diff(column[order]) != 0))
    stops = np.append(starts[1:], len(order)) - 1
    kept = np.unique(np.concatenate([order[starts], order[stops]]))
    thin_x, thin_y = thinned(x[kept], y[kept], x_range, y_range)
    return Line(
        x=thin_x, y=thin_y, colour=layer.colour, width=layer.width, dashed=layer.dashed, opacity=layer.opacity,
        label=layer.label,
    )  # fmt: skip


def _reliability_points(bins: Sequence[ReliabilityBin], colour: Colour, label: str, hollow: bool) -> Points:
    return Points(
        x=_column([item.mean_score for item in bins]), y=_column([item.observed for item in bins]),
        y_low=_column([item.low for item in bins]), y_high=_column([item.high for item in bins]),
        colour=colour, hollow=hollow, label=label,
    )  # fmt: skip


def _unit_chart(
    name: str, title: str, alt: str, x_label: str, y_label: str, layers: Sequence[Layer], legend: Legend
) -> Chart:
    return Chart(
        name=name, title=title, alt=alt, x_label=x_label, y_label=y_label, x_range=(0, 1), y_range=(0, 1.02),
        x_ticks=UNIT_TICKS, y_ticks=UNIT_TICKS, layers=layers, legend=legend,
    )  # fmt: skip


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _shortened(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
