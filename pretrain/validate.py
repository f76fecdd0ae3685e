"""The tune part at the end of an epoch: loss and AUROC with every tile. The test part is never touched by training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from pretrain.cohort import Cohort, CohortSlide
from pretrain.config import PretrainConfig
from pretrain.forward import forward_slides
from pretrain.heads import probabilities
from pretrain.loader import TileFeed
from pretrain.step import Models
from pretrain.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of the tune part.

    Attributes:
        loss: mean over slides; None without slides.
        auc: per task with two classes; None where it is not defined (one class only, or more than two).
        predictions: per task the scores and the targets of the slides, NaN = not known.
        num_slides, num_unread: slides scored; slides that could not be read.
    """

    loss: float | None
    auc: dict[str, float | None]
    predictions: dict[str, tuple[list[float], list[float]]]
    num_slides: int
    num_unread: int

    @property
    def mean_auc(self) -> float | None:
        known = [value for value in self.auc.values() if value is not None]
        return float(np.mean(known)) if known else None


def validate(
    config: PretrainConfig, models: Models, feed: TileFeed, slides: Sequence[CohortSlide], cohort: Cohort, team: Team
) -> Scores:
    """Score the tune slides; every rank returns the same."""
    rows: list[tuple[float, dict[str, float], tuple[float, ...]]] = []
    num_unread = 0
    for share, result in forward_slides(config, models, feed, slides, team):
        if result is None:
            num_unread += int(team.is_aggregator)
        elif result.logits is not None:
            scores = {name: float(values[-1]) for name, values in probabilities(result.logits).items()}
            rows.append((result.loss, scores, share.plan.slide.targets))
    rows, num_unread = _from_all_teams(rows, num_unread, team)
    losses = [loss for loss, _, _ in rows if not math.isnan(loss)]
    predictions = {
        task: ([scores[task] for _, scores, _ in rows], [targets[index] for _, _, targets in rows])
        for index, task in enumerate(cohort.tasks)
    }
    return Scores(
        loss=float(np.mean(losses)) if losses else None, predictions=predictions,
        auc={task: roc_auc(*given) for task, given in predictions.items()}, num_slides=len(rows), num_unread=num_unread,
    )  # fmt: skip


def roc_auc(scores: Sequence[float], targets: Sequence[float]) -> float | None:
    """AUROC over the known targets (NaN = unknown); None unless exactly the classes 0 and 1 are there."""
    known = [(score, target) for score, target in zip(scores, targets, strict=True) if not math.isnan(target)]
    if {target for _, target in known} != {0.0, 1.0}:
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([target for _, target in known], [score for score, _ in known]))


def _from_all_teams(
    rows: list[tuple[float, dict[str, float], tuple[float, ...]]], num_unread: int, team: Team
) -> tuple[list[tuple[float, dict[str, float], tuple[float, ...]]], int]:
    if team.world_size == 1:
        return rows, num_unread
    everyone: list[tuple[list[tuple[float, dict[str, float], tuple[float, ...]]], int]]
    everyone = [([], 0)] * team.world_size
    dist.all_gather_object(everyone, (rows, num_unread))
    return [row for part, _ in everyone for row in part], sum(count for _, count in everyone)
