"""From a configuration to a run that is ready to train, on this rank: team, cohort, models, checkpoint, run folder."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import torch

from ingest.atomic import atomic_file
from ingest.config import to_toml
from ingest.errors import ConfigError
from pretrain.aggregator import build_aggregator
from pretrain.average import start_average
from pretrain.board import Board
from pretrain.clusters import with_clusters
from pretrain.cohort import Cohort, load_cohort
from pretrain.config import PretrainConfig
from pretrain.encoder import build_encoder, num_features
from pretrain.heads import Heads
from pretrain.loader import TileFeed
from pretrain.record import RunRecord, write_environment
from pretrain.sample import derive_seed
from pretrain.schedule import build_optimisers
from pretrain.share import seeded
from pretrain.state import Position, Run, StopRequest, load, restore
from pretrain.step import Models, ready_models
from pretrain.team import Team, make_team, pick_device, sum_over_ranks
from pretrain.update import LossScale


@contextmanager
def open_run(config: PretrainConfig, resume: bool) -> Iterator[Run]:
    """A run that `pretrain.loop.train` can take; every rank opens it.

    Raises:
        UserError kin: configuration, manifest, or a rank that did not come.
    """
    device = torch.device("cpu") if config.run.device == "cpu" else pick_device()
    if config.run.device == "cuda" and device.type != "cuda":
        raise ConfigError("run.device = cuda: torch sees no CUDA device; look at nvidia-smi, or set run.device = cpu")
    team = make_team(
        config.step.layout, config.step.num_teams, timeout_seconds=config.step.timeout_seconds, device=device
    )
    with ExitStack() as stack:
        stack.callback(team.close)
        cohort = open_cohort(config)
        parts = load(config, cohort.manifest_digest, team, resume)
        stop = StopRequest()
        stack.callback(stop.close)
        # The feed first, because its reader process starts up while the models are built.
        with _stop_signals_held():
            feed = stack.enter_context(TileFeed(config.data, cohort, team, config.step.timeout_seconds))
        models = ready_models(build_models(config, team), team, config.step)
        optimisers = build_optimisers(models, config.encoder, config.optim)
        average = start_average(models, team) if config.optim.ema_decay is not None else None
        scale = LossScale()
        at = restore(parts, models, optimisers, average, scale) if parts is not None else Position()
        record = None
        if team.rank == 0:
            _write_folder(config, cohort, team)
            counts = {part: [slide.num_tiles for slide in cohort.part(part)] for part in ("train", "tune")}
            board = Board(config.run.folder, at.step, config, cohort.tasks, counts)
            record = stack.enter_context(RunRecord(config.run.folder, board, at_step=at.step, at_epoch=at.epoch))
        try:
            yield Run(config=config, cohort=cohort, team=team, models=models, optimisers=optimisers, average=average,
                      feed=feed, record=record, scale=scale, at=at, stop=stop)  # fmt: skip
        except SystemExit:  # stopped by a signal
            _leave_together(team)
            raise
        _leave_together(team)


def open_cohort(config: PretrainConfig) -> Cohort:
    cohort = load_cohort(config.data.manifest, config.data.vault, [task.name for task in config.tasks], config.data.scheme,
                         config.data.fold)  # fmt: skip
    return with_clusters(cohort, config.sample.clusters) if config.sample.clusters is not None else cohort


def build_models(config: PretrainConfig, team: Team) -> Models:
    """New models for the role of this rank; random weights are a function of the seed, equal for any number of ranks."""
    encoder = aggregator = heads = None
    if team.is_encoder:
        with seeded(derive_seed(config.run.seed, "encoder"), torch.device("cpu")):
            encoder = build_encoder(config.encoder)
    if team.is_aggregator:
        with seeded(derive_seed(config.run.seed, "aggregator"), torch.device("cpu")):
            aggregator = build_aggregator(config.aggregator, num_features(config.encoder))
            heads = Heads(aggregator.num_features, config.tasks)
    return Models(encoder=encoder, aggregator=aggregator, heads=heads)


def describe(config: PretrainConfig, cohort: Cohort) -> str:
    """What will be trained on what, for people; needs no device."""
    parts = ", ".join(f"{len(cohort.part(name))} {name}" for name in ("train", "tune", "test"))
    counts = sorted(slide.num_tiles for slide in cohort.slides)
    return (f"{len(cohort.slides)} slides of {len({slide.patient_key for slide in cohort.slides})} patients ({parts}), "
            f"{sum(counts):,} tiles of {cohort.tile_size_px} px at {cohort.tile_mpp:g} mpp, {counts[len(counts) // 2]:,} in the "
            f"middle, {counts[-1]:,} at most; {config.encoder.name} + {config.aggregator.name}, "
            f"{config.run.num_epochs} epochs")  # fmt: skip


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """A process started in this block never gets SIGTERM or SIGUSR1; in this one they come when it ends.

    torchrun and SLURM signal the reader of slides together with its trainer, which still needs it until it has saved.
    """
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process and unblocks SIGTERM afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_together(team: Team) -> None:
    """Wait for rank 0, which writes the last checkpoint alone: torchrun kills it 30 s after the first rank has ended."""
    sum_over_ranks([0.0], team, "ending the run")


def _write_folder(config: PretrainConfig, cohort: Cohort, team: Team) -> None:
    folder: Path = config.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "config.toml") as temporary:
        temporary.write_text(to_toml("pretrain", config), encoding="utf-8")
    write_environment(folder, team.world_size, str(team.device), cohort.manifest_digest)
