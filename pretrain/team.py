"""Who does what: ranks, roles and groups, and the small messages between them.

The ranks are cut into `num_teams` teams of equal size; a team works on one slide at a time. Roles in a team, by layout:

    single     1 rank does everything; several teams of one rank train on several slides at once
    dedicated  the first rank aggregates, the others encode (Campanella et al. 2024)
    shared     every rank encodes, the first one aggregates as well

torch.distributed is the engine (gloo on CPU, NCCL on GPU) and torchrun the launcher. On GPUs small messages travel on
CPU through gloo, because only gloo can say which peer was silent.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ingest.errors import ConfigError, UserError
from pretrain.config import Layout


class TeamError(UserError):
    """Another rank ended or did not answer in time; the message names it."""

    exit_code = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The place of this rank. All ranks are global ranks.

    Attributes:
        aggregator_rank: the rank of this team that holds the features of the whole slide.
        encoder_ranks: the ranks of this team that encode, in the order of their shares.
        encoder_group: process group of the encoder ranks of all teams; None if this rank is alone in it or outside.
        aggregator_group: process group of the aggregator ranks of all teams; None as above.
        slide_group: process group of the encoder ranks of this team (synchronised BatchNorm); None as above.
        timeout_seconds: how long to wait for another rank.
    """

    layout: Layout
    rank: int
    world_size: int
    num_teams: int
    index: int
    aggregator_rank: int
    encoder_ranks: tuple[int, ...]
    encoder_group: dist.ProcessGroup | None
    aggregator_group: dist.ProcessGroup | None
    slide_group: dist.ProcessGroup | None
    device: torch.device
    timeout_seconds: float
    owns_process_group: bool = False

    @property
    def is_encoder(self) -> bool:
        return self.rank in self.encoder_ranks

    @property
    def is_aggregator(self) -> bool:
        return self.rank == self.aggregator_rank

    @property
    def num_encoders(self) -> int:
        return len(self.encoder_ranks)

    @property
    def share_index(self) -> int | None:
        """Position of this rank's share among the shares of the slide; None on a rank that only aggregates."""
        return self.encoder_ranks.index(self.rank) if self.is_encoder else None

    @property
    def encoder_owner(self) -> int:
        """The rank that writes the encoder to checkpoints, the first encoder of all: 1 in dedicated, else 0."""
        return 1 if self.layout == "dedicated" else 0

    @property
    def aggregator_owner(self) -> int:
        """The rank that writes the aggregator and the heads to checkpoints: always rank 0."""
        return 0

    def close(self) -> None:
        """Leave the process group if `make_team` opened it."""
        if self.owns_process_group and dist.is_initialized():
            dist.destroy_process_group()


