import pytest
import torch
from torch import nn

from pretrain.average import averaged, decay_at, move_average, start_average
from pretrain.config import TaskConfig
from pretrain.heads import Heads
from pretrain.step import Models
from pretrain.team import make_team


def models_of_one_weight(weight: float) -> Models:
    encoder = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    set_weight(encoder, weight)
    return Models(encoder=encoder, aggregator=nn.Linear(1, 1), heads=Heads(1, (TaskConfig(),)))


def set_weight(encoder: nn.Module, value: float) -> None:
    with torch.no_grad():
        next(encoder.parameters()).fill_(value)
        for name, buffer in encoder.named_buffers():
            buffer.fill_(value if "num" not in name else int(value))


def test_three_updates_give_the_average_that_a_hand_computes() -> None:
    team, models = make_team("single", device="cpu"), models_of_one_weight(0.0)
    average = start_average(models, team)
    assert models.encoder is not None
    found = []
    for step, weight in enumerate((10.0, 20.0, 30.0)):
        set_weight(models.encoder, weight)
        move_average(average, models, team, decay_at(step, 0.2))
        found.append(average["encoder"]["0.weight"].item())
    # Decays 1/10, 2/11, and 0.2 (3/12 is above it): 0.9 * 10; 9 * 2/11 + 20 * 9/11; 18 * 0.2 + 30 * 0.8.
    assert found == pytest.approx([9.0, 18.0, 27.6])
    assert average["encoder"]["1.running_mean"].item() == pytest.approx(27.6)  # as the weights they describe
    assert average["encoder"]["1.running_var"].item() == pytest.approx(27.6)
    assert average["encoder"]["1.num_batches_tracked"].item() == 30  # a counter is copied


def test_inside_the_block_the_models_are_the_average_and_after_it_what_they_were() -> None:
    team, models = make_team("single", device="cpu"), models_of_one_weight(1.0)
    average = start_average(models, team)
    assert models.encoder is not None
    set_weight(models.encoder, 0.1 + 0.2)
    before = {name: value.clone() for name, value in models.encoder.state_dict().items()}
    with averaged(models, average, team):
        assert next(models.encoder.parameters()).item() == 1.0
    assert all(torch.equal(value, before[name]) for name, value in models.encoder.state_dict().items())


def test_the_trained_weights_come_back_after_an_error_too() -> None:
    team, models = make_team("single", device="cpu"), models_of_one_weight(1.0)
    average = start_average(models, team)
    assert models.encoder is not None
    set_weight(models.encoder, 5.0)
    with pytest.raises(RuntimeError), averaged(models, average, team):
        raise RuntimeError
    assert next(models.encoder.parameters()).item() == 5.0
