"""One optimisation step on one slide: encode on N ranks, aggregate on one, send the gradients back.

Shape suffixes: T tiles of the slide, K tiles on this rank, F feature width.
Cutting the graph at the features and resuming it with their gradient is the pseudo-loss of
Campanella et al. 2024 (Method): d/dw sum(f * g) is exactly what features.backward(g) computes.
Where the paper scales it by N against the mean that DistributedDataParallel takes over N ranks,
`reduce_gradients` takes the sum. A sum is right for ragged and for empty shares too.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ingest.errors import ConfigError, InputError
from pretrain.batchnorm import set_mode, synchronise
from pretrain.config import StepConfig
from pretrain.exchange import gather_features, receive_gradient, scatter_gradient, send_features
from pretrain.heads import Heads, slide_losses, total_loss
from pretrain.sample import derive_seed
from pretrain.share import Prepare, Share, backward_share, cut_share, encode_share, is_trained, seeded
from pretrain.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What a rank holds: the encoder on encoder ranks, aggregator and heads on aggregator ranks, None elsewhere."""

    encoder: nn.Module | None
    aggregator: nn.Module | None
    heads: Heads | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """What a rank knows after a slide.

    Attributes:
        loss: of the slide, on every rank of its team; not finite if it overflowed (`reduce_gradients` will refuse).
        losses: per task with a known label; only on the aggregator.
        logits: per task, [C] or [1]; only on the aggregator.
        attention_T: weights of the tiles in slide order, sum 1; only on the aggregator, if it has any.
        seconds: encode, exchange (waiting included), aggregate, backward.
        num_tiles: of the slide on all ranks.
        num_own_tiles: of the slide on this rank.
    """

    slide: str
    loss: float
    losses: dict[str, float]
    logits: dict[str, Tensor] | None
    attention_T: Tensor | None
    seconds: dict[str, float]
    num_tiles: int
    num_own_tiles: int


def ready_models(models: Models, team: Team, config: StepConfig) -> Models:
    """The models on the device of this rank, with the weights of the owning ranks, ready for steps and an optimiser.

    Raises:
        ConfigError: a model is missing on a rank whose role needs it, or given where it does not.
    """
    if (models.encoder is None) == team.is_encoder or (models.aggregator is None) == team.is_aggregator:
        raise ConfigError(
            f"rank {team.rank}: encoder given: {models.encoder is not None}, needed: {team.is_encoder}; aggregator "
            f"given: {models.aggregator is not None}, needed: {team.is_aggregator}; build only what the role needs"
        )
    encoder = models.encoder
    if encoder is not None:
        encoder = encoder.to(team.device)
        if config.channels_last:
            encoder = encoder.to(memory_format=torch.channels_last)
        copy_from_first(encoder, team.encoder_group)
        if config.batch_norm == "synchronised":
            encoder = synchronise(encoder, team.slide_group)
        if config.compile:
            # Chunk sizes vary; dropout must be torch's own, or a recomputed chunk could draw other masks.
            encoder.compile(dynamic=True, options={"fallback_random": True})
    for module in (models.aggregator, models.heads):
        if module is not None:
            copy_from_first(module.to(team.device), team.aggregator_group)
    return Models(encoder=encoder, aggregator=models.aggregator, heads=models.heads)


