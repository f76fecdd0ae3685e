"""An encoder as it is used without training: from a run, from an exported or any other timm folder, or with random weights.

Where it stems from is written in one word on the command line:

    runs/breast                       a run folder of pretrain: its checkpoint `best` or `last`
    exports/breast                    a folder that timm loads (`config.json`, `model.safetensors`)
    resnet18:random                   a timm model with random weights: the floor of every comparison
    resnet18:weights/imagenet.pth     a timm model with the weights of a file
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ingest.errors import ConfigError, ManifestError
from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder, preprocessing
from pretrain.sample import derive_seed
from pretrain.share import seeded
from pretrain.trained import Trained, open_trained

RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrozenEncoder:
    """An encoder in evaluation mode, and what its features depend on.

    Attributes:
        name: of the timm model.
        module: tiles [K, 3, S, S], normalised with `mean` and `std` of RGB in 0 .. 1, to features [K, F].
        digest: SHA-256 over weights, mean and deviation; the same for a run and for its export.
        tile_size_px, tile_mpp: of the tiles that it was trained on; None where nothing says so.
        trained: the run it stems from; None for a folder or random weights.
        manifest_digest: of the manifest it was trained on, where known.
    """

    name: str
    module: nn.Module
    num_features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    tile_size_px: int | None = None
    tile_mpp: float | None = None
    trained: Trained | None = None
    manifest_digest: str | None = None


def open_encoder(source: str, checkpoint: str = "best", seed: int = 0) -> FrozenEncoder:
    """The encoder that `source` names; see the head of this file.

    Args:
        checkpoint: best or last, of a run folder.
        seed: of random weights.
    Raises:
        ConfigError: nothing of that name, or weights that do not fit. InputError: a damaged checkpoint.
    """
    folder = Path(source)
    if (folder / "checkpoints").is_dir():
        return _from_run(folder, checkpoint)
    if (folder / "config.json").is_file():
        return _from_folder(folder)
    name, separator, weights = source.partition(":")
    if not separator:
        raise ConfigError(
            f"encoder {folder.name}: neither a run folder (checkpoints/) nor a timm folder (config.json); give one of "
            "these, MODEL:random, or MODEL:FILE"
        )
    config = EncoderConfig(name=name, weights=None if weights == RANDOM else Path(weights))
    with seeded(derive_seed(seed, "encoder"), torch.device("cpu")):
        return _frozen(name, build_encoder(config), *preprocessing(config))


def require_geometry(encoder: FrozenEncoder, tile_size_px: int, tile_mpp: float) -> None:
    """Raises:
    ManifestError: the encoder was trained on tiles of another size or resolution.
    """
    if encoder.tile_size_px is None or encoder.tile_mpp is None:
        return
    if (encoder.tile_size_px, encoder.tile_mpp) != (tile_size_px, tile_mpp):
        raise ManifestError(
            f"encoder {encoder.name} was trained on tiles of {encoder.tile_size_px} px at {encoder.tile_mpp:g} mpp, the "
            f"manifest has {tile_size_px} px at {tile_mpp:g} mpp; count its tiles with the settings of the encoder"
        )


def weights_digest(weights: Mapping[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights, and over the constants of the normalisation."""
    digest = hashlib.sha256(json.dumps([list(mean), list(std)]).encode())
    for name, value in sorted(weights.items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_run(folder: Path, checkpoint: str) -> FrozenEncoder:
    trained = open_trained(folder, checkpoint)
    config = trained.config.encoder
    module = build_encoder(config)
    module.load_state_dict(trained.parts["encoder"])
    mean, std = preprocessing(config)
    return _frozen(config.name, module, mean, std, tile_size_px=trained.tile_size_px, tile_mpp=trained.tile_mpp,
                   trained=trained, manifest_digest=trained.manifest_digest)  # fmt: skip


def _from_folder(folder: Path) -> FrozenEncoder:
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(facts["architecture"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"encoder {folder.name}: its config.json is not of timm ({type(error).__name__}); give a timm folder"
        ) from None
    config = EncoderConfig(name=name, weights=folder)
    pathology = facts.get("pathology") or {}
    return _frozen(name, build_encoder(config), *preprocessing(config), tile_size_px=pathology.get("tile_size_px"),
                   tile_mpp=pathology.get("mpp"), manifest_digest=(pathology.get("provenance") or {}).get("manifest"))  # fmt: skip


def _frozen(
    name: str, module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], **known: Any
) -> FrozenEncoder:
    module = module.eval().requires_grad_(False)
    width = int(module.num_features)  # type: ignore[arg-type]
    return FrozenEncoder(name=name, module=module, num_features=width, mean=mean, std=std,
                         digest=weights_digest(module.state_dict(), mean, std), **known)  # fmt: skip
