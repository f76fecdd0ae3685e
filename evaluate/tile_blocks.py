"""The tissue tiles of many slides in blocks of bounded size, read ahead by a process of their own.

A bad slide gives blocks with its reason and no tiles, and the next slide follows. A reader process that dies or hangs on
a slide is replaced; only that slide is lost.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ManifestError, SlideError
from ingest.geometry import TileGrid, unpack_mask
from ingest.manifest import read_footer, read_table
from ingest.slide import ReaderName
from pretrain.feeder import ReadRequest, SlideFeeder, Slot

NUM_SLOTS = 3  # one block in use, two read ahead
MAX_DEAD_READERS = 3  # in a row; then it is the storage or the memory, not a slide


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One scan of a manifest with its place on disk and its tissue tiles, whatever its label and split."""

    slide_key: str
    patient_key: str
    path: Path
    grid: TileGrid
    mask: bytes = field(repr=False)
    num_tiles: int

    def tile_indices(self) -> NDArray[np.int64]:
        """[T] indices of the tissue tiles in the grid, rising."""
        mask = unpack_mask(self.mask, self.grid.num_rows, self.grid.num_columns)
        return np.flatnonzero(mask.ravel()).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some tiles of one slide. Asked for without tiles, given back with them.

    Attributes:
        first: position of the first of them among the tiles asked for of this slide.
        tile_indices: int64 [K], rising.
        tiles_KHW3: uint8, valid until the next block is asked for; None if the slide has a `problem`.
        problem: why the slide cannot be used, a reason code.
        num_damaged: tiles of this block with damaged parts, which are white.
    """

    scan: Scan
    first: int
    tile_indices: NDArray[np.int64] = field(repr=False)
    tiles_KHW3: NDArray[np.uint8] | None = field(default=None, repr=False)
    problem: str = ""
    num_damaged: int = 0


def read_scans(manifest: Path, vault: Path) -> list[Scan]:
    """Every slide of a manifest that has tissue tiles, sorted by key.

    Raises:
        ManifestError: no slide has tiles, one has no place in the vault, the tiles are of several sizes, or manifest and
            vault were made with different keys.
    """
    if read_footer(manifest, "slides")["key_fingerprint"] != read_footer(vault, "locations")["key_fingerprint"]:
        raise ManifestError(
            f"manifest {manifest.name} and vault {vault.name} were made with different keys; "
            "use the vault that was written together with this manifest"
        )
    patient_of = {
        row["slide_key"]: row["patient_key"]
        for row in read_table(manifest, "slides", ["slide_key", "patient_key"]).to_pylist()
    }
    path_of = {row["slide_key"]: row["path"] for row in read_table(vault, "locations").to_pylist()}
    rows = [
        row for row in read_table(manifest, "tiles").to_pylist() if row["num_tiles"] and row["slide_key"] in patient_of
    ]
    if homeless := [row["slide_key"] for row in rows if row["slide_key"] not in path_of]:
        raise ManifestError(
            f"slide {homeless[0]}: no location in the vault {vault.name}; "
            "use the vault that was written together with this manifest"
        )
    if len({(row["tile_size_px"], row["tile_mpp"]) for row in rows}) != 1:
        what = "tiles of several sizes" if rows else "no slide has tiles"
        raise ManifestError(f"manifest {manifest.name}: {what}; count all slides again with one setting")
    names = ("width_px", "height_px", "slide_mpp", "tile_size_px", "tile_mpp")
    scans = [
        Scan(slide_key=row["slide_key"], patient_key=patient_of[row["slide_key"]], path=Path(path_of[row["slide_key"]]),
             grid=TileGrid(**{name: row[name] for name in names}), mask=row["mask"], num_tiles=row["num_tiles"])
        for row in rows
    ]  # fmt: skip
    return sorted(scans, key=lambda scan: scan.slide_key)


def plan_blocks(scans: Sequence[Scan], block_tiles: int) -> Iterator[Block]:
    """All tissue tiles of the slides, `block_tiles` at a time."""
    for scan in scans:
        indices = scan.tile_indices()
        for first in range(0, len(indices), block_tiles):
            yield Block(scan=scan, first=first, tile_indices=indices[first : first + block_tiles])


def num_blocks(scans: Sequence[Scan], block_tiles: int) -> int:
    return sum(-(-scan.num_tiles // block_tiles) for scan in scans)


def read_blocks(
    blocks: Iterator[Block], *, block_tiles: int, tile_size_px: int, reader: ReaderName = "auto", num_threads: int = 1,
    timeout_seconds: float = 600.0,
) -> Iterator[Block]:  # fmt: skip
    """Each of `blocks` once, in order, with its tiles or with the problem of its slide.

    Args:
        block_tiles: the most tiles of a block; three blocks are held in memory.
    Raises:
        SlideError: the reader process died or hung on `MAX_DEAD_READERS` slides in a row.
    """

    def start() -> SlideFeeder:
        return SlideFeeder(tiles_per_slot=block_tiles, tile_size_px=tile_size_px, num_slots=NUM_SLOTS,
                           num_threads=num_threads, timeout_seconds=timeout_seconds)  # fmt: skip

    ahead: deque[_Asked] = deque()
    problems: dict[str, str] = {}
    num_dead = 0
    with ExitStack() as stack:
        feeder = stack.enter_context(start())
        while True:
            ahead.extend(_Asked(block) for _, block in zip(range(NUM_SLOTS - len(ahead)), blocks, strict=False))
            if not ahead:
                return
            try:
                for asked in ahead:
                    if not asked.is_sent and asked.slide_key not in problems:
                        feeder.submit(_request(asked.block, reader))
                        asked.is_sent = True
                slot = feeder.get() if ahead[0].is_sent else None
            except SlideError as error:  # the reader is gone, and what it was asked for with it
                num_dead += 1
                if num_dead == MAX_DEAD_READERS:
                    raise
                stack.close()
                feeder = stack.enter_context(start())
                blamed = next((asked for asked in ahead if asked.is_sent), ahead[0])
                problems[blamed.slide_key] = error.reason
                for asked in ahead:
                    asked.is_sent = False
                continue
            block = ahead.popleft().block
            if slot is None:
                yield _answer(block, problems[block.scan.slide_key])
                continue
            num_dead = 0
            if slot.error is not None:
                problems.setdefault(block.scan.slide_key, slot.error.reason)
            try:
                yield _answer(block, problems.get(block.scan.slide_key, ""), slot)
            finally:
                feeder.release(slot)


@dataclass(slots=True)
class _Asked:
    block: Block
    is_sent: bool = False

    @property
    def slide_key(self) -> str:
        return self.block.scan.slide_key


def _request(block: Block, reader: ReaderName) -> ReadRequest:
    return ReadRequest(slide_key=block.scan.slide_key, path=str(block.scan.path), grid=block.scan.grid,
                       tile_indices=block.tile_indices, reader=reader)  # fmt: skip


def _answer(block: Block, problem: str, slot: Slot | None = None) -> Block:
    if problem or slot is None:
        return Block(scan=block.scan, first=block.first, tile_indices=block.tile_indices, problem=problem)
    return Block(scan=block.scan, first=block.first, tile_indices=block.tile_indices, tiles_KHW3=slot.tiles,
                 num_damaged=len(slot.report.bad))  # fmt: skip
