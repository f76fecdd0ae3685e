"""A finished (or running) training as others use it: the weights of a checkpoint with all they were made with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import ConfigError, InputError, ManifestError
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.cohort import Cohort
from pretrain.config import PretrainConfig, StepConfig
from pretrain.start import build_models
from pretrain.step import Models, ready_models
from pretrain.sums import SUMS
from pretrain.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One checkpoint of a run.

    Attributes:
        parts: of the checkpoint; with `optim.ema_decay` its `encoder` and `aggregator` are the averages, which were validated.
        digest: SHA-256 over the sums of its files: names the weights in predictions and exports.
        num_epochs: epochs that were finished when it was saved; each was a candidate for selection.
    """

    folder: Path
    checkpoint: str
    digest: str
    config: PretrainConfig
    parts: dict[str, Any]
    tile_size_px: int
    tile_mpp: float
    manifest_digest: str
    num_epochs: int


def open_trained(folder: Path, which: str = "best") -> Trained:
    """The checkpoint `best` or `last` of a run folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if which not in ("best", "last"):
        raise ConfigError(f"checkpoint {which}: choose best or last")
    found = find_checkpoint(folder, which)
    if found is None:
        raise InputError(f"run {folder.name}: no {which} checkpoint; train it first with `python -m pretrain train`")
    parts = load_checkpoint(found)
    training = parts["training"]
    newest = find_checkpoint(folder, "last")
    assert newest is not None, "a run with a best checkpoint has a last one"
    return Trained(
        folder=folder, checkpoint=found.name, digest=hashlib.sha256((found / SUMS).read_bytes()).hexdigest(),
        config=PretrainConfig.model_validate_json(training["config"]), parts=_judged(parts),
        tile_size_px=training["tile_size_px"], tile_mpp=training["tile_mpp"],
        manifest_digest=training["manifest_digest"],
        num_epochs=load_checkpoint(newest, only=("training",))["training"]["position"]["epoch"],
    )  # fmt: skip


def require_same_geometry(trained: Trained, cohort: Cohort) -> None:
    """Raises:
    ManifestError: the cohort's tiles are of another size or resolution than those the run was trained on.
    """
    if (cohort.tile_size_px, cohort.tile_mpp) != (trained.tile_size_px, trained.tile_mpp):
        raise ManifestError(
            f"run {trained.folder.name} was trained on tiles of {trained.tile_size_px} px at {trained.tile_mpp:g} mpp, the "
            f"manifest has {cohort.tile_size_px} px at {cohort.tile_mpp:g} mpp; count its tiles with the settings of the run"
        )


def trained_models(trained: Trained, team: Team, step: StepConfig) -> Models:
    """The models with the weights of the checkpoint, on the device of this rank."""
    models = build_models(trained.config, team)
    if models.encoder is not None:
        models.encoder.load_state_dict(trained.parts["encoder"])
    if models.aggregator is not None and models.heads is not None:
        models.aggregator.load_state_dict(trained.parts["aggregator"]["aggregator"])
        models.heads.load_state_dict(trained.parts["aggregator"]["heads"])
    return ready_models(models, team, step)


def _judged(parts: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in place of the trained ones, where the run kept an average."""
    if "encoder_average" not in parts:
        return parts
    return {**parts, "encoder": parts["encoder_average"], "aggregator": parts["aggregator_average"]}
