"""Training: load, step, clip, update, log, save. Reads top to bottom; every rank runs the same lines.

Which slides, which tiles and every random number are pure functions of (seed, epoch, slide), so a run that is resumed
inside an epoch goes on exactly where it stopped, and checkpoints hold no generator state.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch

from ingest.errors import ConfigError, InputError
from pretrain.augment import augment, draw, normalise
from pretrain.cohort import CohortSlide
from pretrain.config import PretrainConfig
from pretrain.encoder import preprocessing
from pretrain.loader import SlideTiles, plan_share
from pretrain.order import epoch_order
from pretrain.record import print_step
from pretrain.sample import derive_seed
from pretrain.schedule import rate_factor, set_rate
from pretrain.share import Prepare
from pretrain.state import Position, Run, save
from pretrain.step import StepResult, slide_step
from pretrain.team import Team, sum_over_ranks
from pretrain.update import Update, clip_gradients, reduce_gradients
from pretrain.validate import Scores, validate

EXIT_STOPPED = 75  # a signal stopped the run after saving: start it again with --resume (EX_TEMPFAIL of sysexits.h)


def train(run: Run) -> None:
    """Train to the end of the last epoch, or until the tune part no longer gets better."""
    config, at = run.config, run.at
    tune_slides = run.cohort.part("tune")
    while at.epoch < config.run.num_epochs and not _has_stalled(config, at):
        started_at = time.perf_counter()
        wait_share = train_epoch(run)
        scores = validate(config, run.models, run.feed, tune_slides, run.cohort, run.team)
        is_best = note_selection(config, scores, at)
        line = epoch_line(run, scores, is_best, wait_share, time.perf_counter() - started_at)
        at.epoch, at.update, at.loss_sum, at.num_slides = at.epoch + 1, 0, 0.0, 0
        if run.record is not None:
            run.record.epoch(at.step, line)
        run.say(epoch_sentence(line))
        save(run, best=is_best)


def train_epoch(run: Run) -> float:
    """The updates of this epoch that are not done yet; returns the share of the time spent waiting for tiles."""
    config, team, at = run.config, run.team, run.at
    updates = epoch_updates(run.cohort.part("train"), config, team, at.epoch)
    plans = (plan_share(slide, team, config.sample, config.run.seed, at.epoch)
             for slides in updates[at.update :] for slide in slides)  # fmt: skip
    started_at = time.perf_counter()
    num_done, wait_seconds = 0, 0.0
    with closing(run.feed.read(plans)) as shares:
        for slides in updates[at.update :]:
            line, must_stop = update_weights(run, islice(shares, len(slides)), len(updates))
            num_done, wait_seconds = num_done + 1, wait_seconds + line["seconds"]["wait"]
            if run.record is not None:
                run.record.step(at.step, line)
                print_step(
                    at.epoch, num_done, len(updates), time.perf_counter() - started_at, line["loss"], line["num_tiles"]
                )
            if must_stop or (config.run.save_every_steps and at.step % config.run.save_every_steps == 0):
                save(run)
            if must_stop:
                run.say(f"stopped by a signal after step {at.step} and saved; start the same command with --resume")
                sys.exit(EXIT_STOPPED)
    if at.num_slides == 0:
        raise InputError(f"epoch {at.epoch + 1}: none of its slides could be read; is the slide storage mounted?")
    return wait_seconds / max(time.perf_counter() - started_at, 1e-9)


def update_weights(run: Run, shares: Iterator[SlideTiles], updates_per_epoch: int) -> tuple[dict[str, Any], bool]:
    """One update: the slides of this team, then the common gradient, then the optimiser. Returns its log line and whether
    a signal asks to stop."""
    config, team, at = run.config, run.team, run.at
    started_at = time.perf_counter()
    loss_scale = run.scale.value if config.step.precision == "float16" else 1.0
    set_rate(run.optimisers, rate_factor(at.step, updates_per_epoch, config.run.num_epochs, config.optim))
    results: list[StepResult] = []
    unread: list[str] = []
    wait_seconds = read_seconds = 0.0
    for share in shares:
        wait_seconds, read_seconds = wait_seconds + share.wait_seconds, read_seconds + share.decode_seconds
        if share.problem:
            unread.append(share.plan.slide.slide_key)
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
    for optimiser in run.optimisers.all():
        optimiser.zero_grad(set_to_none=True)
    if config.step.precision == "float16" and update.num_slides:
        run.scale.update(update.finite)
    at.update, at.step = at.update + 1, at.step + 1
    at.loss_sum, at.num_slides = at.loss_sum + update.loss * update.num_slides, at.num_slides + update.num_slides
    now = time.perf_counter()
    seconds = {"wait": wait_seconds, "decode": read_seconds, "optimiser": now - optimiser_started_at,
               "step": now - started_at}  # fmt: skip
    return step_line(run, update, results, unread, seconds)


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


def note_selection(config: PretrainConfig, scores: Scores, at: Position) -> bool:
    """Whether this epoch is the best so far; moves `at.best_auc` and `at.best_epoch`.

    Raises:
        ConfigError: selection by tune AUC, but it is not defined.
    """
    if config.run.select_by == "last":
        at.best_epoch = at.epoch
        return True
    if scores.mean_auc is None:
        raise ConfigError(f"run.select_by = tune_auc: the tune part ({scores.num_slides} slides) does not hold both classes "
                          "of any task; make a larger tune part, or set run.select_by = last")  # fmt: skip
    if scores.mean_auc <= at.best_auc:
        return False
    at.best_auc, at.best_epoch = scores.mean_auc, at.epoch
    return True


def step_line(
    run: Run, update: Update, results: Sequence[StepResult], unread: Sequence[str], seconds: dict[str, float]
) -> tuple[dict[str, Any], bool]:
    """The line of `metrics.jsonl` (seconds are means over the ranks that do the work), and whether any rank must stop."""
    team = run.team
    phases = {phase: math.fsum(result.seconds[phase] for result in results)
              for phase in ("encode", "exchange", "aggregate", "backward")}  # fmt: skip
    own = {**seconds, **phases}
    by_encoders = ("wait", "decode", "encode", "exchange", "backward")
    values = [own[name] if team.is_encoder else 0.0 for name in by_encoders]
    values += [own[name] if team.is_aggregator else 0.0 for name in ("aggregate", "optimiser", "step")]
    values += [float(sum(result.num_tiles for result in results)) if team.is_aggregator else 0.0]
    values += [float(len(unread)) if team.is_aggregator else 0.0, float(run.stop.requested)]
    sums = sum_over_ranks(values, team, f"logging step {run.at.step}")
    num_encoders = team.num_encoders * team.num_teams
    mean_seconds = {name: value / num_encoders for name, value in zip(by_encoders, sums, strict=False)}
    aggregate, optimiser, step, num_tiles, num_unread, num_stops = sums[len(by_encoders) :]
    for name, value in (("aggregate", aggregate), ("optimiser", optimiser), ("step", step)):
        mean_seconds[name] = value / team.num_teams
    first = next(run.optimisers.all(), None)
    line = {
        "epoch": run.at.epoch, "loss": update.loss, "num_slides": update.num_slides, "num_tiles": int(num_tiles),
        "num_unread_slides": int(num_unread), "unread_slides": sorted(unread),
        "tiles_per_second": num_tiles / max(mean_seconds["step"], 1e-9),
        "learning_rate": first.param_groups[0]["lr"] if first is not None else 0.0,
        "encoder_gradient_norm": update.encoder_norm, "aggregator_gradient_norm": update.aggregator_norm,
        "loss_scale": run.scale.value, "seconds": {name: round(value, 6) for name, value in mean_seconds.items()},
    }  # fmt: skip
    return line, num_stops > 0


def epoch_line(run: Run, scores: Scores, is_best: bool, wait_share: float, seconds: float) -> dict[str, Any]:
    at = run.at
    return {"epoch": at.epoch, "loss": at.loss_sum / at.num_slides, "tune_loss": scores.loss, "tune_auc": scores.auc,
            "num_tune_slides": scores.num_slides, "num_unread_tune_slides": scores.num_unread, "is_best": is_best,
            "selected_by": run.config.run.select_by, "seconds": seconds, "wait_share": wait_share}  # fmt: skip


def epoch_sentence(line: dict[str, Any]) -> str:
    aucs = ", ".join(
        f"{task} {'not defined' if auc is None else format(auc, '.3f')}" for task, auc in line["tune_auc"].items()
    )
    advice = "; raise data.reader_threads or data.slides_ahead" if line["wait_share"] > 0.1 else ""
    best = " (best so far)" if line["is_best"] and line["selected_by"] == "tune_auc" else ""
    return (f"epoch {line['epoch'] + 1}: loss {line['loss']:.3f}, tune AUC {aucs}{best}, {line['seconds']:.0f} s, "
            f"waited for tiles {line['wait_share']:.0%} of the time{advice}")  # fmt: skip


def _has_stalled(config: PretrainConfig, at: Position) -> bool:
    patience = config.run.stop_after_epochs
    return patience is not None and at.best_epoch >= 0 and at.epoch - 1 - at.best_epoch >= patience