def slide_step(
    models: Models,
    tiles_K3HW: Tensor | None,
    counts: Sequence[int],
    targets: Tensor | None,
    team: Team,
    config: StepConfig,
    seed: int,
    *,
    slide: str,
    prepare: Prepare | None = None,
    tile_ids: Tensor | None = None,
    loss_scale: float = 1.0,
) -> StepResult:
    """Forward and backward over one slide; every rank of the team calls it. Gradients are added to `.grad`.

    After one or several slides `reduce_gradients` makes them ready for the optimiser.

    Args:
        tiles_K3HW: this rank's share (uint8 or float, any device, K may be 0); None on a rank that only aggregates.
        counts: tiles per encoder rank of the team, in the order of `team.encoder_ranks`; the same on every rank.
        targets: [num_tasks] float, NaN where unknown; needed on the aggregator.
        seed: of this slide in this step, the same on every rank (`derive_seed(run_seed, step, slide)`); it decides the
            order of tiles in chunks, dropout and augmentation.
        slide: pseudonymous key, for messages.
        prepare: normalisation and augmentation on the device; None is `share.normalise`.
        tile_ids: int64 [K], handed on to `prepare`; None counts the tiles of the slide from 0.
        loss_scale: `LossScale.value` with float16.
    Raises:
        InputError: the slide has no tile, or the share does not match `counts`.
        ConfigError: synchronised BatchNorm with tiles that would be recomputed.
        TeamError: another rank ended or was silent.
    """
    _check_shares(tiles_K3HW, counts, team, slide)
    _check_synchronised(counts, team, config, slide)
    clock = _Clock(team.device)
    share = None
    if models.encoder is not None and tiles_K3HW is not None:
        set_mode(models.encoder, config.batch_norm, training=is_trained(models.encoder))
        share = cut_share(models.encoder, tiles_K3HW, counts, team, config, seed, prepare, tile_ids)
        encode_share(share)
        clock.stop("encode")
    if team.is_aggregator:
        answer = aggregator_step(models, share, counts, targets, team, seed, loss_scale, slide, clock)
    else:
        answer = encoder_step(share, team, seed, slide, clock)
    if share is not None and answer.grad_KF is not None:
        backward_share(share, answer.grad_KF)
    clock.stop("backward")
    return _result(slide, answer, share, counts, clock)


def slide_forward(
    models: Models,
    tiles_K3HW: Tensor | None,
    counts: Sequence[int],
    team: Team,
    config: StepConfig,
    *,
    slide: str,
    targets: Tensor | None = None,
    prepare: Prepare | None = None,
    tile_ids: Tensor | None = None,
    seed: int = 0,
) -> StepResult:
    """Prediction for one slide: evaluation mode, no graph, tiles in slide order. Arguments and errors: `slide_step`.

    The loss is NaN if no target is given or known.
    """
    _check_shares(tiles_K3HW, counts, team, slide)
    clock = _Clock(team.device)
    share = None
    with torch.no_grad():
        if models.encoder is not None and tiles_K3HW is not None:
            models.encoder.eval()
            share = cut_share(models.encoder, tiles_K3HW, counts, team, config, seed, prepare, tile_ids, training=False)
            encode_share(share)
            clock.stop("encode")
        if team.is_aggregator:
            answer = aggregator_forward(models, share, counts, targets, team, seed, slide, clock)
        else:
            answer = encoder_step(share, team, seed, slide, clock)
    return _result(slide, answer, share, counts, clock)


# The two roles, side by side: what the encoder sends the aggregator receives, and back.


@dataclass(slots=True, kw_only=True)
class Answer:
    """What comes back to a rank's share: the loss, and the gradient of its features (None: nothing to resume)."""

    loss: float
    grad_KF: Tensor | None = None
    losses: dict[str, float] = field(default_factory=dict)
    logits: dict[str, Tensor] | None = None
    attention_T: Tensor | None = None


def encoder_step(share: Share | None, team: Team, seed: int, slide: str, clock: "_Clock") -> Answer:
    assert share is not None, "a rank that does not aggregate encodes"
    send_features(share, team, seed, slide)
    loss, grad_KF = receive_gradient(share, team, slide)
    clock.stop("exchange")
    return Answer(loss=loss, grad_KF=grad_KF)


def aggregator_step(
    models: Models, share: Share | None, counts: Sequence[int], targets: Tensor | None, team: Team, seed: int,
    loss_scale: float, slide: str, clock: "_Clock",
) -> Answer:  # fmt: skip
    if targets is None:
        raise InputError(f"slide {slide}: the aggregator was given no targets; pass NaN for those that are unknown")
    aggregator, heads = _aggregator_of(models)
    features_TF, wants_gradient = gather_features(share, counts, team, seed, slide)
    features_TF.requires_grad_(wants_gradient)
    clock.stop("exchange")
    aggregator.train()
    heads.train()
    with seeded(derive_seed(seed, "aggregator"), team.device):
        pooled, attention_T = aggregator(features_TF)
    logits = heads(pooled)
    losses = slide_losses(logits, targets, heads.tasks)
    loss = total_loss(losses, logits, heads.tasks)
    answer = _answer(float(loss.detach()), losses, logits, attention_T)
    grad_TF = None
    if math.isfinite(answer.loss):
        (loss * loss_scale).backward()  # type: ignore[no-untyped-call]
        grad_TF = features_TF.grad
    del loss, losses, logits, pooled, attention_T, features_TF  # T x F arrays must not live on while chunks are rerun
    clock.stop("aggregate")
    answer.grad_KF = scatter_gradient(grad_TF, answer.loss, counts, team, slide)
    clock.stop("exchange")
    return answer


