"""What a probe found: rows of a table, paired differences, and what was compared with what."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from evaluate.compare import Comparison, compare_runs
from evaluate.interval import Estimate, auroc_interval, estimate
from evaluate.probe_config import ProbeConfig
from evaluate.roc import auroc
from ingest.config import config_digest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeRow:
    """One line of the table.

    Attributes:
        level: tile or slide. method: linear, neighbours, frozen (gated attention) or end_to_end.
        details: how it came about, such as areas of folds, chosen costs, selected epoch.
    """

    level: str
    method: str
    encoder: str
    auroc: Estimate
    num_units: int
    num_positive: int
    num_patients: int
    predictions: pd.DataFrame = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.encoder}, {self.method.replace('_', ' ')}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """Everything the page shows; `left_out` and `notes` are sentences."""

    rows: Sequence[ProbeRow]
    comparisons: Sequence[Comparison]
    encoders: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]
    config: ProbeConfig


def probe_row(level: str, method: str, encoder: str, predictions: pd.DataFrame, details: Mapping[str, Any]) -> ProbeRow:
    labels, scores = predictions["label"].to_numpy(np.float64), predictions["score"].to_numpy(np.float64)
    patients = predictions["patient_key"].to_numpy(object)
    area = estimate(lambda: (auroc(labels, scores), auroc_interval(labels, scores, patients)))
    return ProbeRow(level=level, method=method, encoder=encoder, auroc=area, num_units=len(labels),
                    num_positive=int(labels.sum()), num_patients=len(set(patients)), predictions=predictions,
                    details=details)  # fmt: skip


def compare_rows(rows: Sequence[ProbeRow], config: ProbeConfig) -> list[Comparison]:
    """Within each level and way of probing tiles, every row against the first; slides all against the first."""
    found: list[Comparison] = []
    groups: dict[tuple[str, str], list[ProbeRow]] = {}
    for row in rows:
        groups.setdefault((row.level, row.method if row.level == "tile" else ""), []).append(row)
    for (level, _), members in groups.items():
        if len(members) > 1:
            frames = {row.name: row.predictions for row in members}
            compared = compare_runs(frames, num_resamples=config.num_resamples, seed=config.seed)
            found += [replace(item, level=level) for item in compared]
    return found


def probe_text(result: ProbeResult) -> str:
    """The table for the terminal."""
    lines = ["| level | encoder | method | AUROC (95 % interval) | units | patients |", "|---|---|---|---|---|---|"]
    for row in result.rows:
        lines.append(f"| {row.level} | {row.encoder} | {row.method} | {shown(row.auroc)} | {row.num_units:,} | "
                     f"{row.num_patients:,} |")  # fmt: skip
    for item in result.comparisons:
        p = "" if item.p_value is None else f", p {item.p_value_adjusted or item.p_value:.3g}"
        lines.append(f"{item.level}: {item.first} minus {item.second}: {shown(item.difference, sign='+')}{p}")
    return "\n".join(lines)


def shown(value: Estimate, sign: str = "") -> str:
    if value.value is None:
        return f"not defined: {value.reason}"
    text = f"{value.value:{sign}.3f}"
    return (
        text if value.low is None or value.high is None else f"{text} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"
    )


def probe_document(result: ProbeResult) -> dict[str, Any]:
    """The content of probe.json."""
    names = ("level", "method", "encoder", "num_units", "num_positive", "num_patients")
    return {
        "schema_version": 1,
        "rows": [{name: getattr(row, name) for name in names} | {"auroc": asdict(row.auroc), "details": dict(row.details)}
                 for row in result.rows],
        "comparisons": [asdict(item) for item in result.comparisons],
        "encoders": {name: dict(facts) for name, facts in result.encoders.items()}, "notes": list(result.notes),
        "config": result.config.model_dump(mode="json"), "config_digest": config_digest(result.config),
    }  # fmt: skip
