"""The command lines as people meet them: help for every command, one-line errors with their exit codes, dry runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from ingest.config import to_toml
from tests.small_cohort import write_small_cohort

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)  # fmt: skip


@pytest.mark.parametrize("package", ["ingest", "pretrain", "evaluate"])
def test_every_command_has_help_with_an_example(package: str) -> None:
    lines = run(package, "--help").stdout.split("Commands:")[1].splitlines()
    commands = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert len(commands) >= 3
    for command in commands:
        done = run(package, command, "--help")
        assert done.returncode == 0, (command, done.stderr)
        assert f"python -m {package}" in done.stdout or command in ("rules", "review"), command


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ingest", "run", "-c", "nowhere.toml"], 2, "no such file"),
        (["ingest", "run", "-c", "manifests/demo.toml", "--set", "tiles.sise_px=3"], 2, "did you mean size_px"),
        (["ingest", "show", "nowhere"], 3, "missing"),
        (["ingest", "init", "cohorts/x", "--preset", "softpath"], 2, "copath"),
        (["pretrain", "train", "--set", "data.manifest=nowhere", "--dry-run"], 3, "nowhere"),
        (["pretrain", "train", "--set", "encoder.nam=resnet18"], 2, "did you mean name"),
        (["pretrain", "--scheme", "mccv20", "--set", "data.manifest=nowhere"], 3, "nowhere"),
        (["pretrain", "train", "--folds", "3"], 2, "say of which scheme"),
        (["pretrain", "doctor", "nowhere.svs"], 3, "no such file"),
        (["pretrain", "doctor", "--folder", "README.md"], 3, "is a file"),
        (["evaluate", "mccv", "nowhere.toml"], 2, "no such file"),
        (["evaluate", "mccv", "manifests"], 3, "pretrain train --scheme"),
        (["evaluate", "mccv", "manifests", "manifests/egfr.toml"], 2, "run folders only"),
        (["evaluate", "predict", "nowhere"], 3, "no best checkpoint"),
        (["evaluate", "report", "nowhere", "--checkpoint", "newest"], 2, "choose best or last"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_exit_code(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ")
    assert words in line


def test_the_launcher_says_what_it_is_for_without_torch() -> None:
    done = run("pretrain.launch", "--help")
    assert done.returncode == 0
    assert "python -m pretrain.launch --nproc-per-node 12 -m pretrain train" in done.stdout


def test_a_dry_run_resolves_everything_and_writes_nothing(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    (tmp_path / "run.toml").write_text(to_toml("pretrain", config))
    before = sorted(tmp_path.rglob("*"))
    done = run("pretrain", "train", "-c", tmp_path / "run.toml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "8 slides of 8 patients (4 train, 2 tune, 2 test)" in done.stdout
    assert "[pretrain.encoder]" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_model_names_the_nearest_ones(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    (tmp_path / "run.toml").write_text(to_toml("pretrain", config))
    done = run("pretrain", "train", "-c", tmp_path / "run.toml", "--set", "encoder.name=resnet-18")
    assert done.returncode == 2
    assert "resnet18" in done.stderr
    assert "Traceback" not in done.stderr
