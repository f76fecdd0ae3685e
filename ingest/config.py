"""Configuration: TOML files read into frozen pydantic models; defaults < file < `--set section.key=value`.

One file holds one experiment: its tables `[ingest.*]`, `[pretrain.*]` and `[evaluate.*]` belong to the three stages.
A section is a subclass of `Section` that lives beside the code that uses it. Unknown keys are errors.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ingest.errors import ConfigError

STAGES = ("ingest", "pretrain", "evaluate")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=Section)


def _compiling(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiling)]  # of a field whose value is a regular expression


def load_config(
    model: type[SectionT], stage: str, path: Path | None, overrides: Sequence[str] = (), *, only_known: bool = False
) -> SectionT:
    """The validated configuration of one stage; `overrides` are `section.key=value` with a TOML value or a bare word.

    Args:
        only_known: pass over sections of the file that `model` does not have: it takes some sections of a larger file.
    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is refused; all faults are listed at once.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"configuration {path.name}: no such file; give an existing TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration {path.name}: not valid TOML: {error}") from None
        if unknown := sorted(set(values) - set(STAGES)):
            raise ConfigError(
                f"configuration {path.name}: unknown table [{unknown[0]}]; every table starts with one of "
                f"{', '.join(STAGES)}, as in [{stage}.{unknown[0]}]"
            )
        values = values.get(stage, {})
        if only_known:
            values = {name: value for name, value in values.items() if name in model.model_fields}
    for override in overrides:
        _apply(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = path.name if path is not None else "options"
        faults = "; ".join(_describe(fault, model) for fault in error.errors())
        raise ConfigError(f"configuration {where}: {faults}") from None


def to_toml(stage: str, config: BaseModel) -> str:
    """The resolved configuration, every default written out, as TOML that `load_config` reads back."""
    return tomli_w.dumps({stage: config.model_dump(mode="json", exclude_none=True)})


def config_digest(config: BaseModel) -> str:
    """SHA-256 of the whole configuration object; the key of caches and the mark in footers."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override}: write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    values[name] = value


def _describe(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] != "extra_forbidden":
        return f"{key}: {fault['msg']} (got {fault['input']!r})" if key else str(fault["msg"])
    known = _keys_at(model, location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for name in location:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
