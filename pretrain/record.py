"""What a run leaves to read: `metrics.jsonl` (the truth: one line per step and per epoch), `result.json`, `environment.json`."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from ingest.atomic import atomic_file
from pretrain.board import Board
from pretrain.validate import Scores

PACKAGES = (
    "fullslide",
    "torch",
    "timm",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "tifffile",
    "simplejpeg",
    "openslide-python",
    "cucim-cu13",
)


class RunRecord:
    """Writes lines as they happen; opened on rank 0 only."""

    def __init__(self, folder: Path, board: Board, *, at_step: int, at_epoch: int) -> None:
        """`at_step` and `at_epoch` are those of the checkpoint that is resumed, 0 for a new run."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            _drop_after(path, at_step, at_epoch)
        self._lines = path.open("a", encoding="utf-8")
        self._board = board

    def step(self, step: int, line: dict[str, Any]) -> None:
        """One optimisation step; `seconds` is a mapping of phase to seconds, all else are numbers or keys."""
        self._write({"kind": "step", "step": step, **line})
        self._board.step(step, line)

    def epoch(self, step: int, line: dict[str, Any], scores: Scores) -> None:
        """The end of an epoch: training loss, tune AUC per task, how the tiles came."""
        self._write({"kind": "epoch", "step": step, **line})
        self._board.epoch(step, line, scores)

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()


def write_result(folder: Path, facts: Mapping[str, Any]) -> None:
    """`result.json`: why training ended, by which rule `best` was chosen, and the digest of the last weights."""
    with atomic_file(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_environment(folder: Path, world_size: int, device: str, manifest_digest: str) -> None:
    """`environment.json`: versions and hardware, for the person who must repeat the run."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "num_cores": os.cpu_count(),
        "num_ranks": world_size,
        "device": device,
        "manifest_digest": manifest_digest,
        "versions": versions,
    }
    with atomic_file(folder / "environment.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


Kind = Literal["step", "epoch"]


def read_metrics(folder: Path, kind: Kind) -> list[dict[str, Any]]:
    """The lines of one kind from `metrics.jsonl`, in order."""
    with (folder / "metrics.jsonl").open(encoding="utf-8") as stream:
        return [line for line in map(json.loads, stream) if line["kind"] == kind]


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on a GPU since the last call, or resident for the process on a CPU (slots included)."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    # VmHWM, because ru_maxrss of a process begins with that of its parent.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _drop_after(path: Path, step: int, epoch: int) -> None:
    """Lines that the resumed checkpoint does not know will be written again; a line cut by a kill goes too."""
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # only the last line can be cut
        if line["step"] <= step and (line["kind"] != "epoch" or line["epoch"] < epoch):
            kept.append(text + "\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
