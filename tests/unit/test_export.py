import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from evaluate.export import EncoderFacts, export_encoder, load_exported
from ingest.errors import ConfigError, InputError


def facts(**changes: object) -> EncoderFacts:
    values = {
        "architecture": "resnet18",
        "model_args": {},
        "tile_size_px": 64,
        "tile_mpp": 0.5,
        "mean": (0.7, 0.5, 0.7),
        "std": (0.2, 0.25, 0.2),
        "stain": "H&E",
        "license": "cc-by-nc-4.0",
        "provenance": {"config_digest": "ab"},
    }
    return EncoderFacts(**{**values, **changes})  # type: ignore[arg-type]


def some_tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def trained_encoder() -> nn.Module:
    torch.manual_seed(1)
    encoder: nn.Module = timm.create_model("resnet18", num_classes=0)
    with torch.no_grad():
        encoder.train()(torch.randn(8, 3, 64, 64) + 0.3)  # running statistics of their own
    return encoder.to(memory_format=torch.channels_last).eval()


def test_plain_timm_loads_the_folder_with_the_same_features_and_constants(tmp_path: Path) -> None:
    encoder = trained_encoder()
    folder = export_encoder(encoder, facts(), some_tiles(), "# Card\n", tmp_path / "encoder")
    loaded = load_exported(folder)
    tiles = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(tiles), encoder(tiles))
    settings = timm.data.resolve_model_data_config(loaded)
    assert tuple(settings["mean"]) == (0.7, 0.5, 0.7)
    assert settings["crop_pct"] == 1.0
    assert tuple(settings["input_size"]) == (3, 64, 64)


def test_golden_features_come_back_from_the_golden_tiles(tmp_path: Path) -> None:
    folder = export_encoder(trained_encoder(), facts(), some_tiles(), "# Card\n", tmp_path / "encoder")
    golden = load_file(folder / "check" / "golden.safetensors")
    tiles = golden["tiles"].permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts().mean, facts().std))
    with torch.inference_mode():
        assert torch.equal(load_exported(folder)((tiles - mean) / std), golden["features"])


def test_the_sums_name_every_file(tmp_path: Path) -> None:
    folder = export_encoder(trained_encoder(), facts(), some_tiles(), "# Card\n", tmp_path / "encoder")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files == {"README.md", "config.json", "model.safetensors", "check/golden.safetensors"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == value for name, value in sums.items())


def test_the_configuration_has_no_head_and_no_class_count_in_the_arguments(tmp_path: Path) -> None:
    folder = export_encoder(trained_encoder(), facts(), some_tiles(), "# Card\n", tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "model_args" not in config
    assert config["pathology"]["mpp"] == 0.5
    assert not any(name.startswith("fc.") for name in load_file(folder / "model.safetensors"))


def test_an_encoder_that_timm_builds_otherwise_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained_encoder()

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = 2 * self.inner(tiles)
            return doubled

        def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return self.inner.state_dict()

    with pytest.raises(InputError, match="differ from the training code"):
        export_encoder(Doubled(), facts(), some_tiles(), "# Card\n", tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


def test_a_licence_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--license is required"):
        export_encoder(trained_encoder(), facts(license=" "), some_tiles(), "# Card\n", tmp_path / "encoder")
