"""A run in memory and in checkpoints: rank 0 writes and reads, the ranks that own the models send and get.

There is no generator state and no sampler state in a checkpoint, because there is none in a run: the order of slides is a
function of (seed, epoch), tiles, chunks, augmentation and dropout are functions of (seed, epoch, slide), and the learning
rate is one of the number of updates. `Position` says where in these a run stands; that is all a resumed run needs.
"""

import math
import signal
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ingest.errors import ConfigError
from pretrain.average import Average
from pretrain.checkpoint import find_checkpoint, load_checkpoint, remove_leftovers, save_checkpoint
from pretrain.cohort import Cohort
from pretrain.config import PretrainConfig
from pretrain.loader import TileFeed
from pretrain.record import RunRecord
from pretrain.schedule import Optimisers
from pretrain.step import Models
from pretrain.team import Team
from pretrain.update import LossScale

# What may differ on resume: length, layout, memory, reading. All else decides the numbers, or which update is the next one.
FREE_FIELDS = {
    "run": {"folder", "num_epochs", "device", "select_by", "stop_after_epochs", "save_every_steps", "keep_checkpoints"},
    "step": {"layout", "resident_tiles", "chunk_tiles", "channels_last", "compile", "timeout_seconds"},
    "data": {"manifest", "vault", "reader_threads", "slides_ahead", "ahead_gib", "cache", "cache_gib"},
}


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
    average: Average | None  # None: optim.ema_decay is not set
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
    models, team, average = run.models, run.team, run.average
    parts: dict[str, Any] = {}
    if team.rank == team.encoder_owner:
        assert models.encoder is not None, "the owner of the encoder holds it"
        parts["encoder"] = models.encoder.state_dict()
        parts["encoder_optimiser"] = _state(run.optimisers.encoder)
        if average is not None:
            parts["encoder_average"] = average["encoder"]
    if team.encoder_owner != 0:
        parts = _move(parts, team.encoder_owner, 0, team)
    if team.rank != 0:
        return
    assert models.aggregator is not None, "rank 0 aggregates"
    assert models.heads is not None, "rank 0 aggregates"
    parts["aggregator"] = {"aggregator": models.aggregator.state_dict(), "heads": models.heads.state_dict()}
    parts["aggregator_optimiser"] = _state(run.optimisers.aggregator)
    if average is not None:
        parts["aggregator_average"] = {name: average[name] for name in ("aggregator", "heads")}
    parts["training"] = {
        "position": asdict(run.at),
        "loss_scale": asdict(run.scale),
        "config": run.config.model_dump_json(),
        "tile_size_px": run.cohort.tile_size_px,
        "tile_mpp": run.cohort.tile_mpp,
        "manifest_digest": run.cohort.manifest_digest,
    }
    save_checkpoint(run.config.run.folder, run.at.step, parts, keep=run.config.run.keep_checkpoints, best=best)


def load(config: PretrainConfig, manifest_digest: str, team: Team, resume: bool) -> dict[str, Any] | None:
    """The newest sound checkpoint of the run folder, on every rank; None for a new run.

    Raises:
        ConfigError: the folder holds a run and `resume` is False, or the run was made with another configuration or manifest.
    """
    found: list[Any] = [None, ""]
    if team.rank == 0:
        folder = find_checkpoint(config.run.folder, "last")
        if folder is not None and not resume:
            found[1] = (f"run.folder {config.run.folder}: there is a run already ({folder.name}); add --resume to go on with "
                        "it, or name another folder with --set run.folder=...")  # fmt: skip
        elif folder is not None:
            found[0] = load_checkpoint(folder)
            saved = PretrainConfig.model_validate_json(found[0]["training"]["config"])
            found[1] = _difference(config, saved)
            if found[0]["training"]["manifest_digest"] != manifest_digest:
                found[1] = (f"data.manifest {config.data.manifest.name}: not the one that the run in {config.run.folder} was "
                            "made with; give that one, or another folder for this run")  # fmt: skip
        if not found[1]:
            remove_leftovers(config.run.folder)
    if team.world_size > 1:
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if found[1]:
        raise ConfigError(found[1])
    parts: dict[str, Any] | None = found[0]
    return parts


def restore(
    parts: dict[str, Any], models: Models, optimisers: Optimisers, average: Average | None, scale: LossScale
) -> Position:
    """Put the state of a checkpoint into what this rank holds."""
    if models.encoder is not None:
        models.encoder.load_state_dict(parts["encoder"])
    if models.aggregator is not None and models.heads is not None:
        models.aggregator.load_state_dict(parts["aggregator"]["aggregator"])
        models.heads.load_state_dict(parts["aggregator"]["heads"])
    for name, optimiser in (("encoder", optimisers.encoder), ("aggregator", optimisers.aggregator)):
        if optimiser is not None:
            optimiser.load_state_dict(parts[f"{name}_optimiser"])
    if average is not None:
        saved = {"encoder": parts["encoder_average"], **parts["aggregator_average"]}
        for name, state in average.items():
            for key, value in state.items():
                value.copy_(saved[name][key])
    for name, value in parts["training"]["loss_scale"].items():
        setattr(scale, name, value)
    return Position(**parts["training"]["position"])


def _difference(config: PretrainConfig, saved: PretrainConfig) -> str:
    """A sentence that names the first field in which a resumed run would differ where it must not; empty if none does."""
    for section in PretrainConfig.model_fields:
        ours, theirs = getattr(config, section), getattr(saved, section)
        if ours == theirs:
            continue
        if section == "tasks":
            differing = ["tasks"]
        else:
            names = set(type(ours).model_fields) - FREE_FIELDS.get(section, set())
            differing = sorted(f"{section}.{name}" for name in names if getattr(ours, name) != getattr(theirs, name))
        if differing:
            return (f"run.folder {config.run.folder}: the run there was made with another {differing[0]}; give the "
                    "configuration of that run (its config.toml), or another folder for this one")  # fmt: skip
    return ""


def _state(optimiser: torch.optim.Optimizer | None) -> dict[str, Any]:
    return optimiser.state_dict() if optimiser is not None else {}


def _move(parts: dict[str, Any], source: int, target: int, team: Team) -> dict[str, Any]:
    box: list[dict[str, Any]] = [
        _on_cpu(parts)
    ]  # a tensor that names cuda:1 would open that device on the rank that gets it
    if team.rank == source:
        dist.send_object_list(box, dst=target, device=torch.device("cpu"))
    elif team.rank == target:
        dist.recv_object_list(box, src=source, device=torch.device("cpu"))
    return box[0]


def _on_cpu(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state
