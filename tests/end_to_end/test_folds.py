"""All repeats of a Monte Carlo scheme in one command, with a fold that fails and one that is stopped; then the paper's table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluate.compare import nadeau_bengio
from evaluate.folds import collect_folds, distinct_names
from evaluate.mccv import MccvConfig, mccv_rows, table_text
from evaluate.predictions import read_predictions
from evaluate.whole import EvaluateConfig
from ingest.errors import InputError, ManifestError
from pretrain.config import PretrainConfig
from pretrain.exit_codes import EXIT_FAILED, EXIT_STOPPED
from pretrain.folds import read_folds
from pretrain.record import read_metrics
from tests.fold_cohort import NUM_FOLDS, SCHEME, add_scheme, part, write_fold_cohort

ROOT = Path(__file__).parents[2]
NUM_EPOCHS = 4
STEPS = list(range(1, 4 * NUM_EPOCHS + 1))


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pretrain", "--scheme", SCHEME, "-c", str(folder / "run.toml"), *more]


def start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(command(folder, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(fold: Path, process: "subprocess.Popen[str]") -> None:
    log = fold / "metrics.jsonl"
    ends_at = time.monotonic() + 900
    while not (log.is_file() and '"kind": "step"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends_at, "no step in 15 minutes"
        time.sleep(0.05)


def statuses(config: PretrainConfig) -> list[str]:
    return [state.status for state in read_folds(config.run.folder)[1]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Trained in two starts: in the first, fold 1 cannot write its log and fold 2 is stopped by a signal."""
    folder = tmp_path_factory.mktemp("folds")
    config = write_fold_cohort(folder, NUM_EPOCHS)
    obstacle = config.run.folder / "fold_01" / "metrics.jsonl"
    obstacle.mkdir(parents=True)
    with start(folder) as process:
        wait_for_step(config.run.folder / "fold_02", process)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=600)
    assert process.returncode == EXIT_STOPPED, errors
    assert statuses(config) == ["finished", "failed", "stopped"]
    assert "mccv3: 3 folds = 1 finished + 1 failed + 1 stopped" in out
    assert "fold 1: failed (exit code 1" in out
    obstacle.rmdir()
    before = (config.run.folder / "fold_00" / "metrics.jsonl").stat().st_mtime_ns
    done = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "finished before: 1 of 3 folds" in done.stdout
    assert (config.run.folder / "fold_00" / "metrics.jsonl").stat().st_mtime_ns == before
    return config


def test_every_fold_is_trained_once_in_its_own_folder(trained: PretrainConfig) -> None:
    assert statuses(trained) == ["finished"] * NUM_FOLDS
    for fold in range(NUM_FOLDS):
        folder = trained.run.folder / f"fold_{fold:02d}"
        assert [line["step"] for line in read_metrics(folder, "step")] == STEPS
        assert f"fold = {fold}\n" in (folder / "config.toml").read_text()


def test_the_table_is_made_from_the_test_part_of_each_fold(trained: PretrainConfig) -> None:
    collected = collect_folds(trained.run.folder, "best", EvaluateConfig())
    (row,) = mccv_rows(MccvConfig(runs=distinct_names([("run", collected)])), Path())
    predictions = read_predictions(trained.run.folder / "predictions.parquet")
    for fold in range(NUM_FOLDS):
        rows = predictions[predictions["fold"] == fold]
        assert sorted(rows["slide_key"]) == [f"slide{number}" for number in range(8) if part(number, fold) == "test"]
        assert row.aurocs[fold] == roc_auc_score(rows["label"], rows["score"])
    areas = list(row.aurocs.values())
    assert row.shown == f"{100 * np.mean(areas):.1f} ({100 * np.std(areas, ddof=1):.1f})"
    assert len(set(areas)) > 1, "folds that all score the same would not show a fold that is mixed up"
    assert collected.runs[0].test_per_train == 3 / 4
    assert row.interval.low == pytest.approx(max(0.0, nadeau_bengio(areas, 3 / 4).low))
    assert row.interval.high == pytest.approx(min(1.0, nadeau_bengio(areas, 3 / 4).high))
    assert (row.algorithm, row.tiles, row.selected_on) == ("all tiles (S)", "All Tiles", "last epoch")
    assert f"| all tiles (S) | NA | All Tiles | {row.shown} | 3 |" in table_text([row])
    assert collected.notes == ()


