"""Training curves from the run folder's metrics.jsonl, one JSON object a line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.roc import Floats
from ingest.errors import InputError

Curve = tuple[Floats, Floats]


def read_training_log(path: Path) -> Mapping[str, Curve]:
    """For every numeric field: the steps at which it was logged [n], rising, and its values [n].

    Names are `kind/field`, for example `step/loss`, `step/seconds/wait`, `epoch/tune_auc/cancer`; nested objects are
    followed.
    A step that occurs twice (the run was resumed from before it) keeps its last value. A half-written last line, which
    a kill leaves behind, is passed over; a broken line elsewhere is an InputError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such file; give the metrics.jsonl of a run folder") from None
    seen: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                continue
            raise InputError(f"{path.name}: line {number} is not JSON; the log is damaged") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue  # events without a step (start, resume) are not points of a curve
        for name, value in _numbers(record, str(record.get("kind", "step"))):
            seen.setdefault(name, {})[record["step"]] = value
    return {name: _curve(points) for name, points in seen.items()}


def smoothed(values: Floats, share: float = 0.02) -> Floats:
    """Centred running mean over `share` of the points (at least 5), shorter at the ends; NaN is left out."""
    width = max(5, int(len(values) * share) | 1)
    half = width // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    start = np.clip(np.arange(len(values)) - half, 0, None)
    stop = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    number = counts[stop] - counts[start]
    means: Floats = np.divide(sums[stop] - sums[start], number, out=np.full(len(values), np.nan), where=number > 0)
    return means


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}/{name}")
        elif name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", float(value)


def _curve(points: Mapping[int, float]) -> Curve:
    steps = np.array(sorted(points), dtype=np.float64)
    return steps, np.array([points[int(step)] for step in steps])
