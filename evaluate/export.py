"""The trained encoder as a folder that plain timm loads, and that says what it was made from.

`timm.create_model("local-dir:FOLDER", pretrained=True)` must give the same features as the training code, bit for bit on
CPU, on real tiles; otherwise nothing is written. Weights are safetensors only: a safetensors file holds no code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ingest.atomic import atomic_folder
from ingest.errors import ConfigError, InputError
from pretrain.checkpoint import file_sha256

NUM_GOLDEN_TILES = 4
GOLDEN_SEED = 20240303  # tiles of noise: what travels with the weights must not be a patient's tissue


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFacts:
    """What travels with the weights, because features are wrong without it.

    Attributes:
        architecture, model_args: as given to `timm.create_model` (without the number of classes).
        mean, std: of the normalisation that the encoder was trained with.
        provenance: digests of run, configuration and manifest; no path, no name.
    """

    architecture: str
    model_args: Mapping[str, Any]
    tile_size_px: int
    tile_mpp: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stain: str
    license: str
    provenance: Mapping[str, Any]


def export_encoder(
    encoder: nn.Module, facts: EncoderFacts, tiles_KHW3: NDArray[np.uint8], card: str, folder: Path
) -> Path:
    """Write `config.json, model.safetensors, README.md, check/golden.safetensors, SHA256SUMS`, after the parity check.

    Args:
        encoder: the training code's module: tiles [K, 3, S, S], normalised, to features [K, F].
        tiles_KHW3: real tiles to compare on; they are not written.
        card: the model card, Markdown.
    Raises:
        ConfigError: no licence is given.
        InputError: what plain timm loads from the folder gives other features.
    """
    if not facts.license.strip():
        raise ConfigError(
            "export: --license is required, for example --license cc-by-nc-4.0; weights that started from "
            "others' weights inherit their terms"
        )
    encoder = encoder.cpu().float().to(memory_format=torch.contiguous_format).eval()
    with atomic_folder(folder) as temporary:
        state = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.state_dict().items()}
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        num_features = _features(encoder, tiles_KHW3[:1], facts).shape[1]
        (temporary / "config.json").write_text(json.dumps(_timm_config(encoder, facts, num_features), indent=2) + "\n")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        _check_parity(encoder, temporary, facts, tiles_KHW3)
        _write_golden(encoder, temporary, facts)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        sums = "".join(f"{file_sha256(file)}  {file.relative_to(temporary)}\n" for file in files)
        (temporary / "SHA256SUMS").write_text(sums, encoding="ascii")
    return folder


def load_exported(folder: Path) -> nn.Module:
    """The encoder as any user of timm gets it."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model


def _timm_config(encoder: nn.Module, facts: EncoderFacts, num_features: int) -> dict[str, Any]:
    base = dict(getattr(encoder, "pretrained_cfg", {}) or {})
    kept = {
        name: base[name]
        for name in ("first_conv", "classifier", "pool_size", "fixed_input_size")
        if base.get(name) is not None
    }
    return {
        "architecture": facts.architecture,
        "num_classes": 0,
        "num_features": num_features,
        # transformers refuses a num_classes in here (timm 1.0.31 would write one)
        **({"model_args": dict(facts.model_args)} if facts.model_args else {}),
        "pretrained_cfg": {
            **kept,
            "tag": "fullslide",
            "custom_load": False,
            "input_size": [3, facts.tile_size_px, facts.tile_size_px],
            "interpolation": "bicubic",
            "crop_pct": 1.0,  # timm's default 0.95 moves the features by a relative 0.16
            "crop_mode": "center",
            "mean": list(facts.mean),
            "std": list(facts.std),
            "num_classes": 0,
            "license": facts.license,
        },
        # timm refuses unknown keys inside pretrained_cfg, and leaves further top-level blocks alone
        "pathology": {
            "mpp": facts.tile_mpp,
            "tile_size_px": facts.tile_size_px,
            "stain": facts.stain,
            "num_features": num_features,
            "provenance": dict(facts.provenance),
        },
    }


def _check_parity(encoder: nn.Module, folder: Path, facts: EncoderFacts, tiles_KHW3: NDArray[np.uint8]) -> None:
    ours, theirs = (_features(model, tiles_KHW3, facts) for model in (encoder, load_exported(folder)))
    if not torch.equal(ours, theirs):
        raise InputError(
            f"export: features from plain timm differ from the training code's by up to "
            f"{(ours - theirs).abs().max().item():.3g} on {len(tiles_KHW3)} tiles; nothing was written; "
            "the encoder has parts that timm does not build from its name and model_args"
        )


def _write_golden(encoder: nn.Module, folder: Path, facts: EncoderFacts) -> None:
    size = facts.tile_size_px
    tiles = np.random.default_rng(GOLDEN_SEED).integers(0, 256, (NUM_GOLDEN_TILES, size, size, 3), dtype=np.uint8)
    (folder / "check").mkdir()  # a second safetensors file beside the weights stops timm 1.0.16-1.0.22
    save_file(
        {"tiles": torch.from_numpy(tiles), "features": _features(encoder, tiles, facts).contiguous()},
        folder / "check" / "golden.safetensors",
    )


def _features(model: nn.Module, tiles_KHW3: NDArray[np.uint8], facts: EncoderFacts) -> Tensor:
    tiles = torch.from_numpy(np.ascontiguousarray(tiles_KHW3)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts.mean, facts.std))
    with torch.inference_mode():
        features: Tensor = model((tiles - mean) / std)
    return features
