"""All folds of a split scheme, one training after the other: what `train --scheme mccv20` does.

Each fold is a process of its own (`python -m pretrain train ... --resume`) in its own run folder `fold_00`, `fold_01`, ...: one
that runs out of memory or breaks its device takes no other with it. Its state lies beside it in `fold.json`; the ledger
`folds.json` is made from these files after every fold, so drivers that train different folds of one scheme at once (a SLURM
array) do not overwrite each other. Starting the same command again skips what is finished and resumes what is not.
Under torchrun every rank drives its own process of the fold, and the drivers agree through torchrun's store.
"""

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from ingest.atomic import atomic_file
from ingest.config import config_digest
from ingest.errors import ConfigError, InputError, ManifestError
from ingest.manifest import read_footer, read_table
from ingest.progress import progress_line
from pretrain.cohort import Cohort, load_cohort
from pretrain.config import PretrainConfig, StepConfig
from pretrain.drivers import Drivers, open_drivers
from pretrain.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, MEANINGS, combined

LEDGER = "folds.json"
FOLD_FILE = "fold.json"
STOPS = (EXIT_STOPPED, EXIT_INTERRUPTED)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
DRIVER_SPARE_SECONDS = (
    120.0  # a rank that was lost is noticed within step.timeout_seconds; then its process still has to end
)

