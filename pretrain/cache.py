"""Decoded tiles on a local disk (`data.cache`): a share of a slide that comes again is read, not decoded.

One file per share: a line of JSON, then the pixels. Its name is a digest of the slide's key, size and time of change, the
tile grid, the tiles and the reader, so a file is right or is not found. The ranks of a machine share the folder: files appear
under their name when they are whole, and carry a checksum.
At the byte budget the cache stops and keeps what it has. It never evicts: epochs go round the same slides, and of a round
that does not fit, dropping the oldest file drops each just before it is asked for again; and nothing is deleted that another
rank may be reading. Raw pixels, because decoding is what it saves: it pays where the disk reads faster than the reader
decodes (one core decodes about 170 MB/s), which the epoch line tells.
"""

import fcntl
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.geometry import TileGrid
from ingest.slide import ReaderName

FORMAT = 1  # of the files, and of the pixels that the readers make; counts up when either changes
SUFFIX = ".tiles"
STALE_SECONDS = 3600.0  # an unfinished file of this age was left by a process that was killed


def cache_key(
    slide_key: str, path: Path, grid: TileGrid, tile_indices: NDArray[np.int64], reader: ReaderName
) -> str | None:
    """A digest of all that decides the pixels; None where the slide cannot be looked at (the reader will say why)."""
    try:
        file = path.stat()
    except OSError:
        return None
    facts = [FORMAT, slide_key, file.st_size, file.st_mtime_ns, asdict(grid), reader]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(tile_indices.tobytes())
    return digest.hexdigest()


class TileCache:
    """A folder of decoded shares with a byte budget for all processes that use it."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self._budget_bytes = folder, budget_bytes
        self._is_full = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            for unfinished in folder.glob(".*.tmp"):
                if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
                    unfinished.unlink()

    def fetch(self, key: str, tiles: NDArray[np.uint8]) -> bool:
        """Fill `tiles` [K, S, S, 3] from the cache; False where it does not hold them, or holds them damaged."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                if _read_into(file.fileno(), file.readline(), tiles):
                    return True
        except FileNotFoundError:
            return False
        except OSError as error:
            print(f"tile cache: {path.name} cannot be read ({error.strerror}); decoded again", file=sys.stderr)
            return False
        print(f"tile cache: {path.name} is damaged; deleted and decoded again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return False

    def store(self, key: str, tiles: NDArray[np.uint8]) -> None:
        """Keep `tiles` if the budget allows it; a disk that is full is taken as a budget that is spent."""
        if self._is_full or self._path(key).exists():
            return
        header = json.dumps({"crc32": zlib.crc32(tiles.data), "shape": tiles.shape}).encode() + b"\n"
        temporary = self._folder / f".{key}.{os.getpid()}.tmp"
        try:
            if not self._reserve(temporary, len(header) + tiles.nbytes):
                self._stop(f"its {self._budget_bytes / 2**30:g} GiB (data.cache_gib) are used")
                return
            with temporary.open("r+b") as file:
                file.write(header)
                file.write(tiles.data)
            with self._locked():  # a file that changes its name is not missed by another one's count
                os.replace(temporary, self._path(key))
        except OSError as error:
            self._stop(f"the disk says: {error.strerror}")
        finally:
            temporary.unlink(missing_ok=True)

    def _reserve(self, temporary: Path, num_bytes: int) -> bool:
        """Take the room on the disk before writing, so that what the others see there is what is promised."""
        with self._locked(), os.scandir(self._folder) as entries:
            used = sum(_size_bytes(entry) for entry in entries if entry.name.endswith((SUFFIX, ".tmp")))
            if used + num_bytes > self._budget_bytes:
                return False
            with temporary.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return True

    def _stop(self, why: str) -> None:
        self._is_full = True
        print(f"tile cache: keeps what it has and takes no more; {why}", file=sys.stderr)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the kernel when the process ends
            yield


def _read_into(descriptor: int, header: bytes, tiles: NDArray[np.uint8]) -> bool:
    """Whether the file holds exactly these tiles, undamaged."""
    try:
        facts = json.loads(header)
        wanted_shape, wanted_sum = facts["shape"], facts["crc32"]
    except (ValueError, TypeError, KeyError):
        return False
    if os.fstat(descriptor).st_size != len(header) + tiles.nbytes or wanted_shape != list(tiles.shape):
        return False
    flat, position = memoryview(tiles.data).cast("B"), 0
    while position < len(flat):
        num_read = os.preadv(descriptor, [flat[position:]], len(header) + position)
        if num_read == 0:
            return False
        position += num_read
    return bool(zlib.crc32(flat) == wanted_sum)


def _size_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # deleted by another process since it was listed
        return 0