def aggregator_forward(
    models: Models, share: Share | None, counts: Sequence[int], targets: Tensor | None, team: Team, seed: int,
    slide: str, clock: "_Clock",
) -> Answer:  # fmt: skip
    aggregator, heads = _aggregator_of(models)
    features_TF, _ = gather_features(share, counts, team, seed, slide)
    clock.stop("exchange")
    aggregator.eval()
    heads.eval()
    pooled, attention_T = aggregator(features_TF)
    logits = heads(pooled)
    losses = {} if targets is None else slide_losses(logits, targets, heads.tasks)
    loss = float(total_loss(losses, logits, heads.tasks)) if losses else math.nan
    clock.stop("aggregate")
    scatter_gradient(None, loss, counts, team, slide)
    return _answer(loss, losses, logits, attention_T)


def _aggregator_of(models: Models) -> tuple[nn.Module, Heads]:
    assert models.aggregator is not None, "checked by ready_models"
    assert models.heads is not None, "the aggregator comes with its heads"
    return models.aggregator, models.heads


def _answer(loss: float, losses: dict[str, Tensor], logits: dict[str, Tensor], attention_T: Tensor | None) -> Answer:
    return Answer(
        loss=loss,
        losses={name: float(value.detach()) for name, value in losses.items()},
        logits={name: output.detach() for name, output in logits.items()},
        attention_T=None if attention_T is None else attention_T.detach(),
    )


def _result(slide: str, answer: Answer, share: Share | None, counts: Sequence[int], clock: "_Clock") -> StepResult:
    return StepResult(
        slide=slide, loss=answer.loss, losses=answer.losses, logits=answer.logits, attention_T=answer.attention_T,
        seconds=clock.seconds, num_tiles=sum(counts), num_own_tiles=0 if share is None else share.num_tiles,
    )  # fmt: skip


def _check_shares(tiles_K3HW: Tensor | None, counts: Sequence[int], team: Team, slide: str) -> None:
    if len(counts) != team.num_encoders:
        raise InputError(f"slide {slide}: {len(counts)} shares for {team.num_encoders} encoder ranks; give one each")
    if sum(counts) == 0:
        raise InputError(f"slide {slide}: 0 tiles; leave it out of training")
    if team.share_index is not None:
        given, wanted = -1 if tiles_K3HW is None else len(tiles_K3HW), counts[team.share_index]
        if given != wanted:
            raise InputError(f"slide {slide}: rank {team.rank} was given {max(given, 0)} tiles, its share is {wanted}")


def _check_synchronised(counts: Sequence[int], team: Team, config: StepConfig, slide: str) -> None:
    if config.batch_norm == "synchronised" and team.num_encoders > 1 and max(counts) > config.resident_tiles:
        raise ConfigError(
            f"slide {slide}: step.batch_norm = synchronised with a share of {max(counts)} tiles and "
            f"step.resident_tiles = {config.resident_tiles}: a recomputed chunk would wait for the other ranks a second "
            "time; raise step.resident_tiles or set step.batch_norm = per_chunk or frozen"
        )


def copy_from_first(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Weights and buffers of the first rank of the group, on every rank of it."""
    if group is None:
        return
    first = dist.get_process_group_ranks(group)[0]
    for tensor in (*module.parameters(), *module.buffers()):
        contiguous = tensor.detach().contiguous()
        dist.broadcast(contiguous, first, group=group)
        tensor.detach().copy_(contiguous)


class _Clock:
    """Seconds by phase; waits for the device at the end of each, which costs little a few times a slide."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {"encode": 0.0, "exchange": 0.0, "aggregate": 0.0, "backward": 0.0}
        self.started_at = time.perf_counter()

    def stop(self, phase: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[phase] += now - self.started_at
        self.started_at = now
