"""One evaluation to one folder: report.html (self-contained), metrics.json, operating_point.json, roc.csv, figures/."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evaluate.interval import Estimate
from evaluate.level_metrics import LevelResult
from evaluate.metrics import Evaluation, write_metrics
from evaluate.operating_point import write_operating_point
from evaluate.report.figures import evaluation_charts
from evaluate.report.images import embed_images
from evaluate.report.plot import save_figure
from evaluate.report.svg import render_svg
from evaluate.report.training import Curve
from ingest.atomic import atomic_folder

MAX_IMAGE_BYTES = 620_000  # leaves 300 kB of a page under 1 MB for text and charts
CANDIDATE_ERRORS = 12


@dataclass(frozen=True, slots=True)
class FunnelStage:
    """How many were left after a stage, and why the others were not; `lost` maps reason to number."""

    name: str
    num: int
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WorstError:
    """A slide on the wrong side, far from the threshold; the caller fetches its tiles."""

    slide_key: str
    label: int
    score: float
    kind: Literal["missed positive", "false alarm"]


@dataclass(frozen=True, slots=True)
class TileImage:
    image: bytes  # PNG or JPEG
    caption: str = ""


@dataclass(frozen=True, slots=True)
class ErrorCase:
    """One case of the gallery; `note` is a line such as "breast, core biopsy"."""

    slide_key: str
    label: int
    score: float
    note: str = ""
    thumbnail: bytes | None = None
    tiles: tuple[TileImage, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportFiles:
    html: Path
    metrics: Path
    figures: tuple[Path, ...]


def worst_errors(predictions: pd.DataFrame, evaluation: Evaluation, num: int = CANDIDATE_ERRORS) -> list[WorstError]:
    """At most `num` scored slides that the frozen threshold gets wrong, the furthest from it first within its kind; half of
    them of each kind where there are enough. Without an operating point a score of 0.5 divides.
    """
    level = evaluation.levels["slide"]
    threshold = level.operating_point.point.threshold if level.operating_point else 0.5
    rows = predictions[
        (predictions["task"] == evaluation.task)
        & (predictions["fold"] == evaluation.fold)
        & (predictions["split"] == evaluation.scored_on)
        & predictions["label"].notna()
    ]
    missed = rows[(rows["label"] == 1) & (rows["score"] < threshold)].sort_values(["score", "slide_key"])
    alarms = rows[(rows["label"] == 0) & (rows["score"] >= threshold)].sort_values(
        ["score", "slide_key"], ascending=[False, True]
    )
    half = max(num // 2, num - min(len(missed), len(alarms)))
    found = [*_errors(missed[: min(half, len(missed))], "missed positive"), *_errors(alarms[:half], "false alarm")]
    return found[:num]


def build_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    title: str,
    training: Mapping[str, Curve] | None = None,
    funnel: Sequence[FunnelStage] = (),
    errors: Sequence[ErrorCase] = (),
    resolved_config: str = "",
    environment: Mapping[str, Any] | None = None,
) -> ReportFiles:
    """Writes the folder whole or not at all; an older one of the same name is replaced.

    Args:
        training: what `evaluate.report.training.read_training_log` gives.
        resolved_config: the run's configuration as TOML text, shown at the end.
        environment: versions and hardware, shown at the end.
    Raises:
        InputError: a picture of `errors` cannot be read or the pictures do not fit a page of 1 MB.
    """
    charts = evaluation_charts(evaluation, training)
    page = render_page(
        evaluation, {chart.name: Markup(render_svg(chart)) for chart in charts}, title=title, funnel=funnel,
        errors=errors, resolved_config=resolved_config, environment=environment or {},
    )  # fmt: skip
    with atomic_folder(folder) as temporary:
        (temporary / "report.html").write_text(page, encoding="utf-8")
        write_metrics(evaluation, temporary / "metrics.json")
        if (result := evaluation.headline.operating_point) is not None:
            write_operating_point(result.point, temporary / "operating_point.json")
        _write_roc(evaluation, temporary / "roc.csv")
        (temporary / "figures").mkdir()
        names = [path.name for chart in charts for path in save_figure(chart, temporary / "figures")]
    figures = tuple(folder / "figures" / name for name in names)
    return ReportFiles(folder / "report.html", folder / "metrics.json", figures)


def render_page(
    evaluation: Evaluation,
    charts: Mapping[str, Markup],
    *,
    title: str,
    funnel: Sequence[FunnelStage],
    errors: Sequence[ErrorCase],
    resolved_config: str,
    environment: Mapping[str, Any],
) -> str:
    """The HTML text; no clock in it, so the same input gives the same bytes."""
    template = Environment(
        loader=PackageLoader("evaluate.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("template.html.j2")  # fmt: skip
    methods = _Footnotes()
    return template.render(
        title=title, evaluation=evaluation, head=evaluation.headline, charts=charts, funnel=_funnel_rows(funnel),
        errors=_with_images(errors), resolved_config=resolved_config, environment=_flat(environment),
        rows=_metric_rows(evaluation, methods), methods=methods.texts, number=_number, span=_span, count=_count,
        percent=f"{100 * evaluation.config.confidence:g}",
    )  # fmt: skip


class _Footnotes:
    """Interval methods in the order in which the page meets them; the same text has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


