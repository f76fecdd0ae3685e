"""A chart as data, so that the page (inline SVG that follows dark mode) and the files (matplotlib) show the same thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from evaluate.roc import Floats

Colour: TypeAlias = Literal["ink", "muted", "main", "second", "third"]
Legend: TypeAlias = Literal["lower right", "upper right", "upper left", "lower left", "none"]
Range: TypeAlias = tuple[float, float]
Ticks: TypeAlias = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    x: Floats
    y: Floats
    colour: Colour = "main"
    width: float = 2.0  # px on the page, points in the files
    dashed: bool = False
    opacity: float = 1.0
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The area between two lines."""

    x: Floats
    low: Floats
    high: Floats
    colour: Colour = "main"
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Markers with optional bars: `y_low`, `y_high` upright, `x_low`, `x_high` lying."""

    x: Floats
    y: Floats
    y_low: Floats | None = None
    y_high: Floats | None = None
    x_low: Floats | None = None
    x_high: Floats | None = None
    colour: Colour = "main"
    size: float = 4.0  # radius in px
    hollow: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Upright bars from 0 (or `base`) between `edges` [n + 1]."""

    edges: Floats
    heights: Floats
    colour: Colour = "main"
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    x: float
    y: float
    text: str
    colour: Colour = "ink"
    anchor: Literal["start", "middle", "end"] = "start"


Layer: TypeAlias = Line | Band | Points | Bars | Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`name` is the file name; `alt` says in words what the picture shows; layers are drawn in order."""

    name: str
    title: str
    alt: str
    x_label: str
    y_label: str
    x_range: Range
    y_range: Range
    x_ticks: Ticks
    y_ticks: Ticks
    layers: Sequence[Layer]
    width_px: int = 460
    height_px: int = 400
    left_px: int = 56
    legend: Legend = "lower right"


UNIT_TICKS: Ticks = tuple((value, f"{value:g}") for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


def even_ticks(low: float, high: float, num: int = 5) -> Ticks:
    """About `num` round ticks inside low..high (steps of 1, 2 or 5 times a power of ten)."""
    if not high > low:
        return ((low, f"{low:g}"),)
    rough = (high - low) / num
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    values = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step
    return tuple((float(value), f"{value:,.10g}") for value in np.round(values, 12) + 0.0)


def thinned(x: Floats, y: Floats, x_range: Range, y_range: Range, steps: float = 900.0) -> tuple[Floats, Floats]:
    """The points that matter on a picture `steps` pixels wide: corners stay, what repeats a pixel or a line goes."""
    if len(x) < 3:
        return x, y
    column = np.round((x - x_range[0]) / (x_range[1] - x_range[0]) * steps)
    row = np.round((y - y_range[0]) / (y_range[1] - y_range[0]) * steps)
    moved = np.append(True, (np.diff(column) != 0) | (np.diff(row) != 0))
    moved[-1] = True
    kept = np.flatnonzero(moved)
    across, up = np.diff(column[kept]), np.diff(row[kept])
    turns = across[1:] * up[:-1] != across[:-1] * up[1:]
    kept = kept[np.concatenate([[True], turns, [True]])]
    return x[kept], y[kept]
