"""`python -m ingest init`: a commented cohort file for one kind of laboratory system, with its SQL as editable text."""

from pathlib import Path
from typing import get_args

from ingest.errors import ConfigError
from ingest.source.config import PRESET_FOLDER, PresetName

COHORT_FILE = "cohort.toml"
PRESETS: tuple[PresetName, ...] = get_args(PresetName)


def cohort_text(preset: str) -> str:
    """The cohort file of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: no such preset; one of {', '.join(PRESETS)}")
    return "".join((PRESET_FOLDER / f"{name}.toml").read_text(encoding="utf-8") for name in (preset, "common"))


def init_cohort(preset: str, folder: Path) -> Path:
    """Write `folder`/cohort.toml and give its path; an existing file is never replaced.

    Raises:
        ConfigError: there is no such preset, or the file exists.
    """
    text = cohort_text(preset)
    path = folder / COHORT_FILE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path.name}: exists in that folder; give another folder, or edit it") from None
    return path
