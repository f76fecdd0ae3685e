"""After one or several slides: the gradients of all ranks become one update of the weights."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ingest.errors import UserError
from pretrain.batchnorm import running_statistics
from pretrain.config import StepConfig
from pretrain.step import Models, StepResult
from pretrain.team import Team, sum_over_ranks, sum_tensor

BUCKET_ELEMENTS = 2**25  # gradients travel in flat pieces of 128 MB in float32


class StepError(UserError):
    """The step must not be followed by an update of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The state of the gradients after `reduce_gradients`, the same on every rank.

    Attributes:
        finite: False: leave the optimiser out. With a loss scale, lower it; or no slide could be read (`num_slides` is 0).
        loss: mean over the slides of all teams.
        encoder_norm, aggregator_norm: L2 norms of the gradients of the encoder and of aggregator + heads.
    """

    finite: bool
    loss: float
    num_slides: int
    encoder_norm: float
    aggregator_norm: float

    @property
    def norm(self) -> float:
        return math.hypot(self.encoder_norm, self.aggregator_norm)


@dataclass(slots=True)
class LossScale:
    """The loss scale of float16, the same on every rank; halves on overflow, doubles after `growth_interval` steps.

    torch's GradScaler looks at the gradients of its own rank only; here aggregator and encoder ranks must agree.
    """

    value: float = 65536.0
    growth_interval: int = 2000
    good_steps: int = 0

    def update(self, finite: bool) -> None:
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0


def reduce_gradients(
    models: Models, team: Team, config: StepConfig, results: Sequence[StepResult], step: int, loss_scale: float = 1.0
) -> Update:
    """Turn `.grad` into the mean over the slides of all teams, the same on every rank that holds a model.

    Encoder gradients are summed over the encoder ranks (each holds the part of its tiles), then both are divided by the
    number of slides and by the loss scale. Running statistics of BatchNorm become the mean over ranks, weighted by
    their tiles. Every rank of every team calls it, also one whose team had no slide left (`results` empty).

    Args:
        results: of the slides since the last update on this rank.
        step: number of the update, for messages.
    Raises:
        StepError: a loss is not finite (or a gradient, without a loss scale); on every rank, naming slide and step.
        TeamError: another rank ended or was silent.
    """
    doing = f"adding up step {step}"
    bad = [result for result in results if not math.isfinite(result.loss)]
    own = [float(len(results)), float(len(bad)), math.fsum(result.loss for result in results) if not bad else 0.0]
    num_slides, num_bad, loss_sum = sum_over_ranks(own if team.is_aggregator else [0.0] * 3, team, doing)
    if num_bad:
        raise StepError(_loss_message(bad, team, step))
    if num_slides == 0:  # none could be read: the step passes without an update, on every rank
        return Update(finite=False, loss=0.0, num_slides=0, encoder_norm=0.0, aggregator_norm=0.0)
    encoder = list(trained_parameters([models.encoder]))
    aggregator = list(trained_parameters([models.aggregator, models.heads]))
    for parameters, group in ((encoder, team.encoder_group), (aggregator, team.aggregator_group)):
        _fill_missing(parameters)
        sum_gradients(parameters, group, team, doing)
        for parameter in parameters:
            assert parameter.grad is not None, "filled above"
            parameter.grad.div_(num_slides * loss_scale)
    if models.encoder is not None and encoder and _statistics_differ(team, config):
        mean_statistics(models.encoder, sum(result.num_own_tiles for result in results), team, doing)
    encoder_square = _square_sum(encoder) if team.rank == team.encoder_owner else 0.0
    aggregator_square = _square_sum(aggregator) if team.rank == team.aggregator_owner else 0.0
    encoder_square, aggregator_square = sum_over_ranks([encoder_square, aggregator_square], team, doing)
    finite = math.isfinite(encoder_square) and math.isfinite(aggregator_square)
    if not finite and config.precision != "float16":
        names = ", ".join(result.slide for result in results)
        raise StepError(
            f"step {step}: gradients are not finite (slides of this team: {names}); the weights were not changed; lower "
            "the learning rate or clip gradients"
        )
    return Update(
        finite=finite, loss=loss_sum / num_slides, num_slides=int(num_slides),
        encoder_norm=math.sqrt(encoder_square), aggregator_norm=math.sqrt(aggregator_square),
    )  # fmt: skip


def clip_gradients(models: Models, update: Update, max_norm: float) -> None:
    """Scale all gradients so that their common norm over encoder, aggregator and heads is at most `max_norm`."""
    factor = max_norm / (update.norm + 1e-6)
    if factor < 1:
        for parameter in trained_parameters([models.encoder, models.aggregator, models.heads]):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def trained_parameters(modules: Iterable[nn.Module | None]) -> Iterator[nn.Parameter]:
    for module in modules:
        if module is not None:
            yield from (parameter for parameter in module.parameters() if parameter.requires_grad)


def sum_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None, team: Team, doing: str) -> None:
    """Sum `.grad` over a group in flat pieces: a few large messages instead of one per parameter."""
    if group is None:
        return
    for bucket in _buckets(parameters):
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        sum_tensor(flat, group, team, doing)
        for gradient, part in zip(
            gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view(gradient.shape))


def mean_statistics(encoder: nn.Module, num_tiles: int, team: Team, doing: str) -> None:
    """Running statistics become the mean over all encoder ranks, weighted by the tiles each has just seen."""
    tensors = running_statistics(encoder)
    if not tensors:
        return
    flat = torch.cat([*(tensor.reshape(-1) * num_tiles for tensor in tensors), tensors[0].new_tensor([num_tiles])])
    sum_tensor(flat, team.encoder_group, team, doing)
    flat = flat[:-1] / flat[-1]
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_((part if tensor.is_floating_point() else part.round()).view(tensor.shape))


def _statistics_differ(team: Team, config: StepConfig) -> bool:
    if team.encoder_group is None or config.batch_norm == "frozen":
        return False
    return config.batch_norm == "per_chunk" or team.num_teams > 1


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > BUCKET_ELEMENTS or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def _fill_missing(parameters: Sequence[nn.Parameter]) -> None:
    """A rank without tiles has no gradient yet; its part of the sum is zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _square_sum(parameters: Sequence[nn.Parameter]) -> float:
    if not parameters:
        return 0.0
    norms = torch.stack([parameter.grad.norm() for parameter in parameters if parameter.grad is not None])
    return float(norms.double().square().sum())


def _loss_message(bad: Sequence[StepResult], team: Team, step: int) -> str:
    names: list[str] = [result.slide for result in bad]
    if team.world_size > 1:  # all ranks know that one failed and all come here
        everyone: list[list[str]] = [[] for _ in range(team.world_size)]
        dist.all_gather_object(everyone, names)
        names = sorted({name for part in everyone for name in part})
    return (
        f"step {step}: the loss of slide {', '.join(names)} is not finite; the weights were not changed; lower the "
        "learning rate, clip gradients, or look at that slide"
    )