def make_team(
    layout: Layout,
    num_teams: int = 1,
    backend: str | None = None,
    timeout_seconds: float = 1800.0,
    device: torch.device | str | None = None,
) -> Team:
    """The place of this rank; called once, by every rank, with the same values.

    Under torchrun (WORLD_SIZE is set) the process group is opened unless the caller has done so; without it there is
    one rank.

    Args:
        backend: of torch.distributed; None picks gloo for CPU, and gloo + NCCL for CUDA.
        device: None picks cuda:LOCAL_RANK where there is CUDA, else the CPU.
    Raises:
        ConfigError: the number of ranks does not fit the layout.
        TeamError: not all ranks came within `timeout_seconds`.
    """
    device = pick_device() if device is None else torch.device(device)
    opened_here = False
    num_ranks = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    roles = [team_roles(layout, num_ranks, num_teams, index) for index in range(num_teams)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if num_ranks > 1 and not dist.is_initialized():
        backend = backend or ("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        except (RuntimeError, ValueError) as error:
            raise TeamError(
                f"rank {os.environ.get('RANK', '?')}: not all {num_ranks} ranks met within {timeout_seconds:g} s "
                f"({_first_line(error)}); see which one did not start"
            ) from error
        opened_here = True
    rank = dist.get_rank() if dist.is_initialized() else 0
    index = rank // (num_ranks // num_teams)
    aggregator_rank, encoder_ranks = roles[index]
    all_encoders = tuple(sorted(encoder for _, encoders in roles for encoder in encoders))
    encoder_group = _group(all_encoders, rank, timeout_seconds)
    aggregator_group = _group([aggregator for aggregator, _ in roles], rank, timeout_seconds)
    slide_groups = (
        [encoder_group] if num_teams == 1 else [_group(encoders, rank, timeout_seconds) for _, encoders in roles]
    )
    team = Team(
        layout=layout, rank=rank, world_size=num_ranks, num_teams=num_teams, index=index,
        aggregator_rank=aggregator_rank, encoder_ranks=encoder_ranks,
        encoder_group=encoder_group, aggregator_group=aggregator_group, slide_group=slide_groups[index],
        device=device, timeout_seconds=timeout_seconds, owns_process_group=opened_here,
    )  # fmt: skip
    if device.type == "cuda" and num_ranks > 1:
        dist.all_reduce(
            torch.zeros(1, device=device)
        )  # NCCL wants all ranks in its first call; later steps may skip some
    return team


def team_roles(layout: Layout, num_ranks: int, num_teams: int, index: int) -> tuple[int, tuple[int, ...]]:
    """Aggregator rank and encoder ranks of team `index`.

    Raises:
        ConfigError: `num_ranks` cannot be divided so.
    """
    size, rest = divmod(num_ranks, num_teams)
    if rest or size == 0:
        raise ConfigError(
            f"step.num_teams = {num_teams}: {num_ranks} ranks do not divide into so many equal teams; change "
            "step.num_teams or the number of processes"
        )
    if layout == "single" and size != 1:
        raise ConfigError(
            f"step.layout = single: a team has 1 rank, here {size}; set step.layout = shared or "
            f"step.num_teams = {num_ranks}"
        )
    if layout == "dedicated" and size < 2:
        raise ConfigError(
            f"step.layout = dedicated: a team needs at least 2 ranks, here {size}; start more processes or set "
            "step.layout = shared"
        )
    ranks = tuple(range(index * size, (index + 1) * size))
    return ranks[0], ranks[1:] if layout == "dedicated" else ranks


def pick_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _group(ranks: Sequence[int], rank: int, timeout_seconds: float) -> dist.ProcessGroup | None:
    """A process group; every rank of the world must come here, members or not."""
    if len(ranks) < 2:
        return None
    group = dist.new_group(list(ranks), timeout=timedelta(seconds=timeout_seconds))
    return group if isinstance(group, dist.ProcessGroup) else None  # others get a placeholder


# Messages. Each has one sender and one receiver, so that a failure can name the peer.


def start_receive(tensor: Tensor, source: int, team: Team) -> dist.Work:
    """Begin to receive `tensor` (contiguous) from `source`; `finish` waits for it."""
    try:
        work = dist.irecv(tensor, source)
    except RuntimeError as error:
        raise _peer_error(source, team, "receive from", error) from error
    assert work is not None, "a rank does not receive from itself"
    return work


def start_send(tensor: Tensor, target: int, team: Team) -> dist.Work:
    """Begin to send `tensor` (contiguous, kept alive by the caller) to `target`."""
    try:
        work = dist.isend(tensor, target)
    except RuntimeError as error:
        raise _peer_error(target, team, "send to", error) from error
    assert work is not None, "a rank does not send to itself"
    return work


def finish(work: dist.Work, peer: int, team: Team, doing: str) -> None:
    """Wait for a message.

    Raises:
        TeamError: `peer` ended or was silent for `timeout_seconds`.
    """
    try:
        work.wait()
    except RuntimeError as error:
        raise _peer_error(peer, team, doing, error) from error


def receive(tensor: Tensor, source: int, team: Team, doing: str) -> Tensor:
    finish(start_receive(tensor, source, team), source, team, doing)
    return tensor


def send(tensor: Tensor, target: int, team: Team, doing: str) -> None:
    finish(start_send(tensor, target, team), target, team, doing)


def sum_over_ranks(values: Sequence[float], team: Team, doing: str) -> list[float]:
    """The sums of a few numbers over all ranks of all teams, the same bits on every rank.

    A star around rank 0 instead of an all-reduce: it costs two short messages and names the rank that is missing.
    """
    own = torch.tensor(values, dtype=torch.float64)
    if team.world_size == 1:
        return list(values)
    if team.rank != 0:
        send(own, 0, team, doing)
        return receive(own, 0, team, doing).tolist()
    others = range(1, team.world_size)
    parts = [torch.empty_like(own) for _ in others]
    works = [start_receive(part, source, team) for part, source in zip(parts, others, strict=True)]
    for work, source in zip(works, others, strict=True):
        finish(work, source, team, doing)
    total = torch.stack([own, *parts]).sum(0)
    for target in others:
        send(total, target, team, doing)
    return total.tolist()


def sum_tensor(tensor: Tensor, group: dist.ProcessGroup | None, team: Team, doing: str) -> None:
    """Sum a tensor over a group, in place; nothing to do for a group of one."""
    if group is None:
        return
    try:
        dist.all_reduce(tensor, group=group)
    except RuntimeError as error:
        raise TeamError(
            f"rank {team.rank}: one of the ranks {dist.get_process_group_ranks(group)} ended or was silent for "
            f"{team.timeout_seconds:g} s while {doing} ({_first_line(error)}); its own message says why"
        ) from error


def _peer_error(peer: int, team: Team, doing: str, error: RuntimeError) -> TeamError:
    return TeamError(
        f"rank {team.rank}: rank {peer} ended or was silent for {team.timeout_seconds:g} s while {doing} "
        f"({_first_line(error)}); its own message says why; raise step.timeout_seconds if it was only slow"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.rpartition("] ")[2] or text  # gloo puts its own source file and line in brackets before the message
