"""Training: load, step, clip, update, log, save. Reads top to bottom; every rank runs the same lines.

Which slides, which tiles and every random number are pure functions of (seed, epoch, slide), so a run that is resumed
inside an epoch goes on exactly where it stopped, and checkpoints hold no generator state.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ingest.errors import ConfigError, InputError
from pretrain.augment import augment, draw, normalise
from pretrain.average import averaged, decay_at, move_average
from pretrain.cohort import CohortSlide
from pretrain.config import PretrainConfig
from pretrain.encoder import preprocessing
from pretrain.exit_codes import EXIT_STOPPED
from pretrain.lines import epoch_line, epoch_sentence, result_facts, step_line
from pretrain.live import live_line
from pretrain.loader import SlideTiles, plan_share
from pretrain.order import epoch_order
from pretrain.reading import Reading, sum_reading
from pretrain.record import write_result
from pretrain.sample import derive_seed
from pretrain.schedule import rate_factor, set_rate
from pretrain.share import Prepare
from pretrain.state import Position, Run, save
from pretrain.step import StepResult, slide_step
from pretrain.team import Team
from pretrain.update import clip_gradients, reduce_gradients
from pretrain.validate import Scores, validate


def train(run: Run) -> None:
    """Train to the end of the last epoch, or until the tune part no longer gets better."""
    config, at = run.config, run.at
    tune_slides = run.cohort.part("tune")
    require_selectable(config, tune_slides)
    while at.epoch < config.run.num_epochs and not _has_stalled(config, at):
        started_at = time.perf_counter()
        reading = train_epoch(run)
        save(run)  # scoring every tile of the tune part takes a while; what was trained is safe before it
        with averaged(run.models, run.average, run.team):
            scores = validate(config, run.models, run.feed, tune_slides, run.cohort, run.team)
        is_best = note_selection(config, scores, at)
        line = epoch_line(run, scores, is_best, reading, time.perf_counter() - started_at)
        at.epoch, at.update, at.loss_sum, at.num_slides = at.epoch + 1, 0, 0.0, 0
        if run.record is not None:
            run.record.epoch(at.step, line, scores)
        run.say(epoch_sentence(line, reading, config))
        save(run, best=is_best)
    if run.record is not None:
        write_result(config.run.folder, result_facts(run))


def train_epoch(run: Run) -> Reading:
    """The updates of this epoch that are not done yet; returns how their tiles came."""
    config, team, at = run.config, run.team, run.at
    updates = epoch_updates(run.cohort.part("train"), config, team, at.epoch)[at.update :]
    updates_per_epoch = at.update + len(updates)
    plans = (
        plan_share(slide, team, config.sample, config.run.seed, at.epoch) for slides in updates for slide in slides
    )
    started_at = time.perf_counter()
    lines: list[dict[str, Any]] = []
    screen = (
        live_line(f"epoch {at.epoch + 1}", len(updates)) if run.record is not None else nullcontext(lambda line: None)
    )
    with closing(run.feed.read(plans)) as shares, screen as show:
        for slides in updates:
            line, must_stop = update_weights(run, islice(shares, len(slides)), updates_per_epoch)
            lines.append(line)
            show(line)
            if run.record is not None:
                run.record.step(at.step, line)
            if must_stop or (config.run.save_every_steps and at.step % config.run.save_every_steps == 0):
                save(run)
            if must_stop:
                run.say(f"stopped by a signal after step {at.step} and saved; start the same command with --resume")
                sys.exit(EXIT_STOPPED)
    if at.num_slides == 0:
        raise InputError(f"epoch {at.epoch + 1}: none of its slides could be read; is the slide storage mounted?")
    return sum_reading(lines, time.perf_counter() - started_at, team.num_encoders * team.num_teams)


def update_weights(run: Run, shares: Iterator[SlideTiles], updates_per_epoch: int) -> tuple[dict[str, Any], bool]:
    """One update: the slides of this team, then the common gradient, then the optimiser. Returns its log line and whether
    a signal asks to stop."""
    config, team, at = run.config, run.team, run.at
    started_at = time.perf_counter()
    loss_scale = run.scale.value if config.step.precision == "float16" else 1.0
    set_rate(run.optimisers, rate_factor(at.step, updates_per_epoch, config.run.num_epochs, config.optim))
    results: list[StepResult] = []
    read: list[SlideTiles] = []
    for share in shares:
        read.append(replace(share, tiles_K3HW=None))  # the pixels are valid in this turn only
        if share.problem:
            continue
        targets = torch.tensor(share.plan.slide.targets, dtype=torch.float64)
        results.append(slide_step(
            run.models, share.tiles_K3HW, share.plan.counts, targets, team, config.step, share.plan.seed,
            slide=share.plan.slide.slide_key, prepare=training_view(config, share), loss_scale=loss_scale,
        ))  # fmt: skip
    update = reduce_gradients(run.models, team, config.step, results, at.step, loss_scale)
    optimiser_started_at = time.perf_counter()
    if update.finite:
        clip_gradients(run.models, update, config.optim.clip_norm)
        for optimiser in run.optimisers.all():
            optimiser.step()
        if run.average is not None and config.optim.ema_decay is not None:
            move_average(run.average, run.models, team, decay_at(at.step, config.optim.ema_decay))
    for optimiser in run.optimisers.all():
        optimiser.zero_grad(set_to_none=True)
    if config.step.precision == "float16" and update.num_slides:
        run.scale.update(update.finite)
    at.update, at.step = at.update + 1, at.step + 1
    at.loss_sum, at.num_slides = at.loss_sum + update.loss * update.num_slides, at.num_slides + update.num_slides
    now = time.perf_counter()
    return step_line(run, update, results, read, {"optimiser": now - optimiser_started_at, "step": now - started_at})


def epoch_updates(
    slides: Sequence[CohortSlide], config: PretrainConfig, team: Team, epoch: int
) -> list[list[CohortSlide]]:
    """For every update of the epoch, the slides of this rank's team; in the last update some teams may have fewer."""
    weights = np.array([slide.weight for slide in slides], dtype=np.float64)
    order = epoch_order(weights, config.data.slides_per_epoch, seed=config.run.seed, epoch=epoch)
    size = team.num_teams * config.optim.slides_per_update
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [[slides[index] for index in group[team.index :: team.num_teams]] for group in groups]


