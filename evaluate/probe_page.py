"""The result of a probe as one page (`probe.html`), its figures (`figures/`) and numbers (`probe.json`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evaluate.compare import Comparison
from evaluate.probe_result import ProbeResult, ProbeRow, probe_document, shown
from evaluate.report.chart import Chart, Colour, Layer, Line, Points, Ticks, even_ticks
from evaluate.report.plot import save_figure
from evaluate.report.svg import render_svg
from ingest.atomic import atomic_file

ROW_PX = 28
COLOURS: Mapping[str, Colour] = {"linear": "main", "neighbours": "second", "frozen": "main", "end_to_end": "third"}
METHOD_NAMES = {
    "linear": "linear probe", "neighbours": "nearest neighbours", "frozen": "gated attention, encoder frozen",
    "end_to_end": "trained end to end",
}  # fmt: skip


def write_probe(result: ProbeResult, folder: Path) -> Path:
    """`folder/probe.html`, `probe.json` and `figures/`; returns the page."""
    charts = [chart for level in ("slide", "tile") if (chart := probe_chart(result.rows, level)) is not None]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for chart in charts:
        save_figure(chart, folder / "figures")
    template = Environment(
        loader=PackageLoader("evaluate", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("probe.html.j2")
    page = template.render(
        charts={chart.name: Markup(render_svg(chart)) for chart in charts}, result=result, shown=shown, how=how_it_came_about,
        method_names=METHOD_NAMES, levels=[level for level in ("slide", "tile") if _of(result.rows, level)],
        rows_of=lambda level: _of(result.rows, level),
        comparison_of=lambda row: comparison_of(row, result.comparisons),
    )  # fmt: skip
    with atomic_file(folder / "probe.json") as temporary:
        text = json.dumps(probe_document(result), indent=2, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    with atomic_file(folder / "probe.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "probe.html"


def probe_chart(rows: Sequence[ProbeRow], level: str) -> Chart | None:
    """Area and interval of each row of a level, one under the other."""
    known = [row for row in _of(rows, level) if row.auroc.value is not None and row.auroc.low is not None]
    if not known:
        return None
    values, lows, highs = (np.array([getattr(row.auroc, name) for row in known]) for name in ("value", "low", "high"))
    heights = np.arange(len(known) - 1, -1.0, -1.0)
    left = min(0.45, np.floor((float(lows.min()) - 0.02) * 20) / 20)
    layers: list[Layer] = [
        Line(x=np.full(2, 0.5), y=np.array([-0.6, len(known) - 0.4]), colour="muted", width=1, dashed=True)
    ]
    for method in dict.fromkeys(row.method for row in known):
        at = np.array([row.method == method for row in known])
        layers.append(Points(x=values[at], y=heights[at], x_low=lows[at], x_high=highs[at], colour=COLOURS[method]))
    ticks: Ticks = tuple((float(y), row.name) for y, row in zip(heights, known, strict=True))
    return Chart(
        name=f"probe_{level}s", title=f"AUROC of {level}s", alt=f"Area under the ROC curve with interval, {level}s",
        x_label="AUROC (95 % interval, patients as the sample; dashed: chance)", y_label="", x_range=(left, 1.0),
        y_range=(-0.6, len(known) - 0.4), x_ticks=even_ticks(left, 1.0), y_ticks=ticks, layers=layers, width_px=940,
        height_px=70 + ROW_PX * len(known), left_px=max(len(row.name) for row in known) * 7 + 12, legend="none",
    )  # fmt: skip


def how_it_came_about(row: ProbeRow) -> str:
    """Areas of the folds and the chosen costs, or which epoch was taken and why."""
    areas, costs = row.details.get("fold_aurocs", ()), row.details.get("chosen_costs", ())
    selected_on, epoch = row.details.get("selected_on"), row.details.get("epoch")
    parts = [
        f"{len(areas)} folds, {min(areas):.3f} to {max(areas):.3f}" if areas else "",
        f"C {', '.join(f'{cost:g}' for cost in sorted(set(costs)))}" if costs else "",
        f"selected on {selected_on}" if selected_on else "",
        f"epoch {epoch}" if epoch else "",
    ]
    return "; ".join(part for part in parts if part)


def comparison_of(row: ProbeRow, comparisons: Sequence[Comparison]) -> Comparison | None:
    """The comparison of a row with the first of its group; None for the first itself."""
    return next((item for item in comparisons if (item.level, item.first) == (row.level, row.name)), None)


def _of(rows: Sequence[ProbeRow], level: str) -> list[ProbeRow]:
    return [row for row in rows if row.level == level]
