"""Which folds are trained, skipped or refused, without training any."""

import json
from pathlib import Path

import pytest

from ingest.errors import ConfigError, InputError, ManifestError
from pretrain.drivers import open_drivers
from pretrain.folds import (
    Fold,
    chosen_folds,
    describe_folds,
    fold_command,
    folds_to_train,
    manifest_digest,
    read_folds,
    scheme_folds,
    write_ledger,
)
from tests.fold_cohort import SCHEME, add_scheme, write_fold_cohort

NEW = Fold(fold=0, status="running", config="c", manifest="m")


def note(folder: Path, fold: int, status: str, config: str = "c", manifest: str = "m") -> None:
    path = folder / f"fold_{fold:02d}" / "fold.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"fold": fold, "status": status, "config": config, "manifest": manifest}))


@pytest.mark.parametrize(
    ("text", "folds"),
    [("", [0, 1, 2, 3, 4, 5]), ("3", [3]), ("0-2,5", [0, 1, 2, 5]), ("4,0-1", [0, 1, 4]), ("2,2", [2])],
)
def test_folds_are_chosen_by_number_and_range(text: str, folds: list[int]) -> None:
    assert chosen_folds(text, range(6)) == folds


@pytest.mark.parametrize("text", ["a", "1-", "-3", "1;2", "0-9", "6", ","])
def test_folds_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--folds"):
        chosen_folds(text, range(6))


def test_only_folds_that_are_not_finished_are_trained(tmp_path: Path) -> None:
    for fold, status in enumerate(["finished", "failed", "stopped", "running", "finished"]):
        note(tmp_path, fold, status)
    note(tmp_path, 4, "finished", config="more epochs")
    assert folds_to_train(tmp_path, "mccv6", range(6), range(6), NEW) == [1, 2, 3, 4, 5]
    assert folds_to_train(tmp_path, "mccv6", range(6), [0, 2], NEW) == [2]


def test_folds_of_another_manifest_are_refused(tmp_path: Path) -> None:
    note(tmp_path, 1, "finished", manifest="an earlier split")
    with pytest.raises(ManifestError, match="fold 1 was trained on another manifest or another split"):
        folds_to_train(tmp_path, "mccv6", range(6), range(6), NEW)


def test_the_ledger_adds_up_and_is_made_from_the_files_of_the_folds(tmp_path: Path) -> None:
    for fold, status in ((0, "finished"), (1, "failed"), (3, "finished")):
        note(tmp_path, fold, status)
    write_ledger(tmp_path, "mccv6", range(6))
    note(tmp_path, 5, "stopped")  # by another driver
    write_ledger(tmp_path, "mccv6", range(6))
    ledger = json.loads((tmp_path / "folds.json").read_text())
    counts = {name: ledger[name] for name in ("finished", "failed", "stopped", "running", "waiting")}
    assert counts == {"finished": 2, "failed": 1, "stopped": 1, "running": 0, "waiting": 2}
    assert sum(counts.values()) == ledger["num_folds"] == 6
    scheme, states = read_folds(tmp_path)
    assert (scheme, [state.status for state in states][5]) == ("mccv6", "stopped")
    with pytest.raises(InputError, match="train all folds"):
        read_folds(tmp_path / "nowhere")


def test_a_failure_is_told_in_words() -> None:
    assert (
        Fold(fold=1, status="failed", exit_code=-9).describe()
        == "failed (exit code -9: killed, often for lack of memory)"
    )
    assert Fold(fold=1, status="finished", exit_code=0).describe() == "finished"


def test_a_dry_run_counts_the_slides_of_each_fold(tmp_path: Path) -> None:
    config = write_fold_cohort(tmp_path)
    lines = describe_folds(config, SCHEME, [0, 2]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0", "4", "1", "3", "waiting"], ["1", "4", "1", "3", "not", "asked", "for"], ["2", "4", "1", "3", "waiting"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="manifest manifest has holdout, mccv3"):
        scheme_folds(config.data.manifest, "mccv20")


def test_a_split_made_anew_changes_the_digest_that_folds_are_kept_by(tmp_path: Path) -> None:
    config = write_fold_cohort(tmp_path)
    before = manifest_digest(config.data.manifest)
    assert manifest_digest(config.data.manifest) == before
    add_scheme(config.data.manifest, shift=4)
    assert manifest_digest(config.data.manifest) != before


def test_the_command_of_a_fold_survives_odd_folder_names() -> None:
    command = fold_command(["-c", "x.toml"], "mccv20", 7, Path('runs/a "b" 1'))
    assert command[-1] == "--resume"
    assert 'run.folder="runs/a \\"b\\" 1/fold_07"' in command
    assert command[command.index("data.fold=7") - 1] == "--set"


def test_ranks_without_torchrun_are_refused() -> None:
    with pytest.raises(ConfigError, match="start them with torchrun"):
        open_drivers(1.0, {"WORLD_SIZE": "4", "RANK": "1"})