def test_predictions_that_are_there_are_used_and_those_of_other_weights_made_again(trained: PretrainConfig) -> None:
    collect_folds(trained.run.folder, "best", EvaluateConfig())
    paths = [trained.run.folder / f"fold_{fold:02d}" / "predictions.parquet" for fold in range(NUM_FOLDS)]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    collect_folds(trained.run.folder, "best", EvaluateConfig())
    after = [path.stat().st_mtime_ns for path in paths]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_a_fold_that_is_not_finished_is_left_out_and_told(trained: PretrainConfig) -> None:
    path = trained.run.folder / "fold_01" / "fold.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(original) | {"status": "failed", "exit_code": 3}))
        collected = collect_folds(trained.run.folder, "best", EvaluateConfig())
        path.write_text(json.dumps(json.loads(original) | {"config": "another"}))
        with pytest.raises(InputError, match="different configurations"):
            collect_folds(trained.run.folder, "best", EvaluateConfig())
    finally:
        path.write_text(original)
    assert collected.notes == ("2 of 3 folds of mccv3; left out: fold 1 failed",)
    (row,) = mccv_rows(MccvConfig(runs=collected.runs), Path())
    assert sorted(row.aurocs) == [0, 2]


def test_folds_are_not_scored_on_a_split_they_were_not_trained_by(trained: PretrainConfig) -> None:
    splits = trained.data.manifest / "splits.parquet"
    original = splits.read_bytes()
    try:
        add_scheme(trained.data.manifest, shift=4)
        with pytest.raises(ManifestError, match="patients may have changed sides"):
            collect_folds(trained.run.folder, "best", EvaluateConfig())
    finally:
        splits.write_bytes(original)


def test_a_folder_that_holds_another_fold_is_refused(trained: PretrainConfig) -> None:
    first, second = (trained.run.folder / f"fold_{fold:02d}" / "checkpoints" for fold in (0, 1))
    second.rename(second.with_name("kept"))
    try:
        second.symlink_to(first)
        with pytest.raises(InputError, match="fold_01 holds fold 0 of mccv3, not fold 1"):
            collect_folds(trained.run.folder, "best", EvaluateConfig())
    finally:
        second.unlink()
        second.with_name("kept").rename(second)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    config = write_fold_cohort(tmp_path, 50)
    with start(tmp_path, "--folds", "1") as process:
        wait_for_step(config.run.folder / "fold_01", process)
        process.kill()
        process.communicate(timeout=600)  # ends when the last process that holds the pipe has ended
    num_steps = len(read_metrics(config.run.folder / "fold_01", "step"))
    assert 0 < num_steps < 200
    assert statuses(config) == ["waiting", "running", "waiting"]
    done = subprocess.run(command(tmp_path, "--folds", "1"), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert statuses(config) == ["waiting", "finished", "waiting"]
    assert [line["step"] for line in read_metrics(config.run.folder / "fold_01", "step")] == list(range(1, 201))


@pytest.mark.slow
def test_ranks_of_torchrun_train_the_folds_together_and_outlive_one_that_fails(tmp_path: Path) -> None:
    config = write_fold_cohort(tmp_path, 2)
    (config.run.folder / "fold_00" / "metrics.jsonl").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.launch", "--standalone", "--nproc-per-node", "2", "-m", "pretrain", "train",
         "--scheme", SCHEME, "--folds", "0,2", "-c", tmp_path / "run.toml", "--set", "step.layout=shared"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == EXIT_FAILED, done.stderr
    assert statuses(config) == ["failed", "waiting", "finished"]
    assert [line["step"] for line in read_metrics(config.run.folder / "fold_02", "step")] == list(range(1, 9))
