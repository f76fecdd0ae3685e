"""An exponential moving average of the weights (`optim.ema_decay`): what is validated, selected and exported when it is on.

The ranks that own the models keep it: the first encoder rank that of the encoder, rank 0 that of aggregator and heads. The
training weights stay what they are; checkpoints hold both. Running statistics of BatchNorm are averaged like the weights,
since they describe them; counters are copied.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain.step import Models, copy_from_first
from pretrain.team import Team

Average = dict[str, dict[str, Tensor]]  # "encoder", "aggregator", "heads" as far as this rank owns them -> state


def owned_modules(models: Models, team: Team) -> dict[str, nn.Module]:
    """The models that this rank writes to checkpoints."""
    modules: dict[str, nn.Module | None] = {}
    if team.rank == team.encoder_owner:
        modules["encoder"] = models.encoder
    if team.rank == team.aggregator_owner:
        modules |= {"aggregator": models.aggregator, "heads": models.heads}
    return {name: module for name, module in modules.items() if module is not None}


def start_average(models: Models, team: Team) -> Average:
    """The average before the first update: the weights themselves."""
    return {name: _copy(module) for name, module in owned_modules(models, team).items()}


def decay_at(step: int, decay: float) -> float:
    """The decay of update 0, 1, ...: low at first, so that the average forgets the random weights it began with."""
    return min(decay, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, ..., 0.9 after 80 updates; TensorFlow's ramp


@torch.no_grad()
def move_average(average: Average, models: Models, team: Team, decay: float) -> None:
    """average = decay * average + (1 - decay) * weights, after an update."""
    for name, module in owned_modules(models, team).items():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                average[name][key].lerp_(value, 1 - decay)
            else:
                average[name][key].copy_(value)


@contextmanager
def averaged(models: Models, average: Average | None, team: Team) -> Iterator[None]:
    """Inside the block every rank holds the averaged weights; after it the trained ones are back, bit for bit."""
    if average is None:
        yield
        return
    held = [module for module in (models.encoder, models.aggregator, models.heads) if module is not None]
    trained = [_copy(module) for module in held]
    for name, module in owned_modules(models, team).items():
        module.load_state_dict(average[name])
    for module in held:
        copy_from_first(module, team.encoder_group if module is models.encoder else team.aggregator_group)
    try:
        yield
    finally:
        for module, state in zip(held, trained, strict=True):
            module.load_state_dict(state)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
