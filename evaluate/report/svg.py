"""A chart as inline SVG: colours are CSS classes of the page, so that dark mode and print need no second picture."""

from html import escape

import numpy as np

from evaluate.report.chart import Band, Bars, Chart, Layer, Line, Points, Text, thinned
from evaluate.roc import Floats

TOP_PX, RIGHT_PX, BOTTOM_PX = 14, 16, 46
LEGEND_ROW_PX = 18


def render_svg(chart: Chart) -> str:
    """An <svg> element with a title for screen readers, about 3-15 kB."""
    pen = _Pen(chart)
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width_px} {chart.height_px}" role="img" '
        f'aria-label="{escape(chart.alt, quote=True)}">',
        *_axes(chart, pen),
        f'<clipPath id="clip-{chart.name}"><rect x="{pen.left:g}" y="{pen.top - 2:g}" '
        f'width="{pen.right - pen.left:g}" height="{pen.bottom - pen.top + 4:g}"/></clipPath>',
        f'<g clip-path="url(#clip-{chart.name})">',
        *(_draw(layer, pen, chart) for layer in chart.layers if not isinstance(layer, Text | Points)),
        "</g>",
        *(_draw(layer, pen, chart) for layer in chart.layers if isinstance(layer, Text | Points)),
        *_legend(chart, pen),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


class _Pen:
    """Data to pixels of one chart."""

    def __init__(self, chart: Chart) -> None:
        self.left, self.top = float(chart.left_px), float(TOP_PX)
        self.right, self.bottom = chart.width_px - float(RIGHT_PX), chart.height_px - float(BOTTOM_PX)
        self.x_range, self.y_range = chart.x_range, chart.y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def path(self, x: Floats, y: Floats) -> str:
        x, y = thinned(x, y, self.x_range, self.y_range)
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y, strict=True))


def _axes(chart: Chart, pen: _Pen) -> list[str]:
    parts = []
    for value, text in chart.y_ticks:
        y = pen.y(value)
        parts.append(f'<line class="grid" x1="{pen.left:g}" x2="{pen.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{pen.left - 7:g}" y="{y + 3.8:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in chart.x_ticks:
        x = pen.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{pen.top:g}" y2="{pen.bottom:g}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{pen.bottom + 17:g}" text-anchor="middle">{escape(text)}</text>'
        )
    middle_x, middle_y = (pen.left + pen.right) / 2, (pen.top + pen.bottom) / 2
    parts.append(f'<path class="axis" d="M{pen.left:g},{pen.top:g} V{pen.bottom:g} H{pen.right:g}"/>')
    parts.append(
        f'<text class="label" x="{middle_x:.1f}" y="{chart.height_px - 8}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    if chart.y_label:
        parts.append(
            f'<text class="label" transform="translate(13,{middle_y:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escape(chart.y_label)}</text>"
        )
    return parts


def _draw(layer: Layer, pen: _Pen, chart: Chart) -> str:
    if isinstance(layer, Line):
        dash = ' stroke-dasharray="4 4"' if layer.dashed else ""
        return (
            f'<polyline class="s-{layer.colour}" stroke-width="{layer.width:g}" stroke-opacity="{layer.opacity:g}"{dash} '
            f'points="{pen.path(layer.x, layer.y)}"/>'
        )
    if isinstance(layer, Band):
        outline = f"{pen.path(layer.x, layer.high)} {pen.path(layer.x[::-1], layer.low[::-1])}"
        return f'<polygon class="f-{layer.colour} band" points="{outline}"/>'
    if isinstance(layer, Bars):
        return "".join(
            f'<rect class="f-{layer.colour} bar" x="{pen.x(left):.1f}" y="{pen.y(height):.1f}" '
            f'width="{max(pen.x(right) - pen.x(left) - 0.6, 0.6):.1f}" height="{pen.bottom - pen.y(height):.1f}"/>'
            for left, right, height in zip(layer.edges[:-1], layer.edges[1:], layer.heights, strict=True)
            if height > 0
        )
    if isinstance(layer, Points):
        return "".join(_point(layer, k, pen) for k in range(len(layer.x)) if np.isfinite(layer.x[k] + layer.y[k]))
    return (
        f'<text class="note t-{layer.colour}" x="{pen.x(layer.x):.1f}" y="{pen.y(layer.y):.1f}" '
        f'text-anchor="{layer.anchor}">{escape(layer.text)}</text>'
    )


def _point(layer: Points, k: int, pen: _Pen) -> str:
    x, y = pen.x(float(layer.x[k])), pen.y(float(layer.y[k]))
    parts = []
    if layer.y_low is not None and layer.y_high is not None:
        parts.append(
            f'<path class="s-{layer.colour}" stroke-width="1.4" '
            f'd="M{x:.1f},{pen.y(float(layer.y_low[k])):.1f} V{pen.y(float(layer.y_high[k])):.1f}"/>'
        )
    if layer.x_low is not None and layer.x_high is not None:
        parts.append(
            f'<path class="s-{layer.colour}" stroke-width="1.4" '
            f'd="M{pen.x(float(layer.x_low[k])):.1f},{y:.1f} H{pen.x(float(layer.x_high[k])):.1f}"/>'
        )
    kind = f"s-{layer.colour} hollow" if layer.hollow else f"f-{layer.colour}"
    parts.append(f'<circle class="{kind}" stroke-width="2" cx="{x:.1f}" cy="{y:.1f}" r="{layer.size:g}"/>')
    return "".join(parts)


def _legend(chart: Chart, pen: _Pen) -> list[str]:
    entries = [layer for layer in chart.layers if not isinstance(layer, Text) and layer.label]
    if chart.legend == "none" or not entries:
        return []
    width = max(len(layer.label) for layer in entries) * 6.1 + 34
    height = len(entries) * LEGEND_ROW_PX + 8
    left = pen.right - width - 8 if "right" in chart.legend else pen.left + 8
    top = pen.bottom - height - 8 if "lower" in chart.legend else pen.top + 6
    parts = [f'<rect class="legend" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="4"/>']
    for number, layer in enumerate(entries):
        y = top + 4 + LEGEND_ROW_PX * (number + 0.5)
        parts.append(_swatch(layer, left + 7, y))
        parts.append(f'<text class="tick" x="{left + 30:.1f}" y="{y + 4:.1f}">{escape(layer.label)}</text>')
    return parts


def _swatch(layer: Line | Band | Points | Bars, x: float, y: float) -> str:
    if isinstance(layer, Line):
        dash = ' stroke-dasharray="4 4"' if layer.dashed else ""
        return f'<path class="s-{layer.colour}" stroke-width="2"{dash} d="M{x:.1f},{y:.1f} h17"/>'
    if isinstance(layer, Points):
        kind = f"s-{layer.colour} hollow" if layer.hollow else f"f-{layer.colour}"
        return f'<circle class="{kind}" stroke-width="2" cx="{x + 8:.1f}" cy="{y:.1f}" r="4"/>'
    kind = "band" if isinstance(layer, Band) else "bar"
    return f'<rect class="f-{layer.colour} {kind}" x="{x:.1f}" y="{y - 5:.1f}" width="17" height="10"/>'
