"""The exported folder: what is in it, that it is refused when plain timm would give other features, who may replace it."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from evaluate.export import EncoderFacts, Exported, ExportOptions, SlideParts, export_encoder
from evaluate.parity import ParityTiles, load_exported
from ingest.errors import ConfigError, InputError
from pretrain.aggregator import build_aggregator
from pretrain.augment import normalise
from pretrain.config import AggregatorConfig, TaskConfig
from pretrain.heads import Heads

MEAN, STD = (0.7, 0.5, 0.7), (0.2, 0.25, 0.2)
AGGREGATOR = AggregatorConfig(hidden_size=8, gate_size=4)


def facts(**changes: object) -> EncoderFacts:
    values = {
        "architecture": "test_resnet",
        "model_args": {},
        "tile_size_px": 64,
        "tile_mpp": 0.5,
        "mean": MEAN,
        "std": STD,
        "stain": "H&E",
        "license": "cc-by-nc-4.0",
        "provenance": {"training": "ab"},
    }
    return EncoderFacts(**{**values, **changes})  # type: ignore[arg-type]


def some_tiles() -> ParityTiles:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return ParityTiles(tiles_KHW3=pixels, num_slides=1, num_unread=0)


def trained_encoder(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(1)
    encoder: nn.Module = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        encoder.train()(torch.randn(8, 3, 64, 64) + 0.3)  # running statistics of their own
    return encoder.to(memory_format=torch.channels_last).eval()


def slide_parts(num_features: int = 96) -> SlideParts:
    torch.manual_seed(2)
    aggregator = build_aggregator(AGGREGATOR, num_features)
    return SlideParts(aggregator=aggregator, heads=Heads(8, [TaskConfig()]), config=AGGREGATOR)


def export(
    folder: Path,
    encoder: nn.Module | None = None,
    options: ExportOptions | None = None,
    card: str = "# Card\n",
    **changes: object,
) -> Exported:
    def prepare(tiles: torch.Tensor, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return normalise(tiles.float().div_(255), MEAN, STD)

    def write_cards(temporary: Path, exported: Exported) -> None:
        (temporary / "README.md").write_text(card)

    encoder = encoder or trained_encoder()
    return export_encoder(
        encoder, slide_parts(int(getattr(encoder, "num_features", 96))), facts(**changes), some_tiles(), prepare, write_cards,
        folder, options=options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("export") / "encoder").folder


def test_plain_timm_loads_the_folder_with_the_same_features_and_constants(folder: Path) -> None:
    loaded, encoder = load_exported(folder), trained_encoder().to(memory_format=torch.contiguous_format)
    tiles = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(tiles), encoder(tiles))
    settings = timm.data.resolve_model_data_config(loaded)
    assert tuple(settings["mean"]) == MEAN
    assert settings["crop_pct"] == 1.0
    assert tuple(settings["input_size"]) == (3, 64, 64)


def test_golden_features_come_back_from_the_golden_tiles(folder: Path) -> None:
    golden = load_file(folder / "check" / "golden.safetensors")
    tiles = golden["tiles"].permute(0, 3, 1, 2).contiguous().float() / 255  # the card says: in plain memory order
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        assert torch.equal(load_exported(folder)((tiles - mean) / std), golden["features"])


def test_no_pixel_of_the_tiles_that_were_compared_leaves_in_the_folder(folder: Path) -> None:
    row = some_tiles().tiles_KHW3[0, 0].tobytes()  # 64 pixels of noise do not occur by chance
    golden = load_file(folder / "check" / "golden.safetensors")["tiles"].numpy()
    assert golden[0, 0].tobytes() in (folder / "check" / "golden.safetensors").read_bytes(), (
        "the search finds what is there"
    )
    assert not any(row in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_the_sums_name_every_file_and_sha256sum_agrees(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files == {
        "README.md", "config.json", "model.safetensors", "check/golden.safetensors", "aggregator/config.json",
        "aggregator/aggregator.safetensors",
    }  # fmt: skip
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == value for name, value in sums.items())
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=folder, check=True)


def test_whoever_may_read_the_configuration_may_read_the_weights(folder: Path) -> None:
    modes = {file.stat().st_mode for file in folder.rglob("*") if file.is_file()}
    assert modes == {(folder / "config.json").stat().st_mode}


def test_the_configuration_has_no_head_and_no_class_count_in_the_arguments(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "model_args" not in config
    assert config["pathology"] == {
        "mpp": 0.5, "tile_size_px": 64, "stain": "H&E", "num_features": 96, "license": "cc-by-nc-4.0",
        "provenance": {"training": "ab"},
    }  # fmt: skip
    assert set(load_file(folder / "model.safetensors")) == set(
        timm.create_model("test_resnet", num_classes=0).state_dict()
    )


def test_the_outcome_says_what_was_compared_and_what_another_memory_order_costs(folder: Path, tmp_path: Path) -> None:
    exported = export(tmp_path / "encoder")
    assert "3 real tiles of 1 of the manifest's slides" in exported.parity.sentence
    assert 0 <= exported.parity.default_order_difference < 1e-4 * exported.parity.largest_feature
    assert exported.num_features == 96


def test_a_vit_that_was_told_its_tile_size_is_built_so_by_timm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vit = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    tiles = some_tiles()

    def prepare(tiles_K3HW: torch.Tensor, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return normalise(tiles_K3HW.float().div_(255), MEAN, STD)

    exported = export_encoder(
        vit, slide_parts(64), facts(architecture="test_vit", model_args={"img_size": 64}), tiles, prepare,
        lambda folder, exported: None, tmp_path / "vit",
    )  # fmt: skip
    with torch.inference_mode():
        pixels = torch.randn(2, 3, 64, 64)
        assert torch.equal(
            load_exported(exported.folder)(pixels), vit.to(memory_format=torch.contiguous_format)(pixels)
        )


class Doubled(nn.Module):
    """An encoder with a part that timm does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = trained_encoder()

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        doubled: torch.Tensor = 2 * self.inner(tiles)
        return doubled

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.inner.state_dict()


