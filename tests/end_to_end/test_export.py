"""From a trained run to a folder for others, and from that folder back into training: on a small cohort."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from evaluate.__main__ import app
from evaluate.export_aggregator import load_slide_model
from evaluate.export_run import base_weights, checks, export_run, plan_export
from evaluate.parity import load_exported, parity_tiles
from evaluate.predictions import read_predictions
from evaluate.whole import EvaluateConfig, predict_run, report_run
from ingest.errors import ConfigError, InputError
from ingest.slide import open_slide
from pretrain.config import PretrainConfig
from pretrain.loop import train
from pretrain.start import open_cohort, open_run
from tests.small_cohort import with_settings, write_small_cohort


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    config = with_settings(write_small_cohort(tmp_path_factory.mktemp("trained")), run={"num_epochs": 1},
                           data={"slides_per_epoch": 0.25})  # fmt: skip
    with open_run(config, resume=False) as run:
        train(run)
    predict_run(config.run.folder, "best", EvaluateConfig())
    report_run(config.run.folder, "best", EvaluateConfig())
    return config


@pytest.fixture(scope="module")
def folder(trained: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(plan_export(trained.run.folder, tmp_path_factory.mktemp("out") / "encoder", "cc0-1.0")).folder


def test_the_card_says_where_it_comes_from_how_good_it_is_and_what_was_checked(
    folder: Path, trained: PretrainConfig
) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: cc0-1.0" in card
    assert "| scans in the LIS | 9 |\n| with a target | 8 |" in card
    assert "## Measured on the test part" in card
    header = card_header(card)
    assert (header["license"], header["library_name"]) == ("cc0-1.0", "timm")
    measured = json.loads((trained.run.folder / "report" / "metrics.json").read_text())["levels"]["slide"]["metrics"]
    result = header["model-index"][0]["results"][0]["metrics"][0]
    assert result["value"] == round(measured["auroc"]["value"], 4)
    assert result["args"]["low"] == round(measured["auroc"]["low"], 4)
    assert "| slide | auroc |" in card
    assert "16 real tiles of 4 of the manifest's slides: features through plain timm are equal bit for bit" in card
    assert "Training started from random weights" in card
    assert "train 4 slides of 4 patients, tune 2 slides of 2 patients" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["pathology"]["mpp"] == 0.5
    assert config["pathology"]["tile_size_px"] == 32
    assert config["pathology"]["stain"] == "H&E"


def test_the_dataset_card_has_counts_and_the_split_and_names_no_one(folder: Path, trained: PretrainConfig) -> None:
    card = (folder / "dataset" / "README.md").read_text()
    assert "| part | patients | specimens | slides | tiles | classes |" in card
    assert (
        "| train | 4 | 4 | 4 | 50 | cancer: not shown |" in card
    )  # 11 + 12 + 13 + 14 tiles; classes of 2 patients are hidden
    assert "Label rules `r`" in card
    names = [f"{kind}{number}" for kind in ("patient", "slide", "case", "part") for number in range(8)]
    everything = b"".join(file.read_bytes() for file in folder.rglob("*") if file.suffix in (".md", ".json", ".svg"))
    assert not [name for name in names if name.encode() in everything]
    assert str(trained.run.folder.parent).encode() not in everything


def test_timm_features_and_the_aggregator_folder_give_the_scores_that_were_predicted(
    folder: Path, trained: PretrainConfig
) -> None:
    predictions = read_predictions(trained.run.folder / "predictions.parquet").set_index("slide_key")["score"]
    encoder, model = load_exported(folder), load_slide_model(folder / "aggregator")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder), is_training=False)
    assert len(predictions) == 4
    for slide in open_cohort(trained).slides:
        if slide.slide_key not in predictions:
            continue
        tiles = np.empty((slide.num_tiles, 32, 32, 3), np.uint8)
        with open_slide(slide.path) as opened:
            opened.read_tiles(slide.grid, slide.tile_indices(), tiles)
        with torch.inference_mode():
            features = encoder(torch.stack([transform(Image.fromarray(tile)) for tile in tiles]))
        assert model.scores(features)["cancer"] == pytest.approx(predictions[slide.slide_key], abs=1e-5)


def test_a_report_of_other_weights_is_not_in_the_card(trained: PretrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run.folder, run, symlinks=True)
    path = run / "report" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_digest": "of another checkpoint"}))
    card = (export_run(plan_export(run, tmp_path / "encoder", "cc0-1.0")).folder / "README.md").read_text()
    assert "Not evaluated" in card
    assert "auroc" not in card
    assert "model-index" not in card_header(card)


def test_without_a_readable_slide_the_tiles_are_invented_and_everyone_is_told(
    trained: PretrainConfig, tmp_path: Path
) -> None:
    files = trained.data.manifest.parent / "files"
    plan = plan_export(trained.run.folder, tmp_path / "encoder", "cc0-1.0")
    files.rename(files.with_name("away"))
    try:
        files.mkdir()
        (files / "slide3.svs").write_bytes((files.with_name("away") / "slide3.svs").read_bytes()[:500])
        exported = export_run(plan)
    finally:
        shutil.rmtree(files)
        files.with_name("away").rename(files)
    assert "16 invented tiles, because none of the manifest's 8 slides could be read" in checks(plan, exported)
    assert "16 invented tiles" in (exported.folder / "README.md").read_text()
    assert "warning: no slide of the manifest could be read" in checks(plan, exported)


def test_a_slide_that_cannot_be_read_is_passed_over(trained: PretrainConfig, tmp_path: Path) -> None:
    first = trained.data.manifest.parent / "files" / "slide0.svs"
    content = first.read_bytes()
    try:
        first.write_bytes(content[:500])
        tiles = parity_tiles(open_cohort(trained))
    finally:
        first.write_bytes(content)
    assert (tiles.num_slides, tiles.num_unread, len(tiles.tiles_KHW3)) == (4, 1, 16)


def test_a_run_starts_from_exactly_the_exported_weights(trained: PretrainConfig, folder: Path, tmp_path: Path) -> None:
    again = with_settings(trained, encoder={"weights": folder}, run={"folder": tmp_path / "run", "num_epochs": 1})
    exported = load_file(folder / "model.safetensors")
    with open_run(again, resume=False) as run:
        assert run.models.encoder is not None
        started = {name: value.clone() for name, value in run.models.encoder.state_dict().items()}
        assert all(torch.equal(started[name], value) for name, value in exported.items())
        assert set(started) == set(exported)
        train(run)
        moved = run.models.encoder.state_dict()
    assert not torch.equal(moved["conv1.0.weight"], started["conv1.0.weight"])

    plan = plan_export(tmp_path / "run", tmp_path / "again", "cc-by-nc-4.0", base_license="mit")
    card = (export_run(plan).folder / "README.md").read_text()
    assert "Training started from `encoder`, licence cc0-1.0" in card  # the folder says it, whatever the user says
    document = json.loads((tmp_path / "again" / "config.json").read_text())
    assert document["pathology"]["provenance"]["started_from"] == {"name": "encoder", "license": "cc0-1.0"}


def test_a_licence_of_the_start_that_nobody_states_is_a_warning(
    trained: PretrainConfig, folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "given.safetensors"
    shutil.copy(folder / "model.safetensors", weights)
    config = trained.encoder.model_copy(update={"weights": weights})
    assert base_weights(trained.encoder, None) is None
    plan = replace(plan_export(trained.run.folder, tmp_path / "again", "mit"), base=base_weights(config, None))
    exported = export_run(plan)
    assert "given.safetensors, whose licence is not known" in checks(plan, exported)
    assert "find out whether it lets you share" in (exported.folder / "README.md").read_text()
    stated = replace(plan, base=base_weights(config, "cc-by-nc-nd-4.0"))
    assert "whose licence" not in checks(stated, export_run(stated))
    assert "licence cc-by-nc-nd-4.0: its terms go on" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_training_does_not_start_from_a_damaged_export(
    trained: PretrainConfig, folder: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("an edited card is fine\n")
    again = with_settings(trained, encoder={"weights": copy}, run={"folder": tmp_path / "run"})
    with open_run(again, resume=False):
        pass
    content = bytearray((copy / name).read_bytes())
    position = content.rindex(b"0.5") if name == "config.json" else len(content) // 2
    content[position] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"copy: {name} is not what was written"), open_run(again, resume=False):
        pass
    (copy / name).unlink()
    with pytest.raises((InputError, ConfigError), match=name), open_run(again, resume=False):
        pass


def test_training_does_not_start_from_an_export_of_another_architecture(
    trained: PretrainConfig, folder: Path, tmp_path: Path
) -> None:
    again = with_settings(trained, encoder={"name": "resnet18", "weights": folder}, run={"folder": tmp_path / "run"})
    with (
        pytest.raises(ConfigError, match=r"encoder: holds a test_resnet, encoder\.name is resnet18; set encoder\.name"),
        open_run(again, resume=False),
    ):
        pass


def test_the_command_says_what_it_will_do_then_does_it(trained: PretrainConfig, tmp_path: Path) -> None:
    arguments = ["export", str(trained.run.folder), str(tmp_path / "encoder")]
    assert CliRunner().invoke(app, arguments).exit_code == 2, "no licence"
    dry = CliRunner().invoke(app, [*arguments, "--license", "cc0-1.0", "--torch-export", "--dry-run"])
    assert dry.exit_code == 0
    assert "program/encoder.pt2" in dry.stdout
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(app, [*arguments, "--license", "cc0-1.0"])
    assert done.exit_code == 0
    assert "parity: 16 real tiles of 4 of the manifest's slides" in done.stdout
    assert done.stdout.strip().endswith(f"open {tmp_path / 'encoder' / 'README.md'}")
    assert not (tmp_path / "encoder" / "program").exists()


def card_header(card: str) -> dict[str, Any]:
    """The header as model hubs read it."""
    header: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    return header
