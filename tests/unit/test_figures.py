"""What the charts show is what the numbers say."""

import numpy as np
import pytest

from evaluate.interval import wilson_interval
from evaluate.level_metrics import Curves, LevelResult
from evaluate.metrics import EvaluationConfig, evaluate_predictions
from evaluate.report.chart import Band, Bars, Chart, Line
from evaluate.report.figures import (
    net_benefit_chart,
    precision_recall_chart,
    roc_chart,
    score_chart,
    training_charts,
)
from evaluate.report.plot import draw_figure
from evaluate.report.svg import render_svg
from tests.invented_predictions import invented_predictions, some

QUICK = EvaluationConfig(num_resamples=200)
FRAME = invented_predictions(80)


def headline() -> tuple[LevelResult, Curves]:
    level = evaluate_predictions(FRAME, QUICK).headline
    return level, some(level.curves)


def line(chart: Chart, start: str) -> Line:
    return next(layer for layer in chart.layers if isinstance(layer, Line) and layer.label.startswith(start))


def test_the_area_under_the_drawn_roc_is_the_auroc() -> None:
    level, curves = headline()
    drawn = line(roc_chart(level, curves), "AUROC")
    assert np.trapezoid(drawn.y, drawn.x) == pytest.approx(level.metrics["auroc"].value)


def test_the_area_under_the_drawn_precision_is_the_average_precision() -> None:
    level, curves = headline()
    drawn = line(precision_recall_chart(level, curves), "average precision")
    assert np.trapezoid(drawn.y, drawn.x) == pytest.approx(level.metrics["average_precision"].value)


def test_the_bars_of_each_class_are_its_histogram() -> None:
    level, curves = headline()
    test = FRAME[FRAME["split"] == "test"]
    for bars, label in zip(
        [layer for layer in score_chart(level, curves).layers if isinstance(layer, Bars)], (0, 1), strict=True
    ):
        scores = test.loc[test["label"] == label, "score"]
        expected = np.histogram(scores, bins=bars.edges)[0] / len(scores)
        np.testing.assert_allclose(bars.heights, expected, atol=1e-12)


def test_net_benefit_counts_true_positives_less_false_alarms_at_the_odds() -> None:
    level, curves = headline()
    drawn = line(net_benefit_chart(level, curves), "call score")
    test = FRAME[FRAME["split"] == "test"]
    for chance in (0.2, 0.5, 0.8):
        called = test["score"] >= chance
        gained = (called & (test["label"] == 1)).sum() - chance / (1 - chance) * (called & (test["label"] == 0)).sum()
        shown = drawn.y[int(np.argmin(np.abs(drawn.x - chance)))]
        assert shown == pytest.approx(max(gained / len(test), -0.15 * test["label"].mean()))


def test_every_chart_is_drawn_by_both_pens_with_the_same_ticks() -> None:
    level, curves = headline()
    for chart in (roc_chart(level, curves), net_benefit_chart(level, curves)):
        (axes,) = draw_figure(chart).axes
        assert [text.get_text() for text in axes.get_xticklabels()] == [text for _, text in chart.x_ticks]
        page = render_svg(chart)
        assert all(f">{text}</text>" in page for _, text in chart.x_ticks)


def test_few_patients_widen_the_band_where_the_bootstrap_cannot() -> None:
    head = evaluate_predictions(invented_predictions(14, gap=30.0), QUICK).headline
    curves = some(head.curves)
    assert curves.draws.band_low.min() == 1.0  # every draw of a perfect curve is perfect
    band = next(layer for layer in roc_chart(head, curves).layers if isinstance(layer, Band))
    assert band.low.max() == pytest.approx(wilson_interval(1.0, head.num_positive_patients)[0])
    assert "Wilson at" in band.label


def test_a_long_run_stays_a_small_picture_that_keeps_its_extremes() -> None:
    steps = np.arange(1.0, 200_001.0)
    losses = 0.5 + 0.1 * np.sin(steps)
    losses[150_000] = 0.0
    (chart,) = training_charts({"step/loss": (steps, losses)})
    page = render_svg(chart)
    assert len(page) < 60_000
    assert min(float(layer.y.min()) for layer in chart.layers if isinstance(layer, Line)) == 0.0


def test_a_run_without_two_steps_has_no_training_chart() -> None:
    assert training_charts({}) == []
    assert training_charts({"step/loss": (np.array([1.0]), np.array([0.5]))}) == []
    empty = {"epoch/tune_auc/cancer": (np.array([10.0]), np.array([0.7]))}
    assert [chart.name for chart in training_charts(empty)] == ["training_auc"]