Status = Literal[
    "waiting", "running", "stopped", "failed", "finished"
]  # running in a ledger that nobody writes: killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The state of one fold.

    Attributes:
        exit_code: of its process; of the rank that failed first where there are several; None while waiting or running.
        seconds: spent on it, over all starts.
        config: digest of all that its result depends on; a fold finished under another one is started again.
        manifest: digest of the slides, tiles and splits it was trained on.
    """

    fold: int
    status: Status = "waiting"
    exit_code: int | None = None
    seconds: float = 0.0
    config: str = ""
    manifest: str = ""

    def describe(self) -> str:
        if self.status != "failed" or self.exit_code is None:
            return self.status
        meaning = MEANINGS.get(self.exit_code, "its own message says why")
        return f"failed (exit code {self.exit_code}: {meaning})"


def scheme_folds(manifest: Path, scheme: str) -> list[int]:
    """The folds of a scheme in `splits.parquet`.

    Raises:
        ConfigError: the manifest has no such scheme.
    """
    table = read_table(manifest, "splits", ["scheme", "fold"])
    pairs = set(zip(table.column("scheme").to_pylist(), table.column("fold").to_pylist(), strict=True))
    folds = sorted(fold for name, fold in pairs if name == scheme)
    if not folds:
        known = ", ".join(sorted({name for name, _ in pairs})) or "no splits"
        raise ConfigError(
            f"--scheme {scheme}: manifest {manifest.name} has {known}; make it with `python -m ingest split`"
        )
    return folds


def chosen_folds(text: str, folds: Sequence[int]) -> list[int]:
    """`0-4,7` as numbers; empty text means all.

    Raises:
        ConfigError: not numbers, or a fold that the scheme does not have.
    """
    if not text:
        return list(folds)
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--folds {text}: write numbers and ranges, for example 0-4,7")
        chosen.update(range(int(first), int(last if dash else first) + 1))
    if unknown := sorted(chosen - set(folds)):
        raise ConfigError(
            f"--folds {text}: fold {unknown[0]} is not in the scheme, which has {folds[0]} to {folds[-1]}"
        )
    return sorted(chosen)


def fold_folder(folder: Path, fold: int) -> Path:
    return folder / f"fold_{fold:02d}"


def read_folds(folder: Path) -> tuple[str, list[Fold]]:
    """The scheme of a run folder and the state of each of its folds, from their own files.

    Raises:
        InputError: no ledger there.
    """
    try:
        ledger = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"run {folder.name}: no {LEDGER}; train all folds of a scheme with `python -m pretrain train --scheme NAME`"
        ) from None
    return ledger["scheme"], [_read_fold(folder, fold["fold"]) for fold in ledger["folds"]]


def write_ledger(folder: Path, scheme: str, folds: Sequence[int]) -> list[Fold]:
    """Make `folds.json` from the files of the folds; returns their states."""
    states = [_read_fold(folder, fold) for fold in folds]
    counts = Counter(state.status for state in states)
    ledger = {"scheme": scheme, "num_folds": len(folds), **{name: counts[name] for name in get_args(Status)},
              "folds": [asdict(state) for state in states]}  # fmt: skip
    assert sum(counts[name] for name in get_args(Status)) == len(folds), "every fold has one status"
    with atomic_file(folder / LEDGER) as temporary:
        temporary.write_text(json.dumps(ledger, indent=2) + "\n", encoding="utf-8")
    return states


def describe_folds(config: PretrainConfig, scheme: str, chosen: Collection[int]) -> str:
    """Slides per part and state of each fold, for `--dry-run`."""
    folds = scheme_folds(config.data.manifest, scheme)
    cohort = _cohort(config, scheme, folds[0])
    table = read_table(config.data.manifest, "splits").to_pandas()
    table = table[table["scheme"].astype(str) == scheme]
    lines = [f"{'fold':>4} {'train':>7} {'tune':>7} {'test':>7}  state"]
    for fold in folds:
        rows = table[table["fold"] == fold]
        part_of = dict(zip(rows["patient_key"].astype(str), rows["split"].astype(str), strict=True))
        counts = Counter(part_of.get(slide.patient_key) for slide in cohort.slides)
        parts = " ".join(f"{counts[part]:>7,}" for part in ("train", "tune", "test"))
        state = _read_fold(config.run.folder, fold).describe() if fold in chosen else "not asked for"
        lines.append(f"{fold:>4} {parts}  {state}")
    return "\n".join(lines)


def train_folds(config: PretrainConfig, options: Sequence[str], scheme: str, chosen: Collection[int]) -> int:
    """Train the chosen folds that are not finished; returns the exit code: 0, 1 (some failed), 75 or 130 (stopped).

    Args:
        options: `-c` and `--set` as given; the fold, the scheme and the folder are added.
    Raises:
        ManifestError: the folder holds folds of another manifest or another split.
        DriverError: the driver of another rank was lost.
    """
    folder, folds = config.run.folder, scheme_folds(config.data.manifest, scheme)
    new = Fold(fold=0, status="running", config=_identity(config), manifest=manifest_digest(config.data.manifest))
    drivers = open_drivers(config.step.timeout_seconds + DRIVER_SPARE_SECONDS)
    todo = drivers.from_first(lambda: folds_to_train(folder, scheme, folds, chosen, new))
    code, started_at = 0, time.monotonic()
    with _Stop() as stop:
        for done, fold in enumerate(todo):
            before = replace(new, fold=fold, seconds=_read_fold(folder, fold).seconds)
            if drivers.rank == 0:
                elapsed_seconds = time.monotonic() - started_at
                print(f"fold {fold} begins; " + (progress_line(scheme, done, len(todo), elapsed_seconds) if done else
                                                f"{len(todo)} to train"), flush=True)  # fmt: skip
                _write_fold(folder, before)
                write_ledger(folder, scheme, folds)
            fold_started_at = time.monotonic()
            own_code = _run(fold_command(options, scheme, fold, folder), drivers, stop)
            answers = drivers.from_all((own_code, stop.number))
            code = combined([answer[0] for answer in answers], any(answer[1] for answer in answers))
            if drivers.rank == 0:
                status: Status = "stopped" if code in STOPS else "failed" if code else "finished"
                seconds = round(before.seconds + time.monotonic() - fold_started_at, 1)
                _write_fold(folder, replace(before, status=status, exit_code=code, seconds=seconds))
            if code not in STOPS and any(drivers.from_all(stop.number)):  # it came when the fold had ended
                code = EXIT_STOPPED
            if code in STOPS:
                break
    states = [Fold(**state) for state in drivers.from_first(
        lambda: [asdict(state) for state in write_ledger(folder, scheme, folds)])]  # fmt: skip
    if drivers.rank == 0:
        print(_summary(folder, scheme, states, chosen), flush=True)
    if code in STOPS:
        return code
    return EXIT_FAILED if any(state.status == "failed" and state.fold in chosen for state in states) else 0


def fold_command(options: Sequence[str], scheme: str, fold: int, folder: Path) -> list[str]:
    """The command line of one fold; it can be typed by hand as well."""
    settings = (
        f"data.scheme={scheme}",
        f"data.fold={fold}",
        f"run.folder={json.dumps(str(fold_folder(folder, fold)))}",
    )
    added = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "pretrain", "train", *options, *added, "--resume"]


def manifest_digest(manifest: Path) -> str:
    """SHA-256 of what a fold is trained and tested on: slides, their tiles and the splits."""
    digests = "".join(read_footer(manifest, name)["content_digest"] for name in ("slides", "tiles", "splits"))
    return hashlib.sha256(digests.encode()).hexdigest()


def folds_to_train(folder: Path, scheme: str, folds: Sequence[int], chosen: Collection[int], new: Fold) -> list[int]:
    """The chosen folds that are not finished under the configuration of `new`.

    Raises:
        ManifestError: a fold there was trained on another manifest.
    """
    states = write_ledger(folder, scheme, folds)
    if strangers := [state.fold for state in states if state.manifest and state.manifest != new.manifest]:
        raise ManifestError(
            f"run.folder {folder}: fold {strangers[0]} was trained on another manifest or another split; name another folder "
            "with --set run.folder=..., or delete this one"
        )
    finished = {state.fold for state in states if state.status == "finished" and state.config == new.config}
    if skipped := sorted(finished & set(chosen)):
        print(f"finished before: {len(skipped)} of {len(chosen)} folds", flush=True)
    return [fold for fold in folds if fold in chosen and fold not in finished]


def _run(command: Sequence[str], drivers: Drivers, stop: "_Stop") -> int:
    """The exit code of one process of a fold; signals that come to this driver are passed on to it."""
    environment = os.environ | drivers.environment(_free_port)
    child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)
    stop.pass_on_to(child)
    return child.wait()


def _summary(folder: Path, scheme: str, states: Sequence[Fold], chosen: Collection[int]) -> str:
    counts = Counter(state.status for state in states)
    sums = " + ".join(f"{counts[name]} {name}" for name in reversed(get_args(Status)) if counts[name])
    lines = [f"{scheme}: {len(states)} folds = {sums}; ledger {folder / LEDGER}"]
    lines += [f"fold {state.fold}: {state.describe()}; its folder is {fold_folder(folder, state.fold)}"
              for state in states if state.status == "failed"]  # fmt: skip
    if any(state.status != "finished" for state in states if state.fold in chosen):
        lines.append("start the same command again: finished folds are skipped, the others go on where they stopped")
    if counts["finished"]:
        lines.append(f"evaluate the finished folds with `python -m evaluate mccv {folder}`")
    return "\n".join(lines)


class _Stop:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C; passes the first two on to the process of the fold (a terminal sends Ctrl-C to both)."""

    def __init__(self) -> None:
        self.number = 0
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Stop":
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on_to(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child
        if self.number and self.number != signal.SIGINT:  # it came while the process was being started
            child.send_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._child is not None and number != signal.SIGINT:
            self._child.send_signal(number)


def _end_with_parent() -> None:
    """A driver that is killed must not leave a training behind that a second start would meet in the same folder."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _identity(config: PretrainConfig) -> str:
    """Digest of what the result of a fold depends on: all but its number, its place and how it is spread over ranks."""
    data = config.data.model_copy(update={"fold": 0, "scheme": ""})
    run = config.run.model_copy(update={"folder": Path()})
    return config_digest(config.model_copy(update={"data": data, "run": run, "step": StepConfig()}))


def _cohort(config: PretrainConfig, scheme: str, fold: int) -> Cohort:
    return load_cohort(config.data.manifest, config.data.vault, [task.name for task in config.tasks], scheme, fold)


def _read_fold(folder: Path, fold: int) -> Fold:
    path = fold_folder(folder, fold) / FOLD_FILE
    return Fold(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Fold(fold=fold)


def _write_fold(folder: Path, state: Fold) -> None:
    with atomic_file(fold_folder(folder, state.fold) / FOLD_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
