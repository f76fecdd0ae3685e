"""A run in memory and in checkpoints: rank 0 writes and reads, the ranks that own the models send and get.

There is no generator state in it: every random number of training is a function of (seed, epoch, slide).
"""

import math
import signal
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ingest.errors import ConfigError
from pretrain.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from pretrain.cohort import Cohort
from pretrain.config import PretrainConfig
from pretrain.loader import TileFeed
from pretrain.record import RunRecord
from pretrain.schedule import Optimisers
from pretrain.step import Models
from pretrain.team import Team
from pretrain.update import LossScale

FREE_SECTIONS = {"run", "step"}  # may differ on resume: length, layout, memory


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a run has come, and what selection has seen.

    Attributes:
        update: finished updates of this epoch.
        step: finished updates of the run.
        loss_sum, num_slides: over the updates of this epoch.
    """

    epoch: int = 0
    update: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_slides: int = 0
    best_auc: float = -math.inf
    best_epoch: int = -1


class StopRequest:
    """Remembers SIGTERM and SIGUSR1 (SLURM sends one before it preempts), so that the loop can save and end in peace.

    torchrun hands SIGTERM on by itself, SIGUSR1 only with `--signals-to-handle SIGTERM,SIGINT,SIGUSR1`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def close(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that lives as long as a run; `at` and `scale` move, the rest is fixed."""

    config: PretrainConfig
    cohort: Cohort
    team: Team
    models: Models
    optimisers: Optimisers
    feed: TileFeed
    record: RunRecord | None  # on rank 0
    scale: LossScale
    at: Position
    stop: StopRequest

    def say(self, sentence: str) -> None:
        if self.team.rank == 0:
            print(sentence, flush=True)


def save(run: Run, *, best: bool = False) -> None:
    """Bring the state to rank 0 and write it there; the other ranks go on at once."""
    models, team = run.models, run.team
    parts: dict[str, Any] = {}
    if team.rank == team.encoder_owner:
        assert models.encoder is not None, "the owner of the encoder holds it"
        parts["encoder"] = models.encoder.state_dict()
        parts["encoder_optimiser"] = _state(run.optimisers.encoder)
    if team.encoder_owner != 0:
        parts = _move(parts, team.encoder_owner, 0, team)
    if team.rank != 0:
        return
    assert models.aggregator is not None, "rank 0 aggregates"
    assert models.heads is not None, "rank 0 aggregates"
    parts["aggregator"] = {"aggregator": models.aggregator.state_dict(), "heads": models.heads.state_dict()}
    parts["aggregator_optimiser"] = _state(run.optimisers.aggregator)
    parts["training"] = {
        "position": asdict(run.at),
        "loss_scale": asdict(run.scale),
        "config": run.config.model_dump_json(),
        "tile_size_px": run.cohort.tile_size_px,
        "tile_mpp": run.cohort.tile_mpp,
        "manifest_digest": run.cohort.manifest_digest,
    }
    save_checkpoint(run.config.run.folder, run.at.step, parts, keep=run.config.run.keep_checkpoints, best=best)


def load(config: PretrainConfig, team: Team, resume: bool) -> dict[str, Any] | None:
    """The newest sound checkpoint of the run folder, on every rank; None for a new run.

    Raises:
        ConfigError: the folder holds a run and `resume` is False, or the run was made with another configuration.
    """
    found: list[Any] = [None, ""]
    if team.rank == 0:
        folder = find_checkpoint(config.run.folder, "last")
        if folder is not None and not resume:
            found[1] = (f"run.folder {config.run.folder}: there is a run already ({folder.name}); add --resume to go on with "
                        "it, or name another folder with --set run.folder=...")  # fmt: skip
        elif folder is not None:
            found[0] = load_checkpoint(folder)
            found[1] = _differences(config, PretrainConfig.model_validate_json(found[0]["training"]["config"]))
    if team.world_size > 1:
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if found[1]:
        raise ConfigError(found[1])
    parts: dict[str, Any] | None = found[0]
    return parts


def restore(parts: dict[str, Any], models: Models, optimisers: Optimisers, scale: LossScale) -> Position:
    """Put the state of a checkpoint into what this rank holds."""
    if models.encoder is not None:
        models.encoder.load_state_dict(parts["encoder"])
    if models.aggregator is not None and models.heads is not None:
        models.aggregator.load_state_dict(parts["aggregator"]["aggregator"])
        models.heads.load_state_dict(parts["aggregator"]["heads"])
    for name, optimiser in (("encoder", optimisers.encoder), ("aggregator", optimisers.aggregator)):
        if optimiser is not None:
            optimiser.load_state_dict(parts[f"{name}_optimiser"])
    for name, value in parts["training"]["loss_scale"].items():
        setattr(scale, name, value)
    return Position(**parts["training"]["position"])


def _differences(config: PretrainConfig, saved: PretrainConfig) -> str:
    """A sentence that names the first section in which a resumed run would differ; empty if none does."""
    for name in sorted(set(PretrainConfig.model_fields) - FREE_SECTIONS):
        if getattr(config, name) != getattr(saved, name):
            return (f"run.folder {config.run.folder}: the run there was made with another [{name}]; give the configuration of "
                    "that run (its config.toml), or another folder for this one")  # fmt: skip
    if config.run.seed != saved.run.seed:
        return f"run.seed = {config.run.seed}: the run in {config.run.folder} was made with {saved.run.seed}; use that"
    return ""


def _state(optimiser: torch.optim.Optimizer | None) -> dict[str, Any]:
    return optimiser.state_dict() if optimiser is not None else {}


def _move(parts: dict[str, Any], source: int, target: int, team: Team) -> dict[str, Any]:
    box = [parts]
    if team.rank == source:
        dist.send_object_list(box, dst=target, device=torch.device("cpu"))
    elif team.rank == target:
        dist.recv_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]
