"""Invented predictions: patients with several slides, a patient effect and a slide effect, no real data."""

from typing import TypeVar

import numpy as np
import pandas as pd

ValueT = TypeVar("ValueT")


def some(value: ValueT | None) -> ValueT:
    """The value, which the test expects to be defined."""
    assert value is not None
    return value


def invented_predictions(num_patients: int = 60, *, gap: float = 2.0, seed: int = 0, fold: int = 0) -> pd.DataFrame:
    """A valid table with tune (a quarter of the patients) and test rows, specimens of two slides, two groups."""
    generator = np.random.default_rng(seed)
    slides = 1 + generator.poisson(2, num_patients)
    patient = np.repeat(np.arange(num_patients), slides)
    position = np.concatenate([np.arange(count) for count in slides])
    positive = patient % 2 == 0
    logit = (
        generator.normal(size=num_patients)[patient] + 0.6 * generator.normal(size=len(patient)) + gap * positive - 1
    )
    return pd.DataFrame(
        {
            "slide_key": [f"s{p:03d}-{k}" for p, k in zip(patient, position, strict=True)],
            "specimen_key": [f"p{p:03d}-{k // 2}" for p, k in zip(patient, position, strict=True)],
            "case_key": [f"c{p:03d}" for p in patient],
            "patient_key": [f"p{p:03d}" for p in patient],
            "task": "cancer",
            "label": positive.astype(float),
            "score": 1 / (1 + np.exp(-logit)),
            "split": np.where(patient % 4 < 1 + (patient % 8 == 1), "tune", "test"),
            "fold": fold,
            "num_tiles": 100,
            "run_digest": "abc123",
            "site": np.where(patient % 3 == 0, "breast", "axilla"),
            "scanner": np.where(patient % 5 == 0, "A", "B"),
        }
    )
