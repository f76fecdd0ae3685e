"""Encoders: any timm model as a function from tiles to features, with random weights or from a file or timm folder."""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ingest.errors import ConfigError
from pretrain.config import EncoderConfig
from pretrain.timm_folder import CONFIG, read_timm_folder, require_unchanged

WRAPPERS = ("state_dict", "model", "teacher", "encoder")  # keys under which training codes keep the weights
PREFIXES = ("module.", "backbone.", "encoder.", "_orig_mod.")


def build_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder on the CPU: tiles [K, 3, H, W] to features [K, F], F is its `num_features`; weights as configured.

    Raises:
        ConfigError: no such model (nearest names are given), or weights that do not fit it.
        InputError: a folder of weights is not what its SHA256SUMS says.
    """
    if config.weights is not None and config.weights.is_dir():
        require_unchanged(config.weights, only=(CONFIG, "model.safetensors"))
    model = _create(config)
    if config.weights is not None and config.weights.is_file():
        load_weights(model, config.weights, config.name)
    if config.frozen:
        model.requires_grad_(False)
    return model


def num_features(config: EncoderConfig) -> int:
    """Width F of the features, without memory for the weights; an aggregator rank needs it to build its model."""
    with torch.device("meta"):
        return int(cast("int", _create(config, empty=True).num_features))


@cache  # asked for at every slide; building even an empty model takes a while
def preprocessing(config: EncoderConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of RGB in 0 .. 1 that the encoder's pretraining used; ImageNet's where it does not say."""
    with torch.device("meta"):
        pretrained = cast("Any", _create(config, empty=True)).pretrained_cfg
    return tuple(pretrained["mean"]), tuple(pretrained["std"])


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: layer l of L learns with `learning_rate * layer_decay ** (L - l)`; no decay on vectors.

    Biases and norm scales (one dimension) have no weight decay. Frozen parameters are left out.
    """
    from timm.optim import param_groups_layer_decay

    groups: list[dict[str, Any]] = param_groups_layer_decay(model, weight_decay=weight_decay, layer_decay=layer_decay)
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": learning_rate * group["lr_scale"]}
        for group in groups
    ]


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Weights from a file; wrappers and prefixes of usual training codes are taken off, a classifier is left out.

    Raises:
        ConfigError: the file is no checkpoint, or lacks weights of the encoder, or their shapes differ.
    """
    given = _encoder_weights(_read(path), model)
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    misshapen = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or misshapen:
        first = (missing or misshapen)[0]
        fault = f"{len(missing)} of {len(wanted)} weights missing" if missing else f"{len(misshapen)} of another shape"
        raise ConfigError(
            f"encoder.weights {path.name}: {fault} for {name} (first: {first}); give a checkpoint of this model or set "
            "encoder.name to the one it was made with"
        )
    model.load_state_dict({key: value for key, value in given.items() if key in wanted}, strict=False)


def nearest_models(name: str, limit: int = 3) -> list[str]:
    """Names of timm models that look like `name`, best first."""
    plain = name.lower().replace("-", "").replace("_", "")
    by_plain = {known.replace("_", ""): known for known in reversed(_model_names())}
    return [by_plain[near] for near in difflib.get_close_matches(plain, by_plain, n=limit, cutoff=0.5)]


def model_args(config: EncoderConfig) -> dict[str, Any]:
    """What `timm.create_model` needs beside the name and `num_classes` to build this encoder for evaluation."""
    folder = _folder(config)
    given = {} if folder is None else dict(read_timm_folder(folder).model_args)
    size = {} if config.image_size_px is None else {"img_size": config.image_size_px}
    return {name: value for name, value in (given | size).items() if name not in ("num_classes", "in_chans")}


def _create(config: EncoderConfig, empty: bool = False) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": 0, "drop_rate": config.drop_rate}
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    if config.image_size_px is not None:
        options["img_size"] = config.image_size_px
    folder = _folder(config)
    if folder is not None:
        held = read_timm_folder(folder).architecture
        if held != config.name.split(".")[0]:
            raise ConfigError(
                f"encoder.weights {folder.name}: holds a {held}, encoder.name is {config.name}; set encoder.name = "
                f"{held} or give another folder"
            )
    if folder is None and not timm.is_model(config.name):
        near = nearest_models(config.name)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"encoder.name {config.name}: timm has no such model; {hint}")
    name = config.name if folder is None else f"local-dir:{folder}"
    try:
        return cast("nn.Module", timm.create_model(name, pretrained=folder is not None and not empty, **options))
    except (TypeError, RuntimeError, FileNotFoundError) as error:
        where = config.name if folder is None else folder.name
        raise ConfigError(f"encoder {where}: {str(error).splitlines()[0]}; check the options of [encoder]") from error


def _folder(config: EncoderConfig) -> Path | None:
    if config.weights is None:
        return None
    if not config.weights.exists():
        raise ConfigError(f"encoder.weights {config.weights.name}: no such file or folder; give one that exists")
    return config.weights if config.weights.is_dir() else None


@cache
def _model_names() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_models())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return cast("Mapping[str, Any]", load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds for a damaged or foreign file
        raise ConfigError(
            f"encoder.weights {path.name}: not a readable checkpoint ({type(error).__name__}); give a .safetensors file "
            "or one written by torch.save with tensors only"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"encoder.weights {path.name}: holds a {type(loaded).__name__}, not a table of weights")
    return loaded


def _encoder_weights(loaded: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    weights = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    stripped = {_strip(key): value for key, value in weights.items()}
    filtered = getattr(model, "pretrained_cfg", None) and _timm_filter(model)
    return cast("dict[str, Tensor]", filtered(stripped, model)) if callable(filtered) else stripped


def _strip(key: str) -> str:
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if key.startswith(prefix):
                key, changed = key.removeprefix(prefix), True
    return key


def _timm_filter(model: nn.Module) -> Any:
    """timm's own converter of foreign checkpoints for this family (ViT: DINO, MAE and CLIP names), if it has one."""
    import sys

    return getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
