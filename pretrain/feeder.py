"""The next slide is read while this one trains: one reader process per rank fills a ring of shared slots.

A process and not threads: beside a trainer that holds the interpreter lock a thread pool fell from 2,600 to 0-200
tiles/s, and torch's DataLoader spends as much on moving the tiles as on decoding them. Here the reader decodes straight
into memory that the trainer sees; only a small message crosses. The memory is an anonymous file (memfd): it needs no
room in /dev/shm, which containers limit to 64 MB, and the kernel frees it with the last process.
A reader that dies, or a slot that does not come in time, raises with the slide's key; nothing waits for ever.
"""

import mmap
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ingest.errors import SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import ReadReport
from ingest.slide import ReaderName, Slide, open_slide
from pretrain.cache import TileCache, cache_key
from pretrain.room import check_memory, ring_bytes

_ORPHAN_CHECK_SECONDS = 5.0  # how often an idle reader looks whether its trainer still lives
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Tiles of one slide: the whole share of a rank, or a part of it that fits into a slot.

    Attributes:
        slide_key: names the slide in errors.
        grid: as stored when the tiles were counted; its `slide_mpp` overrules the file.
        tile_indices: int64 [K], rising; a contiguous run decodes least.
        keep: the same tiles will be asked for again: worth a place in the cache, if there is one.
    """

    slide_key: str
    path: str
    grid: TileGrid
    tile_indices: NDArray[np.int64] = field(repr=False)
    reader: ReaderName = "auto"
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """The tiles of one request, until they are released.

    Attributes:
        tiles: uint8 [K, S, S, 3] in shared memory; overwritten by a later slide after `SlideFeeder.release`.
        error: why there are no tiles (K is 0 then); every rank must leave this slide out together.
        decode_seconds: wall time of opening and reading.
        number: which slot of the ring it is.
        from_cache: the tiles were not decoded but came from the cache.
    """

    request: ReadRequest
    tiles: NDArray[np.uint8]
    report: ReadReport
    error: SlideError | None
    decode_seconds: float
    number: int
    from_cache: bool


class SlideFeeder:
    """A reader process and its ring of slots; requests come back in the order in which they were submitted.

    One slot is in use, the others are filled ahead: `num_slots` = 3 prefetches two requests. Submit ahead, then
    `get`, train, `release`, for each.

    Attributes:
        memory: uint8, the whole ring; page-lock it (cudaHostRegister) for asynchronous copies to a device.
    """

    def __init__(
        self,
        *,
        tiles_per_slot: int,
        tile_size_px: int,
        num_slots: int = 3,
        num_threads: int = 1,
        timeout_seconds: float = 600.0,
        cache: tuple[Path, int] | None = None,
    ) -> None:
        """Start the reader and reserve the memory.

        Args:
            tiles_per_slot: the most tiles of one request; 4,096 tiles of 224 px are 617 MB.
            num_threads: decoding threads of the reader.
            timeout_seconds: the longest that `get` waits for one request.
            cache: folder and byte budget of a `TileCache`.
        Raises:
            ConfigError: the ring does not fit into the memory that is left.
        """
        self.tiles_per_slot, self.tile_size_px, self.num_slots = tiles_per_slot, tile_size_px, num_slots
        self._timeout_seconds = timeout_seconds
        num_bytes = ring_bytes(num_slots, tiles_per_slot, tile_size_px)
        check_memory(num_bytes, num_slots, tiles_per_slot)
        descriptor = os.memfd_create("slide_feeder", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
            self._ring = _Ring(descriptor, num_slots, tiles_per_slot, tile_size_px)
            context = get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_read_for_ever,
                args=(theirs, num_slots, tiles_per_slot, tile_size_px, num_threads, cache),
                name="slide reader",
                daemon=True,
            )
            self._process.start()
            theirs.close()
            assert self._process.pid is not None, "the process has been started"
            reduction.send_handle(self._connection, descriptor, self._process.pid)
        finally:
            os.close(descriptor)
        self.memory = self._ring.tiles.reshape(-1)
        self._waiting: deque[ReadRequest] = deque()  # submitted, no slot yet
        self._reading: deque[tuple[ReadRequest, int]] = deque()  # with the reader, in its order
        self._free = list(range(num_slots))
        self._in_use: dict[int, Slot] = {}
        self._failure: SlideError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_pending(self) -> int:
        """Requests that were submitted and not yet got."""
        return len(self._waiting) + len(self._reading)

    @property
    def reader_pid(self) -> int | None:
        return self._process.pid

    def submit(self, request: ReadRequest) -> None:
        """Ask for tiles; returns at once.

        Raises:
            ValueError: more tiles than a slot holds, or another tile size.
            SlideError: `reader_died` or `reader_timeout`, also of an earlier request.
        """
        if len(request.tile_indices) > self.tiles_per_slot:
            raise ValueError(
                f"slide {request.slide_key}: {len(request.tile_indices)} tiles asked for, a slot holds "
                f"{self.tiles_per_slot}; split the request or raise tiles_per_slot"
            )
        if request.grid.tile_size_px != self.tile_size_px:
            raise ValueError(
                f"slide {request.slide_key}: tiles of {request.grid.tile_size_px} px, slots of {self.tile_size_px} px"
            )
        self._waiting.append(request)
        self._send_waiting()

    def get(self) -> Slot:
        """The tiles of the oldest request; waits for them.

        Raises:
            SlideError: `reader_died` or `reader_timeout`; the feeder is of no use afterwards.
            RuntimeError: nothing was submitted, or every slot is in use.
        """
        self._send_waiting()
        if not self._reading:
            raise RuntimeError("no request to get" if not self._waiting else "every slot is in use; release one first")
        request, number = self._reading[0]
        wait([self._connection, self._process.sentinel], self._timeout_seconds)
        try:
            if not self._connection.poll():
                raise self._fail(self._why_no_slot(request))
            error, report, seconds, from_cache = self._connection.recv()
        except (EOFError, OSError):
            raise self._fail(self._why_no_slot(request)) from None
        self._reading.popleft()
        num_tiles = len(request.tile_indices) if error is None else 0
        slot = Slot(request, self._ring.tiles[number, :num_tiles], report, error, seconds, number, from_cache)
        self._in_use[number] = slot
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back; its tiles must not be used afterwards."""
        if self._in_use.get(slot.number) is not slot:
            raise RuntimeError(f"slide {slot.request.slide_key}: slot {slot.number} was released before")
        del self._in_use[slot.number]
        self._free.append(slot.number)
        self._send_waiting()

    def close(self) -> None:
        """End the reader, whatever it is doing."""
        self._connection.close()
        self._process.terminate()
        self._process.join(_CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send_waiting(self) -> None:
        if self._failure is not None:
            raise self._failure
        while self._waiting and self._free:
            request, number = self._waiting.popleft(), self._free.pop(0)
            self._reading.append((request, number))
            num_tiles = len(request.tile_indices)
            self._ring.indices[number, :num_tiles] = request.tile_indices
            try:
                self._connection.send(
                    (number, num_tiles, request.slide_key, request.path, request.grid, request.reader, request.keep)
                )
            except OSError:
                raise self._fail(self._why_no_slot(self._reading[0][0])) from None

    def _why_no_slot(self, request: ReadRequest) -> SlideError:
        self._process.join(0.5)  # a broken pipe is seen a moment before the exit code
        code = self._process.exitcode
        if code is None:
            return SlideError(
                "reader_timeout",
                f"slide {request.slide_key}: no tiles after {self._timeout_seconds:.0f} s; look at the slide storage, "
                "or exclude the slide",
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return SlideError(
            "reader_died",
            f"slide {request.slide_key}: the reader process ended with {how} (SIGKILL: out of memory, fewer "
            "slots; SIGSEGV: set reader = openslide, or exclude the slide)",
        )

    def _fail(self, error: SlideError) -> SlideError:
        self._failure = error
        return error


class _Ring:
    """The shared memory as arrays: tiles [slots, K, S, S, 3], and the indices asked for [slots, K]."""

    def __init__(self, descriptor: int, num_slots: int, tiles_per_slot: int, tile_size_px: int) -> None:
        memory = mmap.mmap(descriptor, 0)  # unmapped with the last array that looks into it
        num_tiles = num_slots * tiles_per_slot
        size = tile_size_px
        self.indices: NDArray[np.int64] = np.frombuffer(memory, np.int64, num_tiles).reshape(num_slots, tiles_per_slot)
        self.tiles: NDArray[np.uint8] = np.frombuffer(
            memory, np.uint8, num_tiles * 3 * size**2, offset=8 * num_tiles
        ).reshape(num_slots, tiles_per_slot, size, size, 3)


def _read_for_ever(
    connection: Connection, num_slots: int, tiles_per_slot: int, tile_size_px: int, num_threads: int,
    cache_place: tuple[Path, int] | None,
) -> None:  # fmt: skip
    """The reader process: a request comes in, the slot is filled, the report goes out."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the trainer, which closes its feeder
    cv2.setNumThreads(1)
    descriptor = reduction.recv_handle(connection)
    ring = _Ring(descriptor, num_slots, tiles_per_slot, tile_size_px)
    os.close(descriptor)
    last = _LastSlide()
    cache = TileCache(*cache_place) if cache_place is not None else None
    trainer = os.getppid()
    try:
        while True:
            while not connection.poll(_ORPHAN_CHECK_SECONDS):
                if os.getppid() != trainer:
                    return
            number, num_tiles, slide_key, path, grid, reader, keep = connection.recv()
            indices, tiles = ring.indices[number, :num_tiles], ring.tiles[number, :num_tiles]
            started_at = time.monotonic()
            error: SlideError | None = None
            report = ReadReport((), 0)
            key = cache_key(slide_key, Path(path), grid, indices, reader) if cache is not None and keep else None
            from_cache = cache is not None and key is not None and cache.fetch(key, tiles)
            if not from_cache:
                try:
                    report = last.open(slide_key, path, grid, reader).read_tiles(grid, indices, tiles, num_threads)
                except SlideError as caught:
                    error = type(caught)(caught.reason, f"slide {slide_key}: {caught}")
                if cache is not None and key is not None and error is None and not report.bad:
                    cache.store(key, tiles)
            connection.send((error, report, time.monotonic() - started_at, from_cache))
    except (EOFError, BrokenPipeError):
        return  # the trainer closed its end
    finally:
        last.close()


class _LastSlide:
    """Keeps one slide open, because a rank reads a large slide in several requests."""

    def __init__(self) -> None:
        self._key: tuple[str, str, float, ReaderName] | None = None
        self._slide: Slide | None = None

    def open(self, slide_key: str, path: str, grid: TileGrid, reader: ReaderName) -> Slide:
        key = (slide_key, path, grid.slide_mpp, reader)
        if self._slide is None or key != self._key:
            self.close()
            self._slide = open_slide(path, reader, grid.slide_mpp)
            self._key = key
        if (self._slide.width_px, self._slide.height_px) != (grid.width_px, grid.height_px):
            raise SlideError(
                "changed_file",
                f"{self._slide.width_px} x {self._slide.height_px} px, counted as {grid.width_px} x {grid.height_px}; "
                "the file was replaced: count its tiles again",
            )
        return self._slide

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
        self._slide = None
