"""Settings of `evaluate probe`. Imports no torch."""

from typing import Literal

from pydantic import Field

from ingest.config import Section


class SlideProbeConfig(Section):
    """Gated attention on frozen features: the two-step baselines of the paper."""

    num_epochs: int = Field(default=40, ge=1)
    slides_per_epoch: float = Field(default=0.5, gt=0, le=1)  # share of the train part, drawn by weight, as in training
    learning_rate: float = Field(default=1e-4, gt=0)  # peak of AdamW
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    hidden_size: int = Field(default=512, gt=0)  # of the aggregator, as in training
    gate_size: int = Field(default=384, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    select_by: Literal["tune_auc", "last"] = "tune_auc"  # which epoch scores the test part; never the test part itself


class ProbeConfig(Section):
    """How encoders are compared."""

    num_folds: int = Field(default=5, ge=2)  # tiles: outer folds over patients
    num_inner_folds: int = Field(default=3, ge=2)  # folds inside the training side, on which the cost is chosen
    costs: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression on standardised features
    num_neighbours: int = Field(default=20, ge=1)  # k of the nearest neighbours, by cosine
    random_baseline: bool = True  # random weights of the first encoder's model beside the others
    colour_baseline: bool = True  # tiles: 16 numbers about colour, no network at all
    task: str = "cancer"  # slides: target y_<task>; without --manifest a run brings its own task, scheme, fold
    scheme: str = "holdout"
    fold: int = Field(default=0, ge=0)
    num_resamples: int = Field(default=2000, ge=100)  # of the paired patient bootstrap
    seed: int = Field(default=0, ge=0)  # of folds, random weights and the aggregator
    slides: SlideProbeConfig = SlideProbeConfig()
