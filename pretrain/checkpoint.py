"""Checkpoints: one folder per save, whole or absent, with a SHA-256 of each file, loaded without running code.

`checkpoints/step_00000120/{encoder.pt, ..., training.pt, SHA256SUMS}`; `last` and `best` are symbolic links. Rank 0 writes
alone: the other ranks send it their share first, so no shared disk is needed between nodes.
A kill at any moment leaves the checkpoints that were there: a save never replaces a folder (a second one of the same step
gets a name of its own), and a folder that is given up is renamed before its files go.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ingest.atomic import atomic_folder
from ingest.errors import InputError
from pretrain.sums import SUMS, file_sha256, write_sums

LEFTOVER = ".step_"  # what the names of temporary and discarded folders begin with


def save_checkpoint(run: Path, step: int, parts: Mapping[str, Any], *, keep: int, best: bool = False) -> Path:
    """Write `parts` (name -> state of tensors and plain Python values) and move the `last` (and `best`) link.

    Args:
        keep: how many of the newest folders stay; the one `best` points to always stays.
    """
    folder = _unused_folder(run, step)
    with atomic_folder(folder) as temporary:
        for name, state in parts.items():
            torch.save(state, temporary / f"{name}.pt")
        write_sums(temporary)
    _link(folder, "last")
    if best:
        _link(folder, "best")
    kept = {folder.name, _target(run, "best"), *(each.name for each in _newest_of_each_step(run)[-keep:])}
    for old in _folders(run):
        if old.name not in kept:
            _discard(old)
    return folder


def remove_leftovers(run: Path) -> None:
    """Delete what a killed save left half written; only for the process that writes, before it does."""
    for leftover in (run / "checkpoints").glob(f"{LEFTOVER}*"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
        else:
            shutil.rmtree(leftover)


def weights_digest(parts: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers of encoder, aggregator and heads."""
    states = {"encoder": parts["encoder"], **parts["aggregator"]}
    digest = hashlib.sha256()
    for name, state in sorted(states.items()):
        for key, value in sorted(state.items()):
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_checkpoint(folder: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """The parts of a checkpoint (or some of them), its sums checked.

    Raises:
        InputError: a file is missing or not what was written (a disk error flips bytes without a word).
    """
    return {
        file.stem: torch.load(file, map_location="cpu", weights_only=True)
        for file in _sound_files(folder)
        if only is None or file.stem in only
    }


def find_checkpoint(run: Path, which: str) -> Path | None:
    """The folder for `last` or `best` (with a damaged `last`, the newest undamaged one), or None when there is none."""
    if which == "best":
        name = _target(run, "best")
        return run / "checkpoints" / name if name else None
    for folder in reversed(_folders(run)):
        try:
            _sound_files(folder)
        except InputError as error:
            print(f"skipped: {error}", flush=True)
            continue
        return folder
    return None


def _sound_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, each with the sum that was written."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"checkpoint {folder.name}: no {SUMS}; it is not a whole checkpoint, use another one"
        ) from None
    files = []
    for line in lines:
        wanted, name = line.split("  ", maxsplit=1)
        file = folder / name
        if not file.exists() or file_sha256(file) != wanted:
            raise InputError(f"checkpoint {folder.name}: {name} is missing or damaged; use another checkpoint")
        files.append(file)
    return files


def _folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*"))


def _newest_of_each_step(run: Path) -> list[Path]:
    return list({folder.name.split("_")[1]: folder for folder in _folders(run)}.values())


def _unused_folder(run: Path, step: int) -> Path:
    """`step_00000120`; `step_00000120_001`, ... where that step was saved before (validation, or a resumed run)."""
    name = f"step_{step:08d}"
    taken = [
        int(folder.name.removeprefix(name).strip("_") or "0")
        for folder in _folders(run)
        if folder.name.startswith(name)
    ]
    return run / "checkpoints" / (f"{name}_{max(taken) + 1:03d}" if taken else name)


def _discard(folder: Path) -> None:
    hidden = folder.with_name(f"{LEFTOVER}{folder.name}")
    os.replace(folder, hidden)  # at once, so that a half-deleted folder is never taken for a checkpoint
    shutil.rmtree(hidden)


def _target(run: Path, link: str) -> str | None:
    path = run / "checkpoints" / link
    return os.readlink(path) if path.is_symlink() else None


def _link(folder: Path, name: str) -> None:
    temporary = folder.parent / f"{LEFTOVER}{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.parent / name)
