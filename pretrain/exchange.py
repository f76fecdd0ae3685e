"""What goes over the wire in a step: features to the aggregator, the loss and the gradient of the features back.

Shape suffixes: T tiles of the slide, K tiles of a share, F feature width.
Each message has one sender and one receiver; shares may be ragged or empty, and nothing is padded.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.share import Share
from pretrain.team import Team, TeamError, finish, receive, send, start_receive, start_send

WIDE_DTYPES = (torch.float32, torch.float64)  # what features travel in; half-precision features are widened


def send_features(share: Share, team: Team, seed: int, slide: str) -> None:
    """Say what comes (seed, tiles, width, dtype, is there a gradient to send back?), then send it."""
    width, dtype = _form(share)
    header = torch.tensor([seed, share.num_tiles, width, dtype, int(share.wants_gradient)])
    send(header, team.aggregator_rank, team, f"offering features of slide {slide}")
    if share.features_KF is not None and share.num_tiles:
        _transfer(dist.isend, {team.aggregator_rank: share.features_KF}, team, f"sending features of slide {slide}")


def receive_gradient(share: Share, team: Team, slide: str) -> tuple[float, Tensor | None]:
    """The loss and the gradient of this share's features, which takes the place of the features in memory."""
    message = torch.empty(2, dtype=torch.float64)
    receive(message, team.aggregator_rank, team, f"waiting for the loss of slide {slide}")
    loss, gradient_follows = message.tolist()
    if not gradient_follows:
        return loss, None
    grad_KF, share.features_KF = share.features_KF, None
    if grad_KF is None:  # an empty share that was not even cut into chunks
        return loss, None
    if share.num_tiles:
        _transfer(dist.irecv, {team.aggregator_rank: grad_KF}, team, f"receiving gradients of slide {slide}")
    return loss, grad_KF


def gather_features(
    share: Share | None, counts: Sequence[int], team: Team, seed: int, slide: str
) -> tuple[Tensor, bool]:
    """[T, F] features of all shares in slide order, and whether any encoder wants their gradient.

    Raises:
        TeamError: an encoder ended, was silent, or works on something else.
    """
    others = [rank for rank in team.encoder_ranks if rank != team.rank]
    if share is not None and share.features_KF is not None and not others:
        return share.features_KF, share.wants_gradient
    headers = {rank: torch.empty(5, dtype=torch.int64) for rank in others}
    works = {rank: start_receive(header, rank, team) for rank, header in headers.items()}
    for rank, work in works.items():
        finish(work, rank, team, f"waiting for features of slide {slide}")
        if headers[rank][:2].tolist() != [seed, counts[team.encoder_ranks.index(rank)]]:
            raise TeamError(
                f"rank {team.rank}: rank {rank} sends another slide than {slide} or another share of it; give every "
                "rank of a team the same slides, counts and seeds in the same order"
            )
    forms = {(int(header[2]), int(header[3])) for header in headers.values() if header[1] > 0}
    wants_gradient = any(bool(header[4]) for header in headers.values())
    if share is not None:
        wants_gradient = wants_gradient or share.wants_gradient
        forms |= {_form(share)} if share.num_tiles else set()
    if len(forms) != 1:
        raise TeamError(f"rank {team.rank}: features come as {sorted(forms)} (width, dtype); give all one encoder")
    width, dtype = forms.pop()
    features_TF = torch.empty(sum(counts), width, dtype=WIDE_DTYPES[dtype], device=team.device)
    parts = _parts(features_TF, counts, team)
    if share is not None and share.features_KF is not None:
        parts[team.rank].copy_(share.features_KF)
        share.features_KF = None
    coming = {rank: parts[rank] for rank in others if len(parts[rank])}
    _transfer(dist.irecv, coming, team, f"receiving features of slide {slide}")
    return features_TF, wants_gradient


def scatter_gradient(
    grad_TF: Tensor | None, loss: float, counts: Sequence[int], team: Team, slide: str
) -> Tensor | None:
    """Send every encoder the loss and its part of the gradient, if there is one; returns the part of this rank."""
    others = [rank for rank in team.encoder_ranks if rank != team.rank]
    message = torch.tensor([loss, float(grad_TF is not None)], dtype=torch.float64)
    for rank in others:
        send(message, rank, team, f"sending the loss of slide {slide}")
    if grad_TF is None:
        return None
    parts = _parts(grad_TF, counts, team)
    leaving = {rank: parts[rank] for rank in others if len(parts[rank])}
    _transfer(dist.isend, leaving, team, f"sending gradients of slide {slide}")
    return parts.get(team.rank)


def _form(share: Share) -> tuple[int, int]:
    if share.features_KF is None:
        return 0, 0
    return share.features_KF.shape[1], WIDE_DTYPES.index(share.features_KF.dtype)


def _parts(array_TF: Tensor, counts: Sequence[int], team: Team) -> dict[int, Tensor]:
    return dict(zip(team.encoder_ranks, torch.split(array_TF, list(counts)), strict=True))


def _transfer(operation: Callable[..., dist.Work | None], parts: dict[int, Tensor], team: Team, doing: str) -> None:
    """Send to or receive from several peers at once."""
    if team.device.type == "cuda" and parts:
        operations = [dist.P2POp(operation, part, rank) for rank, part in parts.items()]
        for work in dist.batch_isend_irecv(operations):  # NCCL answers with one work for all peers
            finish(work, next(iter(parts)), team, doing)
        return
    start = start_receive if operation is dist.irecv else start_send
    started = [(rank, start(part, rank, team)) for rank, part in parts.items()]
    for rank, work in started:
        finish(work, rank, team, doing)
