"""Gated attention on frozen features: what the two-step way reaches with an encoder, on the same split as training.

Trained on the manifest's train part; the epoch that scores the test part is chosen on tune, or is the last one. Labels of
the test part are not looked at here. Features are standardised with mean and deviation of the train part.
Shape suffixes: T tiles of a slide, F feature width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluate.probe_config import SlideProbeConfig
from evaluate.roc import NotDefinedError, auroc
from ingest.errors import InputError
from ingest.progress import track
from pretrain.aggregator import build_aggregator
from pretrain.cohort import CohortSlide
from pretrain.config import AggregatorConfig, EncoderConfig, OptimConfig, TaskConfig
from pretrain.heads import Heads, probabilities, slide_losses, total_loss
from pretrain.order import epoch_order
from pretrain.sample import derive_seed
from pretrain.schedule import Optimisers, build_optimisers, rate_factor, set_rate
from pretrain.share import seeded
from pretrain.step import Models

ReadFeatures = Callable[[str], NDArray[np.float32]]  # slide key -> [T, F]
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideProbe:
    """Scores of the test part, and how they came about.

    Attributes:
        predictions: the contract of `evaluate.predictions`; every slide is in split test.
        selected_on: "tune" or "last epoch (nothing selected)".
        chosen_epoch: counted from 1.
        tune_auroc: of the chosen epoch; None where tune does not define one.
    """

    predictions: pd.DataFrame
    selected_on: str
    chosen_epoch: int
    tune_auroc: float | None


def probe_slides(
    train: Sequence[CohortSlide], tune: Sequence[CohortSlide], test: Sequence[CohortSlide], task: str,
    read_features: ReadFeatures, config: SlideProbeConfig, seed: int, title: str,
) -> SlideProbe:  # fmt: skip
    """Train, choose, score.

    Args:
        train, tune, test: slides with features and a known label, which is their only target.
    Raises:
        InputError: the train part lacks a class, or there is no test part.
    """
    if len({slide.targets[0] for slide in train}) < 2 or not test:
        raise InputError(
            f"probe: {len(train)} slides to train on, {len(test)} to test on; both classes are needed in the train part; "
            "look at the split with `python -m ingest show`"
        )
    mean_F, std_F = feature_statistics(read_features(slide.slide_key) for slide in train)

    def bag(slide: CohortSlide) -> Tensor:
        return ((torch.from_numpy(read_features(slide.slide_key)) - mean_F) / std_F).float()

    def score(slides: Sequence[CohortSlide]) -> list[float]:
        return [_score(aggregator, heads, bag(slide), task) for slide in slides]

    aggregator, heads = _attention_model(len(mean_F), task, config, seed)
    optim = OptimConfig(
        learning_rate=config.learning_rate, weight_decay=config.weight_decay, warmup_epochs=config.warmup_epochs
    )
    optimisers = build_optimisers(Models(encoder=None, aggregator=aggregator, heads=heads), EncoderConfig(), optim)
    weights = np.array([slide.weight for slide in train])
    chosen: tuple[int, float | None, list[float]] | None = None
    step = 0
    for epoch in track(range(config.num_epochs), config.num_epochs, title):
        order = epoch_order(weights, config.slides_per_epoch, seed=seed, epoch=epoch)
        for index in order:
            set_rate(optimisers, rate_factor(step, len(order), config.num_epochs, optim))
            with seeded(derive_seed(seed, "step", step), CPU):
                _update(aggregator, heads, optimisers, bag(train[index]), train[index].targets, optim.clip_norm)
            step += 1
        area = _area([slide.targets[0] for slide in tune], score(tune))
        selects = config.select_by == "tune_auc"
        is_better = selects and area is not None and (chosen is None or chosen[1] is None or area > chosen[1])
        if is_better or (chosen is None and epoch + 1 == config.num_epochs):
            chosen = epoch + 1, area, score(test)
    assert chosen is not None, "the last epoch is taken if no other was"
    selected = config.select_by == "tune_auc" and chosen[1] is not None
    return SlideProbe(
        predictions=_predictions(test, task, chosen[2]), chosen_epoch=chosen[0], tune_auroc=chosen[1],
        selected_on="tune" if selected else "last epoch (nothing selected)",
    )  # fmt: skip


def feature_statistics(bags: Iterable[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Mean and deviation [F] over all tiles, in float64; a feature that never varies has deviation 1."""
    num, total, squares = 0, np.zeros(1), np.zeros(1)
    for bag_TF in bags:
        wide_TF = bag_TF.astype(np.float64)
        num, total, squares = num + len(wide_TF), total + wide_TF.sum(0), squares + (wide_TF**2).sum(0)
    mean = total / num
    std = np.sqrt(np.clip(squares / num - mean**2, 0, None))
    return torch.from_numpy(mean), torch.from_numpy(np.where(std > 1e-6 * (np.abs(mean) + 1e-12), std, 1.0))


def _attention_model(num_features: int, task: str, config: SlideProbeConfig, seed: int) -> tuple[nn.Module, Heads]:
    shape = AggregatorConfig(hidden_size=config.hidden_size, gate_size=config.gate_size, dropout=config.dropout)
    with seeded(derive_seed(seed, "aggregator"), CPU):
        aggregator = build_aggregator(shape, num_features)
        return aggregator, Heads(aggregator.num_features, (TaskConfig(name=task),))


def _update(
    aggregator: nn.Module,
    heads: Heads,
    optimisers: Optimisers,
    bag_TF: Tensor,
    targets: Sequence[float],
    clip_norm: float,
) -> None:
    aggregator.train()
    heads.train()
    logits = heads(aggregator(bag_TF)[0])
    losses = slide_losses(logits, torch.tensor(targets), heads.tasks)
    total_loss(losses, logits, heads.tasks).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([*aggregator.parameters(), *heads.parameters()], clip_norm)
    for optimiser in optimisers.all():
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def _score(aggregator: nn.Module, heads: Heads, bag_TF: Tensor, task: str) -> float:
    aggregator.eval()
    heads.eval()
    with torch.inference_mode():
        return float(probabilities(heads(aggregator(bag_TF)[0]))[task][-1])


def _area(labels: Sequence[float], scores: Sequence[float]) -> float | None:
    try:
        return auroc(labels, scores)
    except NotDefinedError:
        return None


def _predictions(slides: Sequence[CohortSlide], task: str, scores: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame([
        {"slide_key": slide.slide_key, "specimen_key": slide.specimen_key, "case_key": slide.case_key,
         "patient_key": slide.patient_key, "task": task, "label": slide.targets[0], "score": score, "split": "test",
         "fold": 0, "num_tiles": slide.num_tiles}
        for slide, score in zip(slides, scores, strict=True)
    ])  # fmt: skip
