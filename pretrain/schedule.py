"""Optimisers and their learning rate: AdamW, linear warm-up, cosine (Campanella et al. 2024: AdamW, peak 5e-5)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain.config import EncoderConfig, OptimConfig
from pretrain.encoder import parameter_groups
from pretrain.step import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisers:
    """One for the encoder, one for aggregator and heads; None for what this rank does not hold or train.

    Two, not one, so that a run can be resumed in another layout.
    """

    encoder: torch.optim.AdamW | None
    aggregator: torch.optim.AdamW | None

    def all(self) -> Iterator[torch.optim.AdamW]:
        yield from (optimiser for optimiser in (self.encoder, self.aggregator) if optimiser is not None)


def build_optimisers(models: Models, encoder: EncoderConfig, config: OptimConfig) -> Optimisers:
    """AdamW over what this rank trains, without weight decay on norms and biases."""
    encoder_groups: list[dict[str, Any]] = []
    if models.encoder is not None and not encoder.frozen:
        encoder_groups = parameter_groups(
            models.encoder, config.learning_rate, config.weight_decay, encoder.layer_decay
        )
    rate = config.aggregator_learning_rate or config.learning_rate
    modules = [module for module in (models.aggregator, models.heads) if module is not None]
    aggregator_groups = [group for module in modules for group in _groups(module, rate, config.weight_decay)]
    return Optimisers(encoder=_adamw(encoder_groups), aggregator=_adamw(aggregator_groups))


def rate_factor(step: int, steps_per_epoch: int, num_epochs: int, config: OptimConfig) -> float:
    """Share of the peak learning rate for step 0, 1, ...: rises over the warm-up, then falls on a cosine."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    cosine_steps = max(1.0, num_epochs * steps_per_epoch - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / cosine_steps)
    low = config.final_learning_rate_share
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimisers: Optimisers, factor: float) -> None:
    for optimiser in optimisers.all():
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW | None:
    return torch.optim.AdamW([{**group, "peak_lr": group["lr"]} for group in groups]) if groups else None


def _groups(module: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": rate, "weight_decay": weight_decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
