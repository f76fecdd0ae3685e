"""The launch recipes start for real: sbatch bodies with stand-ins for SLURM's own commands, two 'nodes' on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch

from ingest.config import to_toml
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.exit_codes import EXIT_STOPPED
from pretrain.loop import train
from pretrain.ranks import run_ranks
from pretrain.record import read_metrics
from pretrain.start import open_run
from tests.small_cohort import with_settings, write_small_cohort

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "pretrain" / "launch"
# srun starts one task per node, all options begin with --, its exit code is the largest of its tasks.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
ranks=($RANKS_OF_NODES)
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do RANKS=${ranks[$node]} "$@" & tasks[$node]=$!; done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; if ((code > worst)); then worst=$code; fi; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
if [[ "$1 $2" == "show hostnames" ]]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


def slurm(folder: Path, ranks_of_nodes: Sequence[int]) -> dict[str, str]:
    """The environment of a SLURM job: stand-ins for its commands first on the PATH."""
    commands = {"srun": SRUN, "scontrol": SCONTROL, "python": f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n'}
    for name, text in commands.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RANKS_OF_NODES": " ".join(map(str, ranks_of_nodes)),
        "REQUEUED": str(folder / "requeued"), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "gpu[01-02]",
        "SLURM_JOB_NUM_NODES": str(len(ranks_of_nodes)), "RANKS": str(ranks_of_nodes[0]), "LOCAL_ADDR": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def write_run(folder: Path, num_epochs: int, layout: str) -> PretrainConfig:
    config = with_settings(
        write_small_cohort(folder), run={"num_epochs": num_epochs}, step={"layout": layout, "timeout_seconds": 600}
    )
    (folder / "run.toml").write_text(to_toml("pretrain", config))
    return config


def weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(config.run.folder, "last")
    assert folder is not None
    parts = load_checkpoint(folder)
    return {**parts["encoder"], **parts["aggregator"]["aggregator"], **parts["aggregator"]["heads"]}


def train_on_rank(config_json: str) -> None:
    torch.set_num_threads(1)
    with open_run(PretrainConfig.model_validate_json(config_json), resume=False) as run:
        train(run)


def wait_for_step(config: PretrainConfig, process: "subprocess.Popen[str]") -> None:
    log = config.run.folder / "metrics.jsonl"
    ends_at = time.monotonic() + 900
    while not (log.exists() and '"kind": "step"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends_at, "no step in 15 minutes"
        time.sleep(0.05)


def signal_all(process: "subprocess.Popen[str]", number: int) -> None:
    """As SLURM does: every process of the job step, the readers of slides among them; not the batch script."""
    (srun,) = psutil.Process(process.pid).children()
    for each in srun.children(recursive=True):
        each.send_signal(number)


def test_two_nodes_with_one_and_two_ranks_train_to_the_weights_of_one_node(tmp_path: Path) -> None:
    config = write_run(tmp_path, 1, "dedicated")
    done = subprocess.run(
        ["bash", RECIPES / "nodes.sbatch", "-c", tmp_path / "run.toml"], cwd=ROOT, env=slurm(tmp_path, (1, 2)),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = with_settings(config, run={"folder": tmp_path / "alone"})
    run_ranks(3, train_on_rank, alone.model_dump_json())
    spread, together = weights(config), weights(alone)
    assert [name for name in together if not torch.equal(spread[name], together[name])] == []
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_slurm_stops_saves_queues_itself_again_and_then_finishes(tmp_path: Path) -> None:
    config = write_run(tmp_path, 10, "shared")
    command = ["bash", str(RECIPES / "one_node.sbatch"), "-c", str(tmp_path / "run.toml")]
    environment = slurm(tmp_path, (2,))
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        wait_for_step(config, job)
        signal_all(job, signal.SIGTERM)
        out, errors = job.communicate(timeout=600)
    assert job.returncode == EXIT_STOPPED, errors
    assert "stopped by a signal after step" in out
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    num_done = len(read_metrics(config.run.folder, "step"))
    assert 0 < num_done < 40
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in read_metrics(config.run.folder, "step")] == list(range(1, 41))


def test_the_reader_of_slides_outlives_the_signals_that_stop_a_run(tmp_path: Path) -> None:
    """torchrun and SLURM signal it together with its trainer, which needs it until the step is done."""
    with open_run(write_run(tmp_path, 1, "single"), resume=False) as run:
        readers = [
            child for child in psutil.Process().children() if "multiprocessing.spawn" in " ".join(child.cmdline())
        ]
        assert len(readers) == 1
        for number in (signal.SIGTERM, signal.SIGUSR1):
            readers[0].send_signal(number)
        train(run)
    assert len(read_metrics(run.config.run.folder, "step")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "ours"])
def test_sigusr1_to_the_launcher_saves_and_the_same_command_finishes(tmp_path: Path, launcher: str) -> None:
    config = write_run(tmp_path, 10, "dedicated")
    torchrun = ["torch.distributed.run", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    module = torchrun if launcher == "torchrun" else ["pretrain.launch"]
    command = [sys.executable, "-m", *module, "--standalone", "--nproc-per-node", "3", "-m", "pretrain", "train",
               "-c", str(tmp_path / "run.toml"), "--resume"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        wait_for_step(config, job)
        workers = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGUSR1)
        out, errors = job.communicate(timeout=600)
    assert "stopped by a signal after step" in out, errors
    assert job.returncode == (1 if launcher == "torchrun" else EXIT_STOPPED)  # torchrun says 1 whatever its workers say
    assert not any(worker.is_running() for worker in workers)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in read_metrics(config.run.folder, "step")] == list(range(1, 41))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.s*")), ids=lambda path: path.name)
def test_a_recipe_is_valid_bash(recipe: Path) -> None:
    done = subprocess.run(["bash", "-n", recipe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.sbatch")), ids=lambda path: path.name)
def test_a_job_file_lets_the_run_save_before_the_time_limit_and_keeps_its_log(recipe: Path) -> None:
    options = [line.removeprefix("#SBATCH ") for line in recipe.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--signal=TERM@180", "--requeue", "--open-mode=append"} <= set(options)
