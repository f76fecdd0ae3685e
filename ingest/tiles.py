"""Count the tissue tiles of a whole cohort: one row per slide, in parallel, resumable, never stopped by one slide.

Each slide ends as a row, `counted`, `excluded` (the file is sound, but not of use: blank, too coarse) or `failed` (it
cannot be read), with its reason. Finished rows go at once to a journal, keyed by the file's fingerprint and the whole
configuration: the same command run again only opens files that are new or changed.
A reader that crashes or hangs takes only its own worker process along: the slides that were in flight are tried again
one by one, and the culprit becomes a row with reason `reader_crashed`.
"""

import base64
import faulthandler
import hashlib
import json
import os
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ingest.config import Section, config_digest
from ingest.errors import ConfigError, SlideError
from ingest.geometry import pack_mask
from ingest.progress import track

NUM_PROBES = 16  # tissue tiles read at full scale, spread over the slide: finds files whose level 0 is damaged
_EXCLUDED = frozenset({"blank", "too_small", "coarse_scan", "not_brightfield", "no_mpp"})
_HASH_BYTES = 64 << 10


class TilesConfig(Section):
    """How the tiles of a slide are laid and which of them are tissue."""

    size_px: int = Field(224, ge=16, le=4096)  # side of a tile in pixels; Campanella et al. 2024
    mpp: float = Field(0.5, gt=0, le=32)  # micrometres per pixel of a tile; 0.5 is 20x
    min_tissue: float = Field(0.10, gt=0, le=1)  # share of a tile; 0.05 to 0.5 move the count by 7 %
    thumbnail_mpp: float = Field(8.0, gt=0, le=64)  # micrometres per pixel of the tissue mask
    reader: Literal["auto", "tiff", "openslide", "cucim"] = "auto"
    max_damaged: float = Field(0.01, ge=0, le=1)  # share of damaged tiles above which a slide is left out
    timeout_seconds: float = Field(600.0, gt=0)  # a slide that takes longer has failed (local workers only)


@dataclass(frozen=True, slots=True)
class SlideFile:
    """A slide to count. `path` never leaves this module for a row, a journal or a message."""

    slide_key: str
    path: str
    mpp_override: float | None = None


@dataclass(frozen=True, slots=True)
class TileCount:
    """A row of tiles.parquet, and what slides.parquet wants to know about the file.

    Attributes:
        mask: `pack_mask` of the tissue tiles; None unless counted.
        status, reason: counted, excluded or failed; the reason code, empty when counted.
        content_hash: SHA-256 of size, first and last 64 kB, and so equal for copies of one scan.
        message: the whole sentence for people; names no path.
    """

    slide_key: str
    width_px: int | None = None
    height_px: int | None = None
    slide_mpp: float | None = None
    tile_size_px: int | None = None
    tile_mpp: float | None = None
    num_columns: int | None = None
    num_rows: int | None = None
    mask: bytes | None = field(default=None, repr=False)
    num_tiles: int | None = None
    tissue_mm2: float | None = None
    reader: str = ""
    status: Literal["counted", "excluded", "failed"] = "failed"
    reason: str = ""
    scanner: str = ""
    content_hash: str = ""
    message: str = ""


def count_tiles(
    slides: Sequence[SlideFile],
    config: TilesConfig,
    journal: Path | None = None,
    executor: str = "",
    num_processes: int = 0,
) -> list[TileCount]:
    """Count every slide; rows come back sorted by slide key, the same for any number of workers.

    Args:
        journal: file of finished rows, read first and appended to; None counts everything anew.
        executor: empty for processes of this machine, or `tcp://host:port` of a Dask scheduler whose workers see the
            same paths.
        num_processes: local processes; 0 is one per core.
    Raises:
        ConfigError: the Dask cluster cannot be reached, or a slide key comes twice.
    """
    keys = [slide.slide_key for slide in slides]
    if len(set(keys)) != len(keys):
        raise ConfigError(f"tile counting: {len(keys) - len(set(keys))} slide keys come twice; a key names one file")
    digest = config_digest(config.model_copy(update={"timeout_seconds": 600.0}))
    done = _read_journal(journal, digest) if journal is not None else {}
    rows: dict[str, TileCount] = {}
    todo: list[tuple[SlideFile, str]] = []
    for slide in slides:
        mark = _fingerprint(slide)
        known = done.get((slide.slide_key, mark))
        if known is not None:
            rows[slide.slide_key] = known
        else:
            todo.append((slide, mark))
    marks = {slide.slide_key: mark for slide, mark in todo}
    results = _run_all([slide for slide, _ in todo], config, executor, num_processes)
    for row in track(results, total=len(todo), title="counting tiles"):
        rows[row.slide_key] = row
        if journal is not None:
            _append_to_journal(journal, row, marks[row.slide_key], digest)
    return [rows[key] for key in sorted(rows)]