@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        (Doubled, {}),
        (trained_encoder, {"mean": (0.7, 0.5, 0.6999)}),
        (trained_encoder, {"std": (0.2, 0.25, 0.2001)}),
        (trained_encoder, {"tile_size_px": 56}),
    ],
    ids=["another network", "another mean", "another deviation", "another tile size"],
)
def test_what_timm_would_compute_otherwise_is_refused_and_leaves_nothing(
    tmp_path: Path, encoder: type[nn.Module], changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="features from plain timm differ"):
        export(tmp_path / "encoder", encoder(), **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_one_before(tmp_path: Path) -> None:
    export(tmp_path / "encoder")
    before = (tmp_path / "encoder" / "SHA256SUMS").read_bytes()
    with pytest.raises(InputError):
        export(tmp_path / "encoder", Doubled())
    assert (tmp_path / "encoder" / "SHA256SUMS").read_bytes() == before
    export(tmp_path / "encoder", card="# Another card\n")
    assert (tmp_path / "encoder" / "SHA256SUMS").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_licence_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--license is required"):
        export(tmp_path / "encoder", license=" ")


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("ten years")
    with pytest.raises(ConfigError, match="thesis is there and is no export"):
        export(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "ten years"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's exporter about itself
def test_the_torch_program_takes_any_number_of_uint8_tiles_and_normalises_them(tmp_path: Path) -> None:
    exported = export(tmp_path / "encoder", options=ExportOptions(torch_export=True))
    program = torch.export.load(exported.folder / "program" / "encoder.pt2").module()
    tiles = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        plain = load_exported(exported.folder)((tiles / 255 - mean) / std)
        assert torch.allclose(program(tiles), plain, rtol=0, atol=1e-5 * plain.abs().max().item())
    assert "program/encoder.pt2" in (exported.folder / "SHA256SUMS").read_text()
    assert exported.programs[0].difference < 1e-5