def training_view(config: PretrainConfig, share: SlideTiles) -> Prepare:
    """Augmented and normalised tiles; the random numbers of a tile depend on (seed, epoch, slide, tile) alone."""
    mean, std = preprocessing(config.encoder)
    draws_TP = torch.from_numpy(draw(sum(share.plan.counts), (derive_seed(share.plan.seed, "augment"),)))

    def prepare(tiles_K3HW: torch.Tensor, tile_ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        tiles = tiles_K3HW.float().div_(255)
        return normalise(augment(tiles, draws_TP[tile_ids].to(tiles.device), config.augment), mean, std)

    return prepare


def require_selectable(config: PretrainConfig, tune_slides: Sequence[CohortSlide]) -> None:
    """Raises:
    ConfigError: `best` is chosen by tune AUC, but the tune part cannot have one; said before training, not after an epoch.
    """
    classes = [{slide.targets[index] for slide in tune_slides} for index in range(len(config.tasks))]
    if config.run.select_by == "tune_auc" and not any(found >= {0.0, 1.0} for found in classes):
        raise ConfigError(f"run.select_by = tune_auc: the tune part ({len(tune_slides)} slides) does not hold both classes of any "
                          "task; make a larger tune part, or set run.select_by = last")  # fmt: skip


def note_selection(config: PretrainConfig, scores: Scores, at: Position) -> bool:
    """Whether this epoch is the best so far; moves `at.best_auc` and `at.best_epoch`.

    Raises:
        InputError: selection by tune AUC, but too few of the tune slides could be read.
    """
    if config.run.select_by == "last":
        at.best_epoch = at.epoch
        return True
    if scores.mean_auc is None:
        raise InputError(f"epoch {at.epoch + 1}: {scores.num_unread} tune slides could not be read, and the {scores.num_slides} "
                         "others do not hold both classes of any task; is the storage mounted? add --resume then")  # fmt: skip
    if scores.mean_auc <= at.best_auc:
        return False
    at.best_auc, at.best_epoch = scores.mean_auc, at.epoch
    return True


def _has_stalled(config: PretrainConfig, at: Position) -> bool:
    patience = config.run.stop_after_epochs
    return patience is not None and at.best_epoch >= 0 and at.epoch - 1 - at.best_epoch >= patience
