"""The trained encoder as a folder that plain timm loads, and that says what it was made from.

`timm.create_model("local-dir:FOLDER", pretrained=True)` must give the same features as the training code, bit for bit on
CPU, on real tiles; otherwise nothing is written. Weights are safetensors only: a safetensors file holds no code. No pixel
of a patient is in the folder: the tiles of `check/` are noise.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluate.export_aggregator import check_slide_model, save_slide_model
from evaluate.export_graph import GraphParity, TilesToFeatures, require_onnx, write_onnx, write_torch_program
from evaluate.parity import Parity, ParityTiles, check_parity, invented_tiles, training_features
from ingest.atomic import atomic_folder
from ingest.errors import ConfigError
from pretrain.config import AggregatorConfig
from pretrain.heads import Heads
from pretrain.share import Prepare
from pretrain.sums import SUMS, file_sha256, write_sums

NUM_GOLDEN_TILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFacts:
    """What travels with the weights, because features are wrong without it.

    Attributes:
        architecture, model_args: as given to `timm.create_model` (without the number of classes).
        mean, std: of the normalisation that the encoder was trained with.
        stain: of the slides it was trained on; None where the manifest does not say.
        license: of these weights.
        provenance: digests of run, configuration and manifest, and what training started from; no path.
    """

    architecture: str
    model_args: Mapping[str, Any]
    tile_size_px: int
    tile_mpp: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stain: str | None
    license: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideParts:
    """Aggregator and heads that were trained with the encoder."""

    aggregator: nn.Module
    heads: Heads
    config: AggregatorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was checked; the cards say it."""

    folder: Path
    num_features: int
    parity: Parity
    programs: tuple[GraphParity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What goes into the folder beside encoder, aggregator and cards."""

    onnx: bool = False
    torch_export: bool = False


def export_encoder(
    encoder: nn.Module,
    slide_parts: SlideParts,
    facts: EncoderFacts,
    tiles: ParityTiles,
    prepare: Prepare,
    write_cards: Callable[[Path, Exported], None],
    folder: Path,
    *,
    channels_last: bool = True,
    options: ExportOptions | None = None,
) -> Exported:
    """Write the folder, whole or not at all, after the parity checks.

    `config.json, model.safetensors` for timm; `aggregator/` for `load_slide_model`; `check/golden.safetensors`;
    `program/encoder.onnx` and `program/encoder.pt2` if asked for; what `write_cards` adds; SHA256SUMS of all.

    Args:
        encoder: the training code's module: tiles [K, 3, S, S], normalised, to features [K, F].
        tiles: to compare on; they are not written.
        prepare: as training prepares tiles without augmentation (`pretrain.forward.plain_view`): that `facts` says the same
            is what the parity check finds out.
        write_cards: gets the folder to write into and the outcome of the checks.
        channels_last: the memory order in which training ran its convolutions.
    Raises:
        ConfigError: no licence is given, the folder holds something else, or the packages for ONNX are missing.
        InputError: what is loaded from the folder gives other features or outputs.
    """
    options = options or ExportOptions()
    require_exportable(facts.license, folder, options)
    features_KF = training_features(encoder, tiles.tiles_KHW3, prepare, channels_last=channels_last)
    with atomic_folder(folder) as temporary:
        num_features = features_KF.shape[1]
        _save_weights(encoder, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(_timm_config(encoder, facts, num_features), indent=2) + "\n")
        parity = check_parity(features_KF, temporary, tiles, channels_last=channels_last)
        save_slide_model(
            temporary / "aggregator", slide_parts.aggregator, slide_parts.heads, slide_parts.config, num_features,
            file_sha256(temporary / "model.safetensors"), {"license": facts.license, "provenance": dict(facts.provenance)},
        )  # fmt: skip
        check_slide_model(temporary / "aggregator", slide_parts.aggregator, slide_parts.heads, features_KF)
        programs = _write_programs(encoder, facts, tiles, features_KF, temporary / "program", options)
        golden_KHW3 = invented_tiles(NUM_GOLDEN_TILES, facts.tile_size_px)
        (temporary / "check").mkdir()  # a second safetensors file beside the weights stops timm 1.0.16-1.0.22
        golden_KF = training_features(encoder, golden_KHW3, prepare, channels_last=False)
        save_file({"tiles": torch.from_numpy(golden_KHW3), "features": golden_KF.contiguous()},
                  temporary / "check" / "golden.safetensors")  # fmt: skip
        exported = Exported(folder=folder, num_features=num_features, parity=parity, programs=programs)
        write_cards(temporary, exported)
        write_sums(temporary)
        _make_readable(temporary)
    return exported


def require_exportable(license: str, folder: Path, options: ExportOptions) -> None:
    """What can be known before anything is computed.

    Raises:
        ConfigError: no licence, packages for ONNX missing, or `folder` is there and was not written by an export.
    """
    if not license.strip():
        raise ConfigError(
            "export: --license is required, for example --license cc-by-nc-4.0; weights that started from "
            "others' weights inherit their terms"
        )
    if folder.exists() and not (folder / SUMS).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ConfigError(f"export: {folder.name} is there and is no export; give a new folder, it would be replaced")
    if options.onnx:
        require_onnx()


def _save_weights(encoder: nn.Module, path: Path) -> None:
    state = {}
    for name, value in encoder.state_dict().items():
        assert not name.startswith(("module.", "_orig_mod.", "encoder.")), f"{name}: a wrapper's prefix"
        state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    save_file(state, path, metadata={"format": "pt"})


def _make_readable(folder: Path) -> None:
    """safetensors writes files that only their owner can read; an export is for others."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _write_programs(
    encoder: nn.Module,
    facts: EncoderFacts,
    tiles: ParityTiles,
    features_KF: Tensor,
    folder: Path,
    options: ExportOptions,
) -> tuple[GraphParity, ...]:
    found: list[GraphParity] = []
    tiles_K3HW = torch.from_numpy(tiles.tiles_KHW3).permute(0, 3, 1, 2).contiguous()
    plain = encoder.cpu().float().to(memory_format=torch.contiguous_format).eval()
    model = TilesToFeatures(plain, facts.mean, facts.std).eval()
    if options.onnx or options.torch_export:
        folder.mkdir()
    if options.torch_export:
        found.append(write_torch_program(model, tiles_K3HW, features_KF, folder / "encoder.pt2"))
    if options.onnx:
        said = {"license": facts.license, "mpp": f"{facts.tile_mpp:g}", "tile_size_px": str(facts.tile_size_px),
                "input": "uint8 RGB 0..255, [batch, 3, height, width]; normalised inside",
                "mean": json.dumps(facts.mean), "std": json.dumps(facts.std)}  # fmt: skip
        found.append(write_onnx(model, tiles_K3HW, features_KF, folder / "encoder.onnx", said))
    return tuple(found)


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
            "license": facts.license,
            "provenance": dict(facts.provenance),
        },
    }
