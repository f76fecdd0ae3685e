"""What a run leaves to read: `metrics.jsonl` (the truth, one line per step and per epoch) and TensorBoard (a view of it)."""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ingest.atomic import atomic_file
from ingest.progress import progress_line

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
PLAIN_INTERVAL_STEPS = 20


class RunRecord:
    """Writes lines as they happen; opened on rank 0 only."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 2.7 s to import: rank 0 only

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            _drop_after(path, resume_step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def step(self, step: int, line: dict[str, Any]) -> None:
        """One optimisation step; `seconds` is a mapping of phase to seconds, all else are numbers or keys."""
        self._write({"kind": "step", "step": step, **line})
        for name in (
            "loss",
            "learning_rate",
            "num_tiles",
            "tiles_per_second",
            "encoder_gradient_norm",
            "aggregator_gradient_norm",
        ):
            if name in line:
                self._scalar(f"step/{name}", line[name], step)
        for phase, seconds in line.get("seconds", {}).items():
            self._scalar(f"seconds/{phase}", seconds, step)

    def epoch(self, step: int, line: dict[str, Any]) -> None:
        """The end of an epoch: training loss, tune AUC per task, share of the time spent waiting for tiles."""
        self._write({"kind": "epoch", "step": step, **line})
        for name, value in line.items():
            if isinstance(value, int | float) and name != "epoch":
                self._scalar(f"epoch/{name}", value, step)
        for task, auc in line.get("tune_auc", {}).items():
            if auc is not None:
                self._scalar(f"epoch/tune_auc_{task}", auc, step)

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._board.add_scalar(name, value, step)

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()


def print_step(epoch: int, done: int, total: int, elapsed_seconds: float, loss: float, num_tiles: int) -> None:
    """A line that moves on a terminal; elsewhere every 20th step."""
    line = f"{progress_line(f'epoch {epoch + 1}', done, total, elapsed_seconds)}, loss {loss:.3f}, {num_tiles:,} tiles"
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="" if done < total else "\n", file=sys.stderr, flush=True)
    elif done % PLAIN_INTERVAL_STEPS == 0 or done == total:
        print(line, file=sys.stderr, flush=True)


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


def _drop_after(path: Path, step: int) -> None:
    """Lines of steps that the resumed checkpoint does not know will be written again; a line cut by a kill goes too."""
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # only the last line can be cut
        if line["step"] <= step:
            kept.append(text + "\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
