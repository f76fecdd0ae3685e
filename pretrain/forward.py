"""Predictions for many slides with all their tiles, no graph: what validation and `evaluate predict` share."""

from collections.abc import Iterator, Sequence

import torch

from pretrain.augment import normalise
from pretrain.cohort import CohortSlide
from pretrain.config import PretrainConfig
from pretrain.encoder import preprocessing
from pretrain.loader import SlideTiles, TileFeed, plan_all_tiles
from pretrain.share import Prepare
from pretrain.step import Models, StepResult, slide_forward
from pretrain.team import Team


def team_slides(slides: Sequence[CohortSlide], team: Team) -> Sequence[CohortSlide]:
    """The slides of this rank's team: every `num_teams`-th one."""
    return slides[team.index :: team.num_teams]


def forward_slides(
    config: PretrainConfig, models: Models, feed: TileFeed, slides: Sequence[CohortSlide], team: Team
) -> Iterator[tuple[SlideTiles, StepResult | None]]:
    """Each slide of this rank's team with its result; None where the slide could not be read (on any rank).

    Logits and attention are known on the aggregator only.
    """
    prepare = plain_view(config)
    for share in feed.read(plan_all_tiles(slide, team) for slide in team_slides(slides, team)):
        if share.problem:
            yield share, None
            continue
        targets = torch.tensor(share.plan.slide.targets, dtype=torch.float64)
        result = slide_forward(models, share.tiles_K3HW, share.plan.counts, team, config.step, targets=targets,
                               slide=share.plan.slide.slide_key, prepare=prepare)  # fmt: skip
        yield share, result


def plain_view(config: PretrainConfig) -> Prepare:
    """Tiles as they are, normalised with the encoder's own constants."""
    mean, std = preprocessing(config.encoder)
    return lambda tiles_K3HW, tile_ids, generator: normalise(tiles_K3HW.float().div_(255), mean, std)