def count_slide(slide: SlideFile, config: TilesConfig) -> TileCount:
    """Count one slide; a fault of the slide becomes the row's reason, never an exception."""
    from ingest.slide import open_slide

    content_hash = ""
    try:
        content_hash = _content_hash(Path(slide.path))
        with open_slide(slide.path, config.reader, slide.mpp_override) as opened:
            return _count_open(slide.slide_key, opened, config, content_hash)
    except SlideError as error:
        reason, message = error.reason, str(error)
    except OSError as error:
        reason, message = "cannot_open", f"the file system failed: {error.strerror}; mount the slide storage"
    status: Literal["excluded", "failed"] = "excluded" if reason in _EXCLUDED else "failed"
    return TileCount(slide.slide_key, status=status, reason=reason, content_hash=content_hash, message=message)


def summarise(rows: Iterable[TileCount]) -> list[tuple[str, str, int]]:
    """(status, reason, number of slides), the largest number first, for a table."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.status, row.reason] = counts.get((row.status, row.reason), 0) + 1
    return sorted(
        ((status, reason, num) for (status, reason), num in counts.items()), key=lambda item: (-item[2], item)
    )


def _count_open(slide_key: str, slide: Any, config: TilesConfig, content_hash: str) -> TileCount:
    from ingest.read_plan import check_damage
    from ingest.tissue import check_brightfield, mask_mpp, tissue_mask, tissue_mm2, tissue_tiles

    grid = slide.grid(config.size_px, config.mpp)
    thumbnail_mpp = mask_mpp(grid, config.thumbnail_mpp)
    thumbnail = slide.thumbnail(thumbnail_mpp, max_damaged=config.max_damaged)
    if grid.num_cells == 0:
        raise SlideError(
            "too_small",
            f"{slide.width_px} x {slide.height_px} px at {slide.mpp:.4g} mpp is smaller than one tile of "
            f"{config.size_px} px at {config.mpp:.4g} mpp; exclude the slide",
        )
    check_brightfield(thumbnail)
    mask = tissue_mask(thumbnail, thumbnail_mpp)
    tiles = tissue_tiles(mask, grid, config.min_tissue)
    indices = np.flatnonzero(tiles.ravel())
    if len(indices) == 0:
        raise SlideError("blank", f"no tile is at least {config.min_tissue:.0%} tissue; exclude or look at the slide")
    probes = np.unique(indices[np.linspace(0, len(indices) - 1, NUM_PROBES).astype(np.int64)])
    out = np.empty((len(probes), config.size_px, config.size_px, 3), np.uint8)
    check_damage(len(slide.read_tiles(grid, probes, out).bad), len(probes), config.max_damaged)
    return TileCount(
        slide_key=slide_key,
        width_px=slide.width_px,
        height_px=slide.height_px,
        slide_mpp=slide.mpp,
        tile_size_px=config.size_px,
        tile_mpp=config.mpp,
        num_columns=grid.num_columns,
        num_rows=grid.num_rows,
        mask=pack_mask(tiles),
        num_tiles=len(indices),
        tissue_mm2=tissue_mm2(mask, grid),
        reader=slide.reader,
        status="counted",
        scanner=slide.scanner,
        content_hash=content_hash,
    )


# Running: local processes, each slide alone after a crash, or a Dask cluster.


def _run_all(
    slides: Sequence[SlideFile], config: TilesConfig, executor: str, num_processes: int
) -> Iterator[TileCount]:
    if not slides:
        return
    if executor:
        yield from _run_on_dask(slides, config, executor)
        return
    num_processes = min(num_processes or os.cpu_count() or 1, len(slides))
    waiting = list(reversed(slides))
    while waiting:
        with _local_pool(num_processes) as pool:
            suspects = yield from _run_until_crash(pool, _count_with_watchdog, waiting, config, 2 * num_processes)
        for slide in suspects:
            with _local_pool(1) as pool:
                if (yield from _run_until_crash(pool, _count_with_watchdog, [slide], config, 1)):
                    yield _crashed(slide, config)


def _run_on_dask(slides: Sequence[SlideFile], config: TilesConfig, address: str) -> Iterator[TileCount]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--executor: Dask is not installed; pip install 'fullslide[dask]'") from error
    try:
        client = Client(address, timeout=30, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--executor {address}: no Dask scheduler answers there; start one or leave it out"
        ) from error
    with client, client.get_executor(pure=False) as pool:
        num_threads = max(1, sum(client.nthreads().values()))
        suspects = yield from _run_until_crash(pool, count_slide, list(reversed(slides)), config, 4 * num_threads)
        for slide in suspects:  # Dask has tried each on several workers
            yield _crashed(slide, config)


def _run_until_crash(
    pool: Executor,
    count: Callable[[SlideFile, TilesConfig], TileCount],
    waiting: list[SlideFile],
    config: TilesConfig,
    num_in_flight: int,
) -> Generator[TileCount, None, list[SlideFile]]:
    """Rows of slides popped off `waiting`, until it is empty or the pool breaks; returns the slides that it lost."""
    in_flight: dict[Future[TileCount], SlideFile] = {}
    lost: list[SlideFile] = []
    is_broken = False
    while in_flight or (waiting and not is_broken):
        while waiting and not is_broken and len(in_flight) < num_in_flight:
            try:
                in_flight[pool.submit(count, waiting[-1], config)] = waiting[-1]
                waiting.pop()
            except BrokenProcessPool:
                is_broken = True
        finished, _ = wait(in_flight, return_when=FIRST_COMPLETED)
        for future in finished:
            slide = in_flight.pop(future)
            if future.cancelled():
                raise ConfigError("the Dask cluster went away; start it and run the same command again to go on")
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, BrokenProcessPool):
                is_broken = True
                lost.append(slide)
            elif type(error).__name__ == "KilledWorker":  # Dask's own; the cluster lives on
                lost.append(slide)
            else:  # a fault of ours: it is told, and the other slides go on
                yield _unexpected(slide, error)
    return lost


def _count_with_watchdog(slide: SlideFile, config: TilesConfig) -> TileCount:
    # A reader that hangs in C cannot be interrupted from Python; this thread of faulthandler ends the process.
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(config.timeout_seconds, exit=True, file=nowhere)
        try:
            return count_slide(slide, config)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _crashed(slide: SlideFile, config: TilesConfig) -> TileCount:
    message = f"the reader crashed, or took more than {config.timeout_seconds:.0f} s; try tiles.reader = openslide"
    return TileCount(slide.slide_key, status="failed", reason="reader_crashed", message=message)


def _unexpected(slide: SlideFile, error: BaseException) -> TileCount:
    # The text of an error that we did not foresee may hold a path; its type and place cannot.
    trace = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(trace[-1].filename).name}:{trace[-1].lineno}" if trace else ""
    message = f"unexpected {type(error).__name__}{place}; please report it"
    return TileCount(slide.slide_key, status="failed", reason="reader_error", message=message)


def _local_pool(num_processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_one_thread_each)


def _one_thread_each() -> None:
    import cv2

    cv2.setNumThreads(1)


# The journal: one JSON object a line, so that a kill costs at most the last line.


def _fingerprint(slide: SlideFile) -> str:
    try:
        stat = os.stat(slide.path)
    except OSError:
        return "missing"
    return f"{stat.st_size}:{stat.st_mtime_ns}:{slide.mpp_override}"


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        first = file.read(_HASH_BYTES)
        file.seek(max(0, size - _HASH_BYTES))
        last = file.read(_HASH_BYTES)
    return hashlib.sha256(size.to_bytes(8, "little") + first + last).hexdigest()


def _append_to_journal(journal: Path, row: TileCount, mark: str, digest: str) -> None:
    values = asdict(row)
    values["mask"] = base64.b64encode(row.mask).decode() if row.mask is not None else None
    line = json.dumps({"config": digest, "mark": mark, "row": values})
    # The newline comes first: what a kill left of the line before then spoils only itself.
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n" + line)


def _read_journal(journal: Path, digest: str) -> dict[tuple[str, str], TileCount]:
    """Rows by (slide key, fingerprint); failed slides are left out, so that they are tried again."""
    done: dict[tuple[str, str], TileCount] = {}
    if not journal.exists():
        return done
    with journal.open(encoding="utf-8", errors="surrogateescape") as file:  # a kill may cut a letter in two
        for line in file:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # an empty or half-written line; its slide is counted again
            if entry["config"] == digest and entry["row"]["status"] != "failed":
                values = entry["row"]
                values["mask"] = base64.b64decode(values["mask"]) if values["mask"] is not None else None
                done[values["slide_key"], entry["mark"]] = TileCount(**values)
    return done
