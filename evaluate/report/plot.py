"""A chart as files for a paper or a slide deck: PNG, SVG and PDF from matplotlib, reproducible byte for byte."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluate.report.chart import Band, Bars, Chart, Colour, Line, Points

PALETTE: Mapping[Colour, str] = {
    "ink": "#1b2126", "muted": "#7a858f", "main": "#1f5fa8", "second": "#b4531d", "third": "#3d7f4f",
}  # fmt: skip
PIXELS_PER_INCH = 100  # chart px to figure inches
PNG_DPI = 200
ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def save_figure(chart: Chart, folder: Path) -> list[Path]:
    """`folder/NAME.png`, `.svg` and `.pdf`; no clock or random id in them, so the same data give the same bytes."""
    from matplotlib import rc_context

    paths = []
    with rc_context({"svg.hashsalt": "fullslide", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}):
        figure = draw_figure(chart)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for each form
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            path = folder / f"{chart.name}.{suffix}"
            figure.savefig(path, dpi=PNG_DPI, metadata=metadata)
            paths.append(path)
    return paths


def draw_figure(chart: Chart) -> Figure:
    figure = Figure(figsize=(chart.width_px / PIXELS_PER_INCH, chart.height_px / PIXELS_PER_INCH), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=chart.x_range, ylim=chart.y_range, xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axes.set_xticks([value for value, _ in chart.x_ticks], [text for _, text in chart.x_ticks])
    axes.set_yticks([value for value, _ in chart.y_ticks], [text for _, text in chart.y_ticks])
    axes.grid(color="#e3e7ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for layer in chart.layers:
        colour, label = PALETTE[layer.colour], getattr(layer, "label", "") or None
        if isinstance(layer, Line):
            style = "--" if layer.dashed else "-"
            axes.plot(
                layer.x, layer.y, style, color=colour, linewidth=layer.width * 0.75, alpha=layer.opacity, label=label
            )
        elif isinstance(layer, Band):
            axes.fill_between(layer.x, layer.low, layer.high, color=colour, alpha=0.18, linewidth=0, label=label)
        elif isinstance(layer, Bars):
            widths = layer.edges[1:] - layer.edges[:-1]
            axes.bar(layer.edges[:-1], layer.heights, widths, align="edge", color=colour, alpha=0.5, label=label)
        elif isinstance(layer, Points):
            if layer.y_low is not None and layer.y_high is not None:
                axes.vlines(layer.x, layer.y_low, layer.y_high, color=colour, linewidth=1)
            if layer.x_low is not None and layer.x_high is not None:
                axes.hlines(layer.y, layer.x_low, layer.x_high, color=colour, linewidth=1)
            face = "none" if layer.hollow else colour
            axes.scatter(
                layer.x,
                layer.y,
                s=layer.size**2,
                facecolors=face,
                edgecolors=colour,
                zorder=3,
                clip_on=False,
                label=label,
            )
        else:
            axes.text(layer.x, layer.y, layer.text, color=colour, ha=ANCHORS[layer.anchor], fontsize=8)
    if chart.legend != "none" and axes.get_legend_handles_labels()[1]:
        axes.legend(loc=chart.legend, fontsize=8, framealpha=0.85)
    return figure
