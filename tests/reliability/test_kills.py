"""kill -9 at any moment: of a save, or of any rank while it trains. At most the steps since the last save are lost, and no file."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.loop import train
from pretrain.ranks import Outcome, rank_outcomes, run_ranks
from pretrain.record import read_metrics
from pretrain.start import open_run
from pretrain.state import Run
from tests.small_cohort import with_settings, write_small_cohort

ROOT = Path(__file__).parents[2]

# A save of step 3 (or of step 2 for a second time, then with 3s in it too) over `run`, which keeps one checkpoint and calls
# this one the best, is begun again and again by a child that is killed at its k-th file operation, for k = 0, 1, ..., until
# one child gets to the end; then by children whose files may only have so many bytes, which the system kills in the middle
# of a write. After each, what is there must load and be of one save.
KILL_IN_SAVE = """
import os, resource, signal, sys
from pathlib import Path
import torch
from pretrain.checkpoint import find_checkpoint, load_checkpoint, remove_leftovers, save_checkpoint

EVENTS = {"open", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}

def parts(step):
    return {name: {"weight": torch.full((500,), float(step))} for name in ("encoder", "aggregator")} | {"training": {"step": step}}

def steps_in(folder):
    loaded = load_checkpoint(folder)
    return {loaded["training"]["step"], *(float(v) for n in ("encoder", "aggregator") for v in loaded[n]["weight"])}

def child(run, step, kill_at, max_bytes):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in EVENTS:
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)
    save_checkpoint(run, step, parts(3), keep=1, best=True)
    os._exit(0)

def check(run, ended, what):
    last, best = (find_checkpoint(run, which) for which in ("last", "best"))
    found = (steps_in(last), steps_in(best))
    assert found[0] in ({2}, {3}) and found[1] in ({1}, {3}), (what, found)
    assert ended != 0 or found == ({3}, {3}), (what, found)
    remove_leftovers(run)
    save_checkpoint(run, 4, parts(4), keep=1)
    assert steps_in(find_checkpoint(run, "last")) == {4}, what
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == sorted({"last", "best", find_checkpoint(run, "best").name, "step_00000004"}), (what, left)

base = Path(sys.argv[1])

def prepared(name):
    run = base / name
    save_checkpoint(run, 1, parts(1), keep=1, best=True)
    save_checkpoint(run, 2, parts(2), keep=1)
    return run

num_killed = 0
for step in (2, 3):
    ended, kill_at = -signal.SIGKILL, 0
    while ended != 0:
        run = prepared(f"step_{step}_operation_{kill_at}")
        ended = child(run, step, kill_at, 0)
        assert ended in (0, -signal.SIGKILL), (kill_at, ended)
        check(run, ended, (step, kill_at))
        num_killed, kill_at = num_killed + (ended != 0), kill_at + 1
for max_bytes in (1, 200, 1500, 2500):
    run = prepared(f"bytes_{max_bytes}")
    ended = child(run, 3, -1, max_bytes)
    assert ended == -signal.SIGXFSZ, (max_bytes, ended)
    check(run, ended, max_bytes)
print(num_killed)
"""


def test_a_save_killed_at_any_of_its_file_operations_leaves_whole_checkpoints(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILL_IN_SAVE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 30  # the operations of two saves: each of them was a moment to die at


def train_on_rank(config_json: str, resume: bool, victim: int = -1, moment: str = "") -> None:
    torch.set_num_threads(1)
    with open_run(PretrainConfig.model_validate_json(config_json), resume) as run:
        if run.team.rank == victim:
            die_at(run, moment)
        train(run)


def die_at(run: Run, moment: str) -> None:
    """kill -9 of this process in its third step, in its third save, or while it scores the tune part."""
    if moment == "save":

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.rename" and str(arguments[1]).endswith("step_00000003"):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        return
    read, num_read = run.feed.read, 0

    def read_until_death(plans: Any) -> Iterator[Any]:
        nonlocal num_read
        for share in read(plans):
            num_read += 1
            if (moment == "step" and num_read == 3) or (moment == "validation" and share.plan.slide.split == "tune"):
                os.kill(os.getpid(), signal.SIGKILL)
            yield share

    run.feed.read = read_until_death  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("victim", "moment", "num_saved_steps"),
    [
        (0, "save", 2),
        pytest.param(1, "step", 2, marks=pytest.mark.slow),
        pytest.param(2, "step", 2, marks=pytest.mark.slow),
        pytest.param(0, "validation", 4, marks=pytest.mark.slow),
        pytest.param(2, "validation", 4, marks=pytest.mark.slow),
    ],
)
def test_a_rank_killed_while_training_costs_no_more_than_the_steps_since_the_last_save(
    tmp_path: Path, victim: int, moment: str, num_saved_steps: int
) -> None:
    base = with_settings(write_small_cohort(tmp_path), step={"layout": "dedicated"}, run={"save_every_steps": 1})
    unbroken = with_settings(base, run={"folder": tmp_path / "unbroken"})
    run_ranks(3, train_on_rank, unbroken.model_dump_json(), False, timeout_seconds=300)
    outcomes: list[Outcome] = rank_outcomes(
        3, train_on_rank, base.model_dump_json(), False, victim, moment, timeout_seconds=300
    )
    assert outcomes[victim].error == "ended with exit code -9"
    for rank in {0, 1, 2} - {victim}:
        assert "TeamError" in str(outcomes[rank].error), outcomes[rank].error
    assert saved_step(base) == num_saved_steps
    run_ranks(3, train_on_rank, base.model_dump_json(), True, timeout_seconds=300)
    assert saved_step(base) == 8
    ours, theirs = (load_checkpoint(last(config)) for config in (base, unbroken))
    for part in ("encoder", "aggregator"):
        assert str(ours[part]) == str(theirs[part])
        assert flat(ours[part]) == flat(theirs[part])
    assert [line["step"] for line in read_metrics(base.run.folder, "step")] == list(range(1, 9))
    assert [line["epoch"] for line in read_metrics(base.run.folder, "epoch")] == [0, 1]


def last(config: PretrainConfig) -> Path:
    folder = find_checkpoint(config.run.folder, "last")
    assert folder is not None
    return folder


def saved_step(config: PretrainConfig) -> int:
    return int(load_checkpoint(last(config), only=("training",))["training"]["position"]["step"])


def flat(state: Any) -> list[float]:
    if isinstance(state, torch.Tensor):
        return state.flatten().tolist()
    return [number for key in sorted(state) for number in flat(state[key])]


def stop_on_one_rank(config_json: str, signalled: int) -> None:
    torch.set_num_threads(1)
    with open_run(PretrainConfig.model_validate_json(config_json), False) as run:
        if run.team.rank == signalled:
            os.kill(os.getpid(), signal.SIGUSR1)
        train(run)


def test_sigusr1_to_any_one_rank_stops_all_of_them_after_a_save(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path), step={"layout": "shared"})
    outcomes = rank_outcomes(2, stop_on_one_rank, config.model_dump_json(), 1)
    assert [outcome.error for outcome in outcomes] == ["ended with exit code 75"] * 2
    assert saved_step(config) == 1
