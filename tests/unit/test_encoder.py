"""Encoders from random weights, checkpoints and folders; parameter groups; BatchNorm modes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ingest.errors import ConfigError
from pretrain.batchnorm import norm_layers, set_mode, statistics_held
from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder, nearest_models, num_features, parameter_groups, preprocessing
from pretrain.update import LossScale

RESNET = EncoderConfig(name="resnet18")


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(RESNET)


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048), ("vit_tiny_patch16_224", 192)])
def test_width_of_the_features_is_known_without_weights(name: str, width: int) -> None:
    assert num_features(EncoderConfig(name=name)) == width


def test_an_encoder_turns_tiles_into_features(encoder: nn.Module) -> None:
    assert encoder.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_a_vit_takes_the_size_of_tiles_that_it_is_told() -> None:
    vit = build_encoder(EncoderConfig(name="vit_tiny_patch16_224", image_size_px=64, drop_path_rate=0.1))
    assert vit(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    assert nearest_models("resnet_18")[0] == "resnet18"
    with pytest.raises(ConfigError, match=r"encoder.name resnt18: timm has no such model; did you mean resnet18"):
        build_encoder(EncoderConfig(name="resnt18"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "teacher"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_weights_of_usual_training_codes_are_found_and_their_classifier_is_left_out(
    tmp_path: Path, encoder: nn.Module, wrapper: str | None, prefix: str
) -> None:
    weights = {prefix + name: value for name, value in encoder.state_dict().items()} | {
        prefix + "fc.weight": torch.ones(2, 512)
    }
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "a.pth")
    torch.manual_seed(9)
    assert same(build_encoder(RESNET.model_copy(update={"weights": tmp_path / "a.pth"})), encoder)


def test_a_safetensors_file_and_a_timm_folder_give_the_same_encoder(tmp_path: Path, encoder: nn.Module) -> None:
    save_file(
        {name: value.contiguous() for name, value in encoder.state_dict().items()}, tmp_path / "model.safetensors"
    )
    from_file = build_encoder(EncoderConfig(name="resnet18", weights=tmp_path / "model.safetensors"))
    config = {
        "architecture": "resnet18",
        "num_classes": 0,
        "pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = EncoderConfig(name="resnet18", weights=tmp_path)
    assert same(from_file, encoder)
    assert same(build_encoder(folder), encoder)
    assert num_features(folder) == 512
    assert preprocessing(folder) == ((0.7, 0.6, 0.7), (0.2, 0.2, 0.2))
    assert preprocessing(RESNET)[0] == (0.485, 0.456, 0.406)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, encoder: nn.Module) -> None:
    some = dict(list(encoder.state_dict().items())[3:])
    torch.save(some, tmp_path / "some.pt")
    with pytest.raises(ConfigError, match=r"some.pt: 3 of 120 weights missing for resnet18 \(first: conv1.weight\)"):
        build_encoder(RESNET.model_copy(update={"weights": tmp_path / "some.pt"}))
    torch.save(encoder.state_dict() | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, tmp_path / "wide.pt")
    with pytest.raises(ConfigError, match=r"wide.pt: 1 of another shape"):
        build_encoder(RESNET.model_copy(update={"weights": tmp_path / "wide.pt"}))
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ConfigError, match=r"text.pt: not a readable checkpoint"):
        build_encoder(RESNET.model_copy(update={"weights": tmp_path / "text.pt"}))
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder"):
        build_encoder(RESNET.model_copy(update={"weights": tmp_path / "nowhere"}))


def test_a_frozen_encoder_has_nothing_to_train() -> None:
    frozen = build_encoder(EncoderConfig(name="resnet18", frozen=True))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert parameter_groups(frozen, 1.0, 0.01, 0.5) == []


def test_layers_near_the_input_learn_slower_and_vectors_do_not_decay(encoder: nn.Module) -> None:
    groups = parameter_groups(encoder, learning_rate=1.0, weight_decay=0.01, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(encoder.parameters()))
    first, last = encoder.get_parameter("conv1.weight"), encoder.get_parameter("layer4.1.conv2.weight")
    assert rate[id(first)] < rate[id(encoder.get_parameter("layer2.0.conv1.weight"))] < rate[id(last)] <= 1.0
    assert decay[id(first)] == 0.01
    assert decay[id(encoder.get_parameter("bn1.weight"))] == 0
    same_rate = parameter_groups(encoder, learning_rate=0.3, weight_decay=0.01, layer_decay=1.0)
    assert {group["lr"] for group in same_rate} == {0.3}


def test_frozen_batch_norm_neither_moves_nor_uses_the_batch(encoder: nn.Module) -> None:
    set_mode(encoder, "frozen", training=True)
    assert encoder.training
    assert not any(layer.training for layer in norm_layers(encoder))
    before = encoder.get_buffer("bn1.running_mean").clone()
    encoder(torch.randn(2, 3, 32, 32))
    assert torch.equal(encoder.get_buffer("bn1.running_mean"), before)


def test_held_statistics_do_not_move_but_the_batch_still_normalises(encoder: nn.Module) -> None:
    set_mode(encoder, "per_chunk", training=True)
    tiles = torch.randn(4, 3, 32, 32)
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with statistics_held(encoder):
        held = encoder(tiles)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert torch.equal(encoder(tiles), held)
    assert not torch.equal(encoder.get_buffer("bn1.running_mean"), before["bn1.running_mean"])


def test_loss_scale_halves_on_overflow_and_doubles_after_enough_good_steps() -> None:
    scale = LossScale(value=8.0, growth_interval=2)
    values = []
    for finite in (True, True, False, True, True):
        scale.update(finite)
        values.append(scale.value)
    assert values == [8.0, 16.0, 8.0, 8.0, 16.0]
