"""The slide readers, the slides that are named, and how fast their folder is read."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pretrain.doctor.finding import REINSTALL, Finding, Wanted

READ_LIMIT_BYTES, READ_LIMIT_SECONDS, READ_LIMIT_ENTRIES = 512 * 2**20, 5.0, 5000


def readers(wanted: Wanted) -> Iterator[Finding]:
    """Each reader on a slide that is written here, against the pixels that were written."""
    import numpy as np

    from ingest.errors import ConfigError, SlideError
    from ingest.slide import open_slide
    from ingest.svs import write_svs

    os.environ.setdefault("CUFILE_LOGFILE_PATH", os.devnull)  # cuCIM's cuFile writes cufile.log where it stands
    rows, columns = np.mgrid[:448, :448]
    written = np.stack([rows // 4 + 100, columns // 4 + 100, (rows + columns) // 8 + 100], axis=-1).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.svs"
        write_svs(path, written, mpp=0.5, tile_size_px=256, downsamples=(1,), quality=95)
        for reader in ("tiff", "openslide", "cucim"):
            name = f"reader {reader}"
            try:
                with open_slide(path, reader) as slide:
                    tiles = np.empty((4, 224, 224, 3), np.uint8)
                    slide.read_tiles(slide.grid(224, 0.5), np.arange(4), tiles)
            except ConfigError as error:
                yield Finding(
                    name, "warning", f"{error}", "" if reader != "cucim" else "not needed: the others read every format"
                )
                continue
            except (SlideError, ImportError) as error:
                yield Finding(name, "problem", f"{error}", REINSTALL)
                continue
            whole = tiles.reshape(2, 2, 224, 224, 3).swapaxes(1, 2).reshape(448, 448, 3)
            difference = float(np.abs(whole.astype(int) - written.astype(int)).mean())
            if difference > 2:
                yield Finding(
                    name, "problem", f"pixels differ by {difference:.1f} of 255 from those written", REINSTALL
                )
            else:
                yield Finding(name, "ok", f"reads what was written (mean difference {difference:.1f} of 255)")


def slides(wanted: Wanted) -> Iterator[Finding]:
    import numpy as np

    from ingest.errors import SlideError
    from ingest.slide import open_slide

    for number, path in enumerate(wanted.slides, start=1):
        try:
            with open_slide(path) as slide:
                grid = slide.grid(224, max(0.5, slide.mpp))
                first = max(0, grid.num_cells // 2 - 32)
                indices = np.arange(first, min(grid.num_cells, first + 64))
                started_at = time.perf_counter()
                report = slide.read_tiles(grid, indices, np.empty((len(indices), 224, 224, 3), np.uint8))
                speed = len(indices) / (time.perf_counter() - started_at)
                what = f"{slide.describe()}; {speed:,.0f} tiles/s in one thread"
        except SlideError as error:
            yield Finding(
                f"slide {number}", "problem", f"{error.reason}: {error}", "exclude the slide, or get the file again"
            )
            continue
        if report.bad:
            yield Finding(
                f"slide {number}",
                "problem",
                f"{len(report.bad)} of {len(indices)} tiles are damaged",
                "get the file again",
            )
        elif len(indices) == 0:
            yield Finding(f"slide {number}", "problem", f"smaller than a tile: {slide.describe()}", "exclude the slide")
        else:
            yield Finding(f"slide {number}", "ok", what)


def folder(wanted: Wanted) -> Iterator[Finding]:
    if wanted.folder is None:
        yield Finding("reading", "ok", "not measured; --folder SLIDES measures it")
        return
    num_bytes, seconds = _read_cold(wanted.folder)
    speed = num_bytes / 1e6 / max(seconds, 1e-9)
    what = f"{speed:,.0f} MB/s in one thread ({num_bytes / 1e6:,.0f} MB from the disk, folder {wanted.folder.name})"
    if num_bytes < 16e6:
        yield Finding(
            "reading",
            "warning",
            f"only {num_bytes / 1e6:.1f} MB of files to read: no measure",
            "name a folder of slides",
        )
    elif speed < wanted.min_mb_per_second:
        yield Finding("reading", "problem", f"{what}, wanted are {wanted.min_mb_per_second:,.0f}",
                      "copy the slides to a faster disk, or raise data.reader_threads where several are faster")  # fmt: skip
    else:
        yield Finding("reading", "ok", what)


def _read_cold(folder: Path) -> tuple[int, float]:
    """Bytes and seconds of reading the largest files of a folder, after the kernel was asked to forget them."""
    entries = [path for path, _ in zip(folder.rglob("*"), range(READ_LIMIT_ENTRIES), strict=False)]
    files = sorted((path for path in entries if path.is_file()), key=lambda path: -path.stat().st_size)
    num_bytes, started_at = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while block := stream.read(4 * 2**20):
                num_bytes += len(block)
                if num_bytes > READ_LIMIT_BYTES or time.perf_counter() - started_at > READ_LIMIT_SECONDS:
                    return num_bytes, time.perf_counter() - started_at
    return num_bytes, time.perf_counter() - started_at
