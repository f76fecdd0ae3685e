"""What the distributed tests share: a small network, one rank's work on it, and the plain torch truth."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain import share, update
from pretrain.aggregator import GatedAttention
from pretrain.config import BatchNormPolicy, Layout, Precision, StepConfig, TaskConfig
from pretrain.heads import Heads, slide_losses, total_loss
from pretrain.ranks import Outcome, RankError, rank_outcomes, run_ranks
from pretrain.share import normalise
from pretrain.step import Models, ready_models, slide_step
from pretrain.team import Team, make_team
from pretrain.update import reduce_gradients

__all__ = ["Outcome", "RankError", "Work", "plain_gradients", "rank_outcomes", "run_ranks", "work"]

TASKS = (TaskConfig(name="cancer"), TaskConfig(name="grade", num_classes=3, class_weights=(1.0, 2.0, 0.5), weight=0.5))
TARGETS = ((1.0, 2.0), (0.0, float("nan")), (1.0, 0.0))  # of slides 0, 1, 2; the grade of slide 1 is not known


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all ranks do together.

    Attributes:
        counts: per slide, the tiles per encoder rank of a team.
        slides_of_team: which slides each team takes, one after the other, before one reduction.
        broken: undo one thing that makes the step right, to see that the test would notice.
    """

    layout: Layout
    counts: tuple[tuple[int, ...], ...]
    slides_of_team: tuple[tuple[int, ...], ...] = ((0,),)
    resident_tiles: int = 1000
    chunk_tiles: int = 5
    batch_norm: BatchNormPolicy = "frozen"
    precision: Precision = "float32"
    loss_scale: float = 1.0
    dropout: float = 0.0
    double: bool = True
    frozen: bool = False
    augmented: bool = False
    compile: bool = False
    broken: Literal["mean", "generator", "statistics"] | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    losses: list[float]
    encoder: dict[str, Tensor] | None
    aggregator: dict[str, Tensor] | None
    statistics: dict[str, Tensor] | None
    finite: bool
    norm: float
    attention_T: Tensor | None


def work(task: Work) -> Found:
    """The work of one rank."""
    _break(task.broken)
    torch.set_default_dtype(torch.float64 if task.double else torch.float32)
    team = make_team(task.layout, len(task.slides_of_team), timeout_seconds=60, device="cpu")
    config = StepConfig(
        layout=task.layout, num_teams=len(task.slides_of_team), resident_tiles=task.resident_tiles,
        chunk_tiles=task.chunk_tiles, batch_norm=task.batch_norm, precision=task.precision,
        compile=task.compile,
    )  # fmt: skip
    encoder, aggregator, heads = networks(task.dropout)
    encoder.requires_grad_(not task.frozen)
    models = of_rank(encoder, aggregator, heads, team, config)
    results = []
    for number in task.slides_of_team[team.index]:
        tiles, targets = slide(number, sum(task.counts[number]))
        parts = torch.split(tiles, list(task.counts[number]))
        own = None if team.share_index is None else parts[team.share_index]
        results.append(
            slide_step(
                models, own, task.counts[number], targets if team.is_aggregator else None, team, config, seed=11 + number,
                slide=f"S-{number}", loss_scale=task.loss_scale, prepare=jitter if task.augmented else normalise,
            )
        )  # fmt: skip
    made = reduce_gradients(models, team, config, results, step=1, loss_scale=task.loss_scale)
    return Found(
        losses=[result.loss for result in results],
        encoder=None if models.encoder is None else gradients(models.encoder),
        aggregator=None if models.aggregator is None else gradients(aggregator) | gradients(heads),
        statistics=None if models.encoder is None else dict(models.encoder.named_buffers()),
        finite=made.finite,
        norm=made.norm,
        attention_T=results[0].attention_T if results else None,
    )


def of_rank(encoder: nn.Module, aggregator: nn.Module, heads: Heads, team: Team, config: StepConfig) -> Models:
    given = Models(
        encoder=encoder if team.is_encoder else None,
        aggregator=aggregator if team.is_aggregator else None,
        heads=heads if team.is_aggregator else None,
    )
    return ready_models(given, team, config)


def networks(dropout: float = 0.0) -> tuple[nn.Module, nn.Module, Heads]:
    torch.manual_seed(1)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6),
    )  # fmt: skip
    aggregator = GatedAttention(6, hidden_size=8, gate_size=4, dropout=dropout, block_tiles=7)
    return encoder, aggregator, Heads(8, TASKS)


def slide(number: int, num_tiles: int) -> tuple[Tensor, Tensor]:
    tiles = torch.randn(num_tiles, 3, 8, 8, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return tiles.to(torch.get_default_dtype()), torch.tensor(TARGETS[number])


def jitter(tiles: Tensor, tile_ids: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation with the generator it is given, and one with torch's own."""
    noise = torch.randn(tiles.shape, generator=generator, dtype=tiles.dtype)
    return tiles + 0.3 * noise + 0.3 * torch.randn_like(tiles)


def plain_gradients(
    num_tiles: tuple[int, ...], policy: BatchNormPolicy = "frozen", double: bool = True
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, mean encoder and aggregator gradients over the slides, and buffers, from torch alone, one slide = one batch."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        encoder, aggregator, heads = networks()
        encoder.train(policy != "frozen")
        losses = []
        for number, count in enumerate(num_tiles):
            tiles, targets = slide(number, count)
            logits = heads(aggregator(encoder(tiles))[0])
            loss = total_loss(slide_losses(logits, targets, TASKS), logits, TASKS)
            (loss / len(num_tiles)).backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
    finally:
        torch.set_default_dtype(before)
    return losses, gradients(encoder), gradients(aggregator) | gradients(heads), dict(encoder.named_buffers())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of any tensor, |a - b| / |b| in the L2 norm; a bias before BatchNorm (gradient 0) by size."""
    assert found.keys() == expected.keys()
    scale = max(float(value.double().norm()) for value in expected.values())
    return max(
        float((found[name].double() - value.double()).norm() / max(float(value.double().norm()), 1e-3 * scale))
        for name, value in expected.items()
    )


def _break(what: str | None) -> None:
    def nothing(*_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def mean(parameters: Any, group: Any, team: Team, doing: str) -> None:
        summed(parameters, group, team, doing)
        for parameter in parameters if group is not None else ():
            parameter.grad.div_(team.num_encoders)

    summed: Callable[..., None] = update.sum_gradients
    if what == "mean":  # the paper's pseudo-loss without its factor N
        update.sum_gradients = mean
    if what == "generator":
        share.seeded = nothing  # type: ignore[assignment]
    if what == "statistics":
        share.statistics_held = nothing  # type: ignore[attr-defined, assignment]
