"""Which tiles this rank needs, and getting them: plans are pure, reading is one process ahead of the training step."""

import errno
import math
import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.errors import ConfigError
from ingest.read_plan import MAX_DAMAGED
from pretrain.cohort import Cohort, CohortSlide
from pretrain.config import DataConfig, SampleConfig
from pretrain.feeder import ReadRequest, SlideFeeder, Slot
from pretrain.room import available_bytes, ring_bytes
from pretrain.sample import Positions, derive_seed, sample_tiles, share_counts, share_slice
from pretrain.team import Team, receive, send, sum_over_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePlan:
    """One slide in one step, as this rank sees it.

    Attributes:
        seed: of this slide in this epoch, the same on every rank.
        counts: tiles per encoder rank of the team.
        tile_indices: [K] grid indices of this rank's tiles, rising, repeating only in sample mode `paper`; empty on a rank
            that only aggregates.
        first: position of the first of them among the slide's sampled tiles.
    """

    slide: CohortSlide
    seed: int
    counts: tuple[int, ...]
    tile_indices: NDArray[np.int64]
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTiles:
    """A plan with its pixels, which are valid until the next one is asked for.

    Attributes:
        tiles_K3HW: uint8, a view of shared memory; None on a rank that only aggregates.
        problem: why the slide cannot be used now, on this rank or another one of the team; empty if it can.
        num_damaged: tiles of this rank with damaged parts, which are white.
        wait_seconds, decode_seconds: how long the step waited for the tiles; how long the reader worked on them.
        from_cache: the reader found them in the cache.
    """

    plan: SharePlan
    tiles_K3HW: Tensor | None
    problem: str = ""
    num_damaged: int = 0
    wait_seconds: float = 0.0
    decode_seconds: float = 0.0
    from_cache: bool = False