ROW_NAMES = (
    ("Discrimination", None),
    ("auroc", "AUROC"),
    ("average_precision", "Average precision"),
    ("sensitivity_at_specificity_*", "Sensitivity at specificity "),
    ("specificity_at_sensitivity_*", "Specificity at sensitivity "),
    ("At the frozen threshold", None),
    ("point:sensitivity", "Sensitivity"),
    ("point:specificity", "Specificity"),
    ("point:positive_predictive_value", "Positive predictive value"),
    ("point:negative_predictive_value", "Negative predictive value"),
    ("point:positive_predictive_value_at_target_prevalence", "PPV at the target prevalence"),
    ("point:negative_predictive_value_at_target_prevalence", "NPV at the target prevalence"),
    ("Calibration", None),
    ("calibration_slope", "Slope (1 is right)"),
    ("calibration_intercept", "Intercept (0 is right)"),
    ("calibration_error", "Calibration error (ECE)"),
    ("calibration_error_floor", "... that chance alone gives"),
    ("brier", "Brier score"),
    ("brier_skill", "Brier skill"),
    ("calibration_error_after_prior_shift", "ECE after prior shift"),
    ("calibration_intercept_after_prior_shift", "Intercept after prior shift"),
)


def _metric_rows(evaluation: Evaluation, methods: _Footnotes) -> list[dict[str, Any]]:
    """Rows of the table: a heading, or a name, one cell for each level, and what was selected on which split."""
    rows: list[dict[str, Any]] = []
    for key, name in ROW_NAMES:
        if name is None:
            rows.append({"heading": key})
            continue
        prefix = key.removesuffix("*")
        known = [item for level in evaluation.levels.values() for item in level.metrics if item.startswith(prefix)]
        for full in dict.fromkeys(known) if key.endswith("*") else [key]:
            found = [_find(level, full) for level in evaluation.levels.values()]
            if all(item is None for item in found):
                continue
            cells = [_cell(item, methods) for item in found]
            reasons = {cell["reason"] for cell in cells}
            label = name + full.removeprefix(prefix) if key.endswith("*") else name
            rows.append({"name": label, "cells": cells, "reason": _only(reasons), **_selected(evaluation, full)})
    return rows


def _only(reasons: set[str | None]) -> str | None:
    return next(iter(reasons)) if len(reasons) == 1 else None


def _find(level: LevelResult, key: str) -> Estimate | None:
    if not key.startswith("point:"):
        return level.metrics.get(key)
    if level.operating_point is None:
        return Estimate(None, reason=level.operating_point_reason)
    return level.operating_point.metrics.get(key.removeprefix("point:"))


def _cell(item: Estimate | None, methods: _Footnotes) -> dict[str, Any]:
    if item is None:
        return {"text": "", "interval": "", "note": None, "reason": None}
    note = methods.number(_footnote(item.method)) if item.method else None
    return {"text": _number(item.value), "interval": _span(item), "note": note, "reason": item.reason}


def _footnote(method: str) -> str:
    """The method without the counts of its own row, so that rows share a footnote."""
    if re.match(r"Wilson at [\d.]+ effective", method):
        return "Wilson score interval at the effective number of rows, patients being the sample"
    return re.sub(r", \d+ patients( with positives, \d+ with negatives)?$", "", method)


def _selected(evaluation: Evaluation, key: str) -> dict[str, str]:
    selection, point = evaluation.selection, evaluation.headline.operating_point
    among = f" (best of {selection.num_candidates})" if (selection.num_candidates or 1) > 1 else ""
    threshold = (point.point.chosen_on if point else "none") if key.startswith("point:") else ""
    return {"model": selection.selected_on + among, "threshold": threshold}


def _with_images(errors: Sequence[ErrorCase]) -> list[dict[str, Any]]:
    pictures = [image for case in errors for image in (case.thumbnail, *(tile.image for tile in case.tiles)) if image]
    uris = iter(embed_images(pictures, MAX_IMAGE_BYTES))
    return [
        {
            "case": case,
            "kind": "missed positive" if case.label == 1 else "false alarm",
            "thumbnail": next(uris) if case.thumbnail else None,
            "tiles": [{"uri": next(uris), "caption": tile.caption} for tile in case.tiles],
        }
        for case in errors
    ]


def _funnel_rows(funnel: Sequence[FunnelStage]) -> list[dict[str, Any]]:
    top = max((stage.num for stage in funnel), default=0) or 1
    return [
        {"name": stage.name, "num": stage.num, "percent": round(100 * stage.num / top, 2),
         "lost": sorted(stage.lost.items(), key=lambda item: (-item[1], item[0]))}
        for stage in funnel
    ]  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "" if value is None else str(value)))
    return rows


def _errors(rows: pd.DataFrame, kind: Literal["missed positive", "false alarm"]) -> list[WorstError]:
    return [
        WorstError(str(key), int(label), float(score), kind)
        for key, label, score in zip(rows["slide_key"], rows["label"], rows["score"], strict=True)
    ]


def _write_roc(evaluation: Evaluation, path: Path) -> None:
    """Every point of every level's curve; an infinite first threshold is written as inf."""
    tables = []
    for level in evaluation.levels.values():
        if level.curves is not None:
            roc = level.curves.roc
            columns = {"false_positive_rate": roc.false_positive_rates, "true_positive_rate": roc.true_positive_rates}
            tables.append(pd.DataFrame({"level": level.level, "threshold": roc.thresholds, **columns}))
    names = ["level", "threshold", "false_positive_rate", "true_positive_rate"]
    table = pd.concat(tables) if tables else pd.DataFrame(columns=names)
    table.to_csv(path, index=False, float_format="%.9g")


def _number(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None or not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "\u2212")


def _span(item: Estimate, digits: int = 3) -> str:
    if item.low is None or item.high is None:
        return ""
    return f"{_number(item.low, digits)} to {_number(item.high, digits)}"


def _count(value: int | None) -> str:
    return "<5" if value is None else f"{value:,}"
