"""Aggregator and heads as a folder: written, read back, and refused when damaged."""

import json
from pathlib import Path

import pytest
import torch

from evaluate.export_aggregator import check_slide_model, load_slide_model, save_slide_model
from ingest.errors import ConfigError, InputError
from pretrain.aggregator import build_aggregator
from pretrain.config import AggregatorConfig, TaskConfig
from pretrain.heads import Heads
from pretrain.sums import write_sums

TASKS = [TaskConfig(name="cancer"), TaskConfig(name="er", kind="number"), TaskConfig(name="grade", num_classes=3)]
FEATURES_TF = torch.randn(7, 12, generator=torch.Generator().manual_seed(5))


def written(folder: Path, name: str) -> tuple[torch.nn.Module, Heads]:
    config = AggregatorConfig(name=name, hidden_size=16, gate_size=8)
    torch.manual_seed(3)
    aggregator = build_aggregator(config, 12)
    heads = Heads(aggregator.num_features, TASKS)
    save_slide_model(folder, aggregator, heads, config, 12, "e" * 64, {"license": "cc0-1.0"})
    return aggregator.eval(), heads.eval()


@pytest.mark.parametrize("name", ["gma", "mean", "max", "transmil"])
def test_what_is_read_back_gives_the_same_outputs(tmp_path: Path, name: str) -> None:
    aggregator, heads = written(tmp_path / "aggregator", name)
    with torch.no_grad():
        pooled, attention_T = aggregator(FEATURES_TF)
        ours = heads(pooled)
    model = load_slide_model(tmp_path / "aggregator")
    theirs, their_attention_T = model.outputs(FEATURES_TF)
    assert {task: len(output) for task, output in theirs.items()} == {"cancer": 2, "er": 1, "grade": 3}
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)
    assert (attention_T is None) == (their_attention_T is None)
    assert model.scores(FEATURES_TF)["cancer"] == pytest.approx(ours["cancer"].softmax(-1)[1].item())
    assert model.scores(FEATURES_TF)["er"] == pytest.approx(ours["er"].item())
    check_slide_model(tmp_path / "aggregator", aggregator, heads, FEATURES_TF)


def test_other_weights_than_those_in_memory_are_noticed(tmp_path: Path) -> None:
    aggregator, heads = written(tmp_path / "aggregator", "gma")
    with torch.no_grad():
        next(heads.parameters()).add_(1e-3)
    with pytest.raises(InputError, match="give other outputs for cancer"):
        check_slide_model(tmp_path / "aggregator", aggregator, heads, FEATURES_TF)


def test_one_flipped_byte_is_noticed(tmp_path: Path) -> None:
    written(tmp_path / "aggregator", "gma")
    write_sums(tmp_path)
    load_slide_model(tmp_path / "aggregator")
    file = tmp_path / "aggregator" / "aggregator.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"aggregator\.safetensors is not what was written"):
        load_slide_model(tmp_path / "aggregator")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no readable config\.json"):
        load_slide_model(tmp_path)
    written(tmp_path / "aggregator", "gma")
    config = tmp_path / "aggregator" / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"format_version": 2}))
    with pytest.raises(ConfigError, match="format 2, this code reads 1"):
        load_slide_model(tmp_path / "aggregator")
    document["aggregator"]["gate_size"] = 9
    config.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"does not fit config\.json"):
        load_slide_model(tmp_path / "aggregator")


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "aggregator", "gma")
    model = load_slide_model(tmp_path / "aggregator")
    with pytest.raises(InputError, match=r"wanted \[tiles, 12\]"):
        model.outputs(torch.zeros(3, 13))
    with pytest.raises(InputError, match="at least one tile"):
        model.outputs(torch.zeros(0, 12))