class TileFeed:
    """The reader process of an encoder rank, kept busy; a rank that only aggregates has none and reads nothing."""

    def __init__(self, config: DataConfig, cohort: Cohort, team: Team, timeout_seconds: float) -> None:
        self._config, self._team = config, team
        self._feeder: SlideFeeder | None = None
        tiles_per_slot = math.ceil(max(slide.num_tiles for slide in cohort.slides) / team.num_encoders)
        require_room(config, tiles_per_slot, cohort.tile_size_px, team)
        if team.is_encoder:
            self._feeder = SlideFeeder(
                tiles_per_slot=tiles_per_slot, tile_size_px=cohort.tile_size_px, num_slots=config.slides_ahead + 1,
                num_threads=config.reader_threads, timeout_seconds=timeout_seconds, cache=_cache_place(config),
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._feeder is not None:
            self._feeder.close()

    def read(self, plans: Iterable[SharePlan]) -> Generator[SlideTiles, None, None]:
        """The plans in order with their pixels; the ranks of a team agree on what cannot be read.

        Close it (`contextlib.closing`) where it may be left before its end: what was read ahead is then given back.

        Raises:
            SlideError: the reader process died or did not answer in time.
        """
        iterator = iter(plans)
        if self._feeder is None:
            for plan in iterator:
                yield SlideTiles(plan=plan, tiles_K3HW=None, problem=_problem_in_team("", self._team))
            return
        ahead: deque[SharePlan] = deque()
        for plan in islice(iterator, self._config.slides_ahead):
            self._submit(plan)
            ahead.append(plan)
        try:
            while ahead:
                started_at = time.perf_counter()
                plan = ahead.popleft()
                slot = self._feeder.get() if len(plan.tile_indices) else None
                wait_seconds = time.perf_counter() - started_at
                for following in islice(iterator, 1):
                    self._submit(following)
                    ahead.append(following)
                problem = _problem_in_team(_problem(slot), self._team)
                try:
                    yield SlideTiles(
                        plan=plan, tiles_K3HW=_pixels(plan, slot, self._feeder.tile_size_px), problem=problem,
                        num_damaged=len(slot.report.bad) if slot else 0, wait_seconds=wait_seconds,
                        decode_seconds=slot.decode_seconds if slot else 0.0,
                        from_cache=slot.from_cache if slot else False,
                    )  # fmt: skip
                finally:
                    if slot is not None:
                        self._feeder.release(slot)
        finally:
            for plan in ahead:
                if len(plan.tile_indices):
                    self._feeder.release(self._feeder.get())

    def _submit(self, plan: SharePlan) -> None:
        if len(plan.tile_indices) == 0:
            return  # a small slide may have no tile for this rank
        assert self._feeder is not None, "only a rank with a reader submits"
        self._feeder.submit(ReadRequest(slide_key=plan.slide.slide_key, path=str(plan.slide.path), grid=plan.slide.grid,
                                        tile_indices=np.unique(plan.tile_indices), reader=self._config.reader,
                                        keep=sum(plan.counts) == plan.slide.num_tiles))  # fmt: skip


def require_room(config: DataConfig, tiles_per_slot: int, tile_size_px: int, team: Team) -> None:
    """All ranks of a machine must fit what they read ahead into its memory; they agree before any of them takes some.

    Raises:
        ConfigError: they do not fit, on every rank.
    """
    num_slots = config.slides_ahead + 1
    needed = ring_bytes(num_slots, tiles_per_slot, tile_size_px) if team.is_encoder else 0
    limit, source = math.inf, ""
    free = available_bytes()
    if free is not None:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        limit, source = free / ranks_here, f"{free / 2**30:.2f} GiB are free here for {ranks_here} ranks"
    if config.ahead_gib is not None and config.ahead_gib * 2**30 < limit:
        limit, source = config.ahead_gib * 2**30, f"data.ahead_gib = {config.ahead_gib:g}"
    (num_lacking,) = sum_over_ranks([float(needed > limit)], team, "agreeing on memory for slides read ahead")
    if not num_lacking:
        return
    if needed <= limit:
        raise ConfigError(
            "slides read ahead do not fit into the memory of another rank's machine; its message says more"
        )
    fitting = int(limit // ring_bytes(1, tiles_per_slot, tile_size_px)) - 1
    advice = f"set data.slides_ahead = {fitting}" if fitting >= 1 else "start more encoder ranks"
    raise ConfigError(
        f"data.slides_ahead = {config.slides_ahead}: {num_slots} slots of {tiles_per_slot:,} tiles of {tile_size_px} px (this "
        f"rank's share of the largest slide) need {needed / 2**30:.2f} GiB per rank, but {source}; {advice}"
    )


def plan_share(slide: CohortSlide, team: Team, config: SampleConfig, run_seed: int, epoch: int) -> SharePlan:
    """The part of a slide that this rank reads in a training step; the same cut on every rank without a word between them."""
    seed = derive_seed(run_seed, epoch, slide.slide_key)
    tissue = slide.tile_indices()
    clusters_T = np.frombuffer(slide.clusters, dtype=np.uint8) if slide.clusters else None
    positions = sample_tiles(tissue, config, derive_seed(seed, "sample"), slide.grid.num_columns, clusters_T)
    return _cut(slide, tissue, positions, team, seed)


def plan_all_tiles(slide: CohortSlide, team: Team) -> SharePlan:
    """The part of a slide that this rank reads in validation and prediction: every tissue tile takes part."""
    tissue = slide.tile_indices()
    return _cut(slide, tissue, np.arange(len(tissue)), team, derive_seed(0, slide.slide_key))


def _cache_place(config: DataConfig) -> tuple[Path, int] | None:
    if config.cache is None:
        return None
    try:
        config.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(config.cache, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"data.cache {config.cache}: not a folder to write to ({error.strerror}); name one on a local disk"
        ) from None
    return config.cache, int(config.cache_gib * 2**30)


def _cut(slide: CohortSlide, tissue: Positions, positions: Positions, team: Team, seed: int) -> SharePlan:
    counts = share_counts(len(positions), team.num_encoders)
    run = share_slice(counts, team.share_index) if team.share_index is not None else slice(0, 0)
    return SharePlan(slide=slide, seed=seed, counts=counts, tile_indices=tissue[positions[run]], first=run.start)


def _pixels(plan: SharePlan, slot: Slot | None, size_px: int) -> Tensor:
    if slot is None or slot.error is not None:
        return torch.empty(0, 3, size_px, size_px, dtype=torch.uint8)
    tiles_KHW3 = torch.from_numpy(slot.tiles)
    if len(slot.tiles) != len(plan.tile_indices):  # sample mode `paper` repeats tiles; they were read once
        positions = np.searchsorted(slot.request.tile_indices, plan.tile_indices)
        tiles_KHW3 = tiles_KHW3[torch.from_numpy(positions)]
    return tiles_KHW3.permute(0, 3, 1, 2)


def _problem(slot: Slot | None) -> str:
    if slot is None:
        return ""
    if slot.error is not None:
        return slot.error.reason
    num_damaged = len(slot.report.bad)
    return "damaged_tiles" if num_damaged > max(1, MAX_DAMAGED * len(slot.tiles)) else ""


def _problem_in_team(problem: str, team: Team) -> str:
    """Whether any encoder rank of the team has a problem with the slide; all must leave it out together."""
    if team.encoder_ranks == (team.aggregator_rank,):
        return problem
    own = torch.tensor([float(bool(problem))])
    doing = "agreeing on readable slides"
    if not team.is_aggregator:
        send(own, team.aggregator_rank, team, doing)
        return "unreadable" if receive(own, team.aggregator_rank, team, doing).item() else ""
    others = [rank for rank in team.encoder_ranks if rank != team.rank]
    answers = [receive(torch.empty(1), rank, team, doing) for rank in others]
    verdict = own + sum(answers)
    for rank in others:
        send(verdict, rank, team, doing)
    return problem or ("unreadable" if verdict.item() else "")
