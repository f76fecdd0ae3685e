"""A folder in timm's layout (config.json, model.safetensors) that training starts from, such as `evaluate export` writes.

No weight format notices flipped bytes by itself, so a folder that has a SHA256SUMS is checked against it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import ConfigError, InputError
from pretrain.sums import SUMS, file_sha256

CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmFolder:
    """What config.json says.

    Attributes:
        model_args: for `timm.create_model`, beside the architecture.
        license: of the weights; None where it is not stated.
    """

    architecture: str
    model_args: Mapping[str, Any]
    license: str | None


def read_timm_folder(folder: Path) -> TimmFolder:
    """Raises:
    ConfigError: there is no config.json, or it names no architecture.
    """
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        architecture = str(document["architecture"])
    except FileNotFoundError:
        raise ConfigError(
            f"encoder.weights {folder.name}: a timm folder has a {CONFIG}, this one has none; give its weight file"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"encoder.weights {folder.name}: {CONFIG} is no JSON with an architecture; copy the folder again"
        ) from None
    license = document.get("pretrained_cfg", {}).get("license") or document.get("license")
    return TimmFolder(architecture=architecture, model_args=document.get("model_args") or {}, license=license)


def require_unchanged(folder: Path, only: Iterable[str] | None = None) -> None:
    """Check files of a folder against its SHA256SUMS; a folder without one passes.

    Args:
        only: names to check; None checks every file that is listed. A card may be edited, weights may not.
    Raises:
        InputError: a file is missing or is not what was written.
    """
    if not (folder / SUMS).exists():
        return
    for line in (folder / SUMS).read_text(encoding="ascii").splitlines():
        wanted, _, name = line.partition("  ")
        if only is not None and name not in set(only):
            continue
        file = folder / name
        if not file.is_file() or file_sha256(file) != wanted:
            state = "not what was written (its SHA-256 differs)" if file.is_file() else "missing"
            raise InputError(f"{folder.name}: {name} is {state}; copy or export the folder again")
