"""Aggregator and heads of a run as a folder: safetensors and a config.json, read back by `load_slide_model`.

They turn the features of the encoder that was trained with them into the outputs of a slide; with the features of any
other encoder the numbers mean nothing, so the config names the encoder's weights by their SHA-256.
Shape suffixes: T tiles of a slide, F feature width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ingest.errors import ConfigError, InputError
from pretrain.aggregator import build_aggregator
from pretrain.config import AggregatorConfig, TaskConfig
from pretrain.heads import Heads, probabilities
from pretrain.timm_folder import require_unchanged

FORMAT_VERSION = 1
WEIGHTS = "aggregator.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideModel:
    """Aggregator and heads in evaluation mode.

    Attributes:
        num_features: F that the encoder must give.
        encoder_sha256: of the model.safetensors that makes the features.
    """

    aggregator: nn.Module
    heads: Heads
    num_features: int
    encoder_sha256: str

    def outputs(self, features_TF: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Outputs of a slide per task (class logits [C], or one number [1]), and the attention [T] if there is any.

        Raises:
            InputError: no tile, or features of another width.
        """
        if features_TF.dim() != 2 or len(features_TF) == 0 or features_TF.shape[1] != self.num_features:
            raise InputError(
                f"features of shape {tuple(features_TF.shape)}: wanted [tiles, {self.num_features}] with at least one tile"
            )
        with torch.no_grad():
            pooled, attention_T = self.aggregator(features_TF.float())
            return self.heads(pooled), attention_T

    def scores(self, features_TF: Tensor) -> dict[str, float]:
        """Per task the probability of the last class (the positive one of two), or the number."""
        outputs, _ = self.outputs(features_TF)
        return {task: float(values[-1]) for task, values in probabilities(outputs).items()}


def save_slide_model(
    folder: Path, aggregator: nn.Module, heads: Heads, config: AggregatorConfig, num_features: int, encoder_sha256: str,
    facts: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write `folder/config.json` and `folder/aggregator.safetensors`; `facts` (licence, provenance) go into the former."""
    folder.mkdir()
    state = {f"aggregator.{name}": value for name, value in aggregator.state_dict().items()}
    state |= {f"heads.{name}": value for name, value in heads.state_dict().items()}
    state = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    document = {
        "format_version": FORMAT_VERSION,
        "num_features": num_features,
        "encoder_sha256": encoder_sha256,
        "aggregator": config.model_dump(mode="json"),
        "tasks": [task.model_dump(mode="json") for task in heads.tasks],
        **facts,
    }
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_slide_model(folder: Path) -> SlideModel:
    """The `aggregator` folder of an export.

    Raises:
        InputError: a file is missing, damaged, or its weights are not those that config.json describes.
        ConfigError: written by another version of the format.
    """
    require_unchanged(folder.parent, only=[f"{folder.name}/{name}" for name in ("config.json", WEIGHTS)])
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder.name}: no readable config.json; give the aggregator folder of an export") from None
    if document.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{folder.name}: format {document.get('format_version')}, this code reads {FORMAT_VERSION}; use the version of "
            "fullslide that wrote it"
        )
    num_features = int(document["num_features"])
    aggregator = build_aggregator(AggregatorConfig.model_validate(document["aggregator"]), num_features)
    heads = Heads(aggregator.num_features, _tasks(document["tasks"]))
    try:
        state = load_file(folder / WEIGHTS)
        for prefix, module in (("aggregator.", aggregator), ("heads.", heads)):
            module.load_state_dict({
                name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
            })  # fmt: skip
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder.name}: {WEIGHTS} does not fit config.json: {str(error).splitlines()[0]}") from error
    return SlideModel(
        aggregator=aggregator.eval(), heads=heads.eval(), num_features=num_features,
        encoder_sha256=str(document["encoder_sha256"]),
    )  # fmt: skip


def check_slide_model(folder: Path, aggregator: nn.Module, heads: Heads, features_KF: Tensor) -> None:
    """Raises InputError when what is read back gives other outputs for these features than the models in memory."""
    with torch.no_grad():
        ours = heads.eval()(aggregator.eval()(features_KF)[0])
    theirs, _ = load_slide_model(folder).outputs(features_KF)
    if wrong := [task for task, output in ours.items() if not torch.equal(output, theirs[task])]:
        raise InputError(
            f"export: aggregator and heads read back give other outputs for {wrong[0]}; nothing was written"
        )


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[TaskConfig]:
    return [TaskConfig.model_validate(row) for row in rows]
