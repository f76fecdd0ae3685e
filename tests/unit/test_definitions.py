"""The cohort definitions that the project ships are valid for both stages, and the help texts name files that exist."""

import re
from pathlib import Path

import pytest

from evaluate.whole import EvaluateConfig
from ingest.cohort import CohortConfig
from ingest.config import load_config, to_toml
from ingest.rulefile import load_rules
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[2]
DEFINITIONS = sorted((ROOT / "manifests").glob("*.toml"))


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.name)
def test_a_definition_is_valid_for_all_stages_and_its_parts_fit_together(path: Path) -> None:
    cohort = load_config(CohortConfig, "ingest", path)
    training = load_config(PretrainConfig, "pretrain", path)
    load_config(EvaluateConfig, "evaluate", path)
    assert training.data.manifest == cohort.output.manifest
    assert training.data.vault == cohort.output.vault
    rules = load_rules(cohort.labels.rules)
    assert {task.name for task in training.tasks} <= {rules.task, *rules.target_tasks}
    assert cohort.balance.target == f"y_{rules.task}"


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.name)
def test_a_resolved_configuration_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    for model, stage in ((CohortConfig, "ingest"), (PretrainConfig, "pretrain")):
        config = load_config(model, stage, path)
        (tmp_path / "resolved.toml").write_text(to_toml(stage, config))
        assert load_config(model, stage, tmp_path / "resolved.toml") == config


def test_definitions_that_the_code_names_exist() -> None:
    names = set()
    for package in ("ingest", "pretrain", "evaluate"):
        for file in (ROOT / package).rglob("*.py"):
            names |= set(re.findall(r"manifests/(\w+\.toml)", file.read_text(encoding="utf-8")))
    assert names
    assert [name for name in sorted(names) if not (ROOT / "manifests" / name).exists()] == []
