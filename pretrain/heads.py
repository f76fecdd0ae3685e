"""Heads: one linear layer per target column, and the loss over the targets that are known."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ingest.errors import InputError
from pretrain.config import TaskConfig


class Heads(nn.Module):
    """One linear head per task on the slide vector, or on every tile, of which the best then speaks for the slide."""

    def __init__(self, num_features: int, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.layers = nn.ModuleDict({task.name: nn.Linear(num_features, num_outputs(task)) for task in tasks})
        for layer in self.layers.values():
            assert isinstance(layer, nn.Linear), "heads are linear"
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """Outputs per task: class logits [C], or one number [1].

        Args:
            pooled: [D] one vector of the slide, or [T, D] one per tile (max-pool MIL, Campanella et al. 2019): then the
                tile with the highest score of a task gives that task's output.
        """
        outputs = {task.name: self.layers[task.name](pooled) for task in self.tasks}
        return outputs if pooled.dim() == 1 else {name: _best_tile(output_TC) for name, output_TC in outputs.items()}


def num_outputs(task: TaskConfig) -> int:
    return task.num_classes if task.kind == "classes" else 1


def targets_of(row: Mapping[str, float | int | None], tasks: Sequence[TaskConfig]) -> Tensor:
    """[num_tasks] float64 targets from columns `y_<task>` of a manifest row; a null becomes NaN: not in the loss."""
    values = [row.get(f"y_{task.name}") for task in tasks]
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)


def slide_losses(outputs: Mapping[str, Tensor], targets: Tensor, tasks: Sequence[TaskConfig]) -> dict[str, Tensor]:
    """The loss of every task whose target is known, before task weights.

    Cross-entropy times the weight of the true class (not divided by it again, as `reduction="mean"` would for one
    slide), or the squared error.

    Args:
        targets: [num_tasks], NaN where the label is null.
    Raises:
        InputError: a class number outside 0 .. num_classes - 1.
    """
    losses = {}
    for task, target in zip(tasks, targets.tolist(), strict=True):
        if math.isnan(target):
            continue
        output = outputs[task.name]
        if task.kind == "number":
            losses[task.name] = (output[0] - target).square()
            continue
        if target not in range(task.num_classes):
            raise InputError(
                f"task {task.name}: label {target:g} is not a class number 0 to {task.num_classes - 1}; set num_classes of "
                "the task or correct the column"
            )
        weight = 1.0 if task.class_weights is None else task.class_weights[int(target)]
        losses[task.name] = weight * functional.cross_entropy(
            output[None], torch.tensor([int(target)], device=output.device)
        )
    return losses


def total_loss(losses: Mapping[str, Tensor], outputs: Mapping[str, Tensor], tasks: Sequence[TaskConfig]) -> Tensor:
    """Weighted mean over all tasks; a task without a label adds nothing, and a slide without any label gives 0."""
    weights = {task.name: task.weight for task in tasks}
    # Keeps the graph, so that gradients are zeros; and an infinite output makes the loss NaN even without a label.
    nothing = torch.stack([output.sum() for output in outputs.values()]).sum() * 0.0
    known = [weights[name] * loss for name, loss in losses.items()]
    return nothing + sum(known, torch.zeros_like(nothing)) / sum(weights.values())


def probabilities(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Class probabilities [C] per task; a number is passed on as it is."""
    return {name: output.softmax(-1) if output.shape[-1] > 1 else output for name, output in outputs.items()}


def _best_tile(output_TC: Tensor) -> Tensor:
    if output_TC.shape[1] == 1:
        return output_TC[output_TC[:, 0].argmax()]
    score_T = torch.logsumexp(output_TC[:, 1:], dim=1) - output_TC[:, 0]  # log-odds of "any class but 0"
    return output_TC[score_T.argmax()]
