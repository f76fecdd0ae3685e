"""Our reader for tiled JPEG TIFF (Aperio SVS, generic pyramids): each file tile is decoded once, scaled by libjpeg.

libjpeg decodes at 1/2, 1/4 and 1/8 in the DCT domain: a 40x scan read at 20x costs 304 us per 256 px tile against
388 us plus a resize, and comes within 50 dB of full decode + area average. Scales between (7/8, 5/8) have no SIMD
code and are slower than a full decode, so they are not used.
A file tile of length 0 is background that the scanner left out: white, not an error. A tile that libjpeg does not
decode without a complaint is reported; bits that flipped and still decode are seen by no reader.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ingest.geometry import TileGrid
from ingest.read_plan import (
    DAMAGED,
    WHITE,
    Pieces,
    ReadReport,
    ReadScale,
    SlideInfo,
    check_damage,
    choose_scale,
    cut_pieces,
    resize_into,
    scaled_boxes,
    thumbnail_size,
)
from ingest.tiff_index import TiffLevel, read_index

TILES_PER_READ = 32  # one pread of 32 neighbours instead of 32 small ones: +30 % from a cold disk
STAGING_BYTES = 64 << 20  # tiles that wait for their last piece before the resize


class TiffSlide:
    """An open tiled JPEG TIFF; reads are thread-safe. Made by `open_tiff`."""

    def __init__(self, descriptor: int, levels: tuple[TiffLevel, ...], info: SlideInfo) -> None:
        self._descriptor = descriptor
        self._levels = levels
        self.info = info

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def scale_for(self, slide_mpp: float, mpp: float) -> ReadScale:
        return choose_scale(self.info.levels, [level.denominators for level in self._levels], slide_mpp, mpp)

    def read_tiles(
        self, grid: TileGrid, tile_indices: NDArray[np.int64], out: NDArray[np.uint8], num_threads: int
    ) -> ReadReport:
        """See `ingest.slide.Slide.read_tiles`."""
        scale = self.scale_for(grid.slide_mpp, grid.tile_mpp)
        level = self._levels[scale.level]
        width_px, height_px = level.level.width_px // scale.denominator, level.level.height_px // scale.denominator
        boxes, is_native = scaled_boxes(grid, tile_indices, scale.downsample, width_px, height_px)
        bad: set[int] = set()
        num_decoded = 0
        for part in [slice(0, len(boxes))] if is_native else _strips(boxes, level.tile_height_px // scale.denominator):
            positions = np.arange(len(boxes))[part]
            pieces = cut_pieces(
                boxes[positions],
                level.tile_width_px // scale.denominator,
                level.tile_height_px // scale.denominator,
                level.num_across,
                level.offsets,
            )
            pieces = pieces._replace(position=positions[pieces.position])
            job = _ReadJob(self._descriptor, level, scale.denominator, pieces, boxes, out, is_native)
            run_in_threads(job.work, num_threads)
            bad |= job.bad
            num_decoded += job.num_decoded
        return ReadReport(tuple((position, DAMAGED) for position in sorted(bad)), num_decoded)

    def thumbnail(self, slide_mpp: float, mpp: float, num_threads: int, max_damaged: float) -> NDArray[np.uint8]:
        """See `ingest.slide.Slide.thumbnail`."""
        scale = self.scale_for(slide_mpp, mpp)
        level = self._levels[scale.level]
        shrink = _whole_shrink(level, scale, mpp / slide_mpp)
        pixel = scale.denominator * shrink
        height, width = -(-level.level.height_px // pixel), -(-level.level.width_px // pixel)
        mosaic = np.full((height, width, 3), WHITE, np.uint8)
        side_x, side_y = level.tile_width_px // pixel, level.tile_height_px // pixel
        tiles = np.argsort(level.offsets, kind="stable")
        tiles = tiles[level.lengths[tiles] > 0]
        cursor = _Cursor(len(tiles), TILES_PER_READ)
        num_bad = [0]

        def work() -> None:
            decoder = _Decoder(self._descriptor, level, scale.denominator)
            for start, end in cursor:
                for index, pixels in decoder.decode(tiles[start:end]):
                    if pixels is None:
                        with cursor.lock:
                            num_bad[0] += 1
                        continue
                    if shrink > 1:
                        pixels = cv2.resize(pixels, (side_x, side_y), interpolation=cv2.INTER_AREA)
                    row, column = divmod(index, level.num_across)
                    place = mosaic[row * side_y : (row + 1) * side_y, column * side_x : (column + 1) * side_x]
                    place[:] = pixels[: place.shape[0], : place.shape[1]]

        run_in_threads(work, num_threads)
        check_damage(num_bad[0], len(tiles), max_damaged)
        size = thumbnail_size(self.info, slide_mpp, mpp)
        if mosaic.shape[:2] != (size[1], size[0]):
            mosaic = np.asarray(cv2.resize(mosaic, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return mosaic

    def damaged_ends(self, grid: TileGrid, tile_indices: NDArray[np.int64], level_index: int) -> set[int]:
        """Positions of tiles that need a file tile without the JPEG start or end mark; nothing is decoded.

        A cheap check for a reader that hands out black or half tiles without an error.
        """
        level = self._levels[level_index]
        width_px, height_px, downsample = level.level.width_px, level.level.height_px, level.level.downsample
        boxes, _ = scaled_boxes(grid, tile_indices, downsample, width_px, height_px)
        pieces = cut_pieces(boxes, level.tile_width_px, level.tile_height_px, level.num_across, level.offsets)
        file_tiles = np.unique(pieces.file_tile)
        bad = [tile for tile in file_tiles.tolist() if not self._is_whole(level, tile)]
        return set(pieces.position[np.isin(pieces.file_tile, bad)].tolist())

    def _is_whole(self, level: TiffLevel, file_tile: int) -> bool:
        offset, length = int(level.offsets[file_tile]), int(level.lengths[file_tile])
        if length == 0:
            return True
        tail = os.pread(self._descriptor, min(64, length), offset + length - min(64, length))
        return os.pread(self._descriptor, 2, offset) == b"\xff\xd8" and b"\xff\xd9" in tail


def open_tiff(path: Path) -> TiffSlide:
    """Open a file of this reader's kind; errors as `read_index`."""
    levels, info = read_index(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return TiffSlide(descriptor, levels, info)


class _Cursor:
    """Deals ranges [start, end) of `size` to several threads, in order."""

    def __init__(self, total: int, size: int) -> None:
        self.lock = threading.Lock()
        self._starts = iter(range(0, total, size))
        self._total, self._size = total, size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while True:
            with self.lock:
                start = next(self._starts, None)
            if start is None:
                return
            yield start, min(start + self._size, self._total)


class _Decoder:
    """One thread's buffers: reads neighbouring file tiles together and decodes one after the other."""

    def __init__(self, descriptor: int, level: TiffLevel, denominator: int) -> None:
        self._descriptor, self._level, self._denominator = descriptor, level, denominator
        self._height, self._width = level.tile_height_px // denominator, level.tile_width_px // denominator
        self._pixels = np.empty((self._height, self._width, 3), np.uint8)
        self._raw = bytearray(1 << 20)

    def decode(self, file_tiles: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """(file tile, its pixels or None where damaged); the pixels are overwritten by the next one."""
        offsets, lengths = self._level.offsets[file_tiles].tolist(), self._level.lengths[file_tiles].tolist()
        indices = file_tiles.tolist()
        first = 0
        while first < len(indices):
            last, end, wanted = first, offsets[first] + lengths[first], lengths[first]
            # Neighbours join one read as long as no more than half of it is unwanted.
            while last + 1 < len(indices):
                next_end = offsets[last + 1] + lengths[last + 1]
                if next_end - offsets[first] > 2 * (wanted + lengths[last + 1]) or offsets[last + 1] < end:
                    break
                last, end, wanted = last + 1, next_end, wanted + lengths[last + 1]
            data = self._read(offsets[first], end - offsets[first])
            for number in range(first, last + 1):
                start = offsets[number] - offsets[first]
                yield indices[number], self._decode_one(data[start : start + lengths[number]], lengths[number])
            first = last + 1

    def _read(self, offset: int, length: int) -> memoryview:
        if length > len(self._raw):
            self._raw = bytearray(length)
        view = memoryview(self._raw)[:length]
        num_read = 0
        while num_read < length:
            got = os.preadv(self._descriptor, [view[num_read:]], offset + num_read)
            if got == 0:
                break  # the file became shorter while it was open: the missing tiles are reported as damaged
            num_read += got
        return view[:num_read]

    def _decode_one(self, segment: memoryview, length: int) -> NDArray[np.uint8] | None:
        if len(segment) < length or bytes(segment[:2]) != b"\xff\xd8":
            return None
        start = 2
        if (
            bytes(segment[2:4]) == b"\xff\xe0"
        ):  # a JFIF mark would overrule the colours that the TIFF tag and our APP14 state
            start = 4 + int.from_bytes(segment[4:6], "big")
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                b"".join((self._level.prefix, segment[start:])),
                min_factor=self._denominator,
                min_height=self._height,
                min_width=self._width,
                buffer=self._pixels,
            )
        except ValueError:
            return None
        return pixels if pixels.shape == self._pixels.shape else None


class _ReadJob:
    """One call of `read_tiles`: what its threads share."""

    def __init__(
        self,
        descriptor: int,
        level: TiffLevel,
        denominator: int,
        pieces: Pieces,
        boxes: NDArray[np.int64],
        out: NDArray[np.uint8],
        is_native: bool,
    ) -> None:
        self._descriptor, self._level, self._denominator = descriptor, level, denominator
        self._pieces, self._boxes, self._out = pieces, boxes, out
        starts = np.flatnonzero(np.diff(pieces.file_tile, prepend=-1))
        self._starts = np.append(starts, len(pieces.file_tile))
        self._file_tiles = pieces.file_tile[starts]
        self._cursor = _Cursor(len(starts), TILES_PER_READ)
        self._staging = None if is_native else _Staging(pieces.position, boxes)
        self.bad: set[int] = set()
        self.num_decoded = 0

    def work(self) -> None:
        """What each thread does: take the next run of file tiles, decode, copy the pieces to where they belong."""
        decoder = _Decoder(self._descriptor, self._level, self._denominator)
        rows_out = self._out.reshape(len(self._out), self._out.shape[1], -1)  # a copy of whole rows is a memcpy
        for first, last in self._cursor:
            pieces = slice(self._starts[first], self._starts[last])
            positions = self._pieces.position[pieces]
            targets = rows_out if self._staging is None else self._staging.rows(positions)
            self._copy(decoder, first, last, targets)
            if self._staging is not None:
                for position, staged in self._staging.finished(positions):
                    _resize_into(staged, self._boxes[position], self._out[position])
                    self._staging.give_back(staged)

    def _copy(
        self,
        decoder: _Decoder,
        first: int,
        last: int,
        targets: "NDArray[np.uint8] | dict[int, NDArray[np.uint8]]",
    ) -> None:
        starts = self._starts[first : last + 1].tolist()
        base = starts[0]
        position, source_y, source_x, target_y, target_x, height, width = (
            column[base : starts[-1]].tolist() for column in self._pieces[1:]
        )
        file_tiles = self._file_tiles[first:last]
        is_sparse = self._level.lengths[file_tiles] == 0
        number_of = dict(zip(file_tiles.tolist(), range(last - first), strict=True))
        bad: set[int] = set()
        blank = np.flatnonzero(is_sparse).tolist()
        for file_tile, pixels in decoder.decode(file_tiles[~is_sparse]):
            number = number_of[file_tile]
            if pixels is None:
                blank.append(number)
                bad.update(position[starts[number] - base : starts[number + 1] - base])
                continue
            rows = pixels.reshape(pixels.shape[0], -1)
            for piece in range(starts[number] - base, starts[number + 1] - base):
                from_y, from_x, rows_high = source_y[piece], 3 * source_x[piece], height[piece]
                to_y, to_x, bytes_wide = target_y[piece], 3 * target_x[piece], 3 * width[piece]
                targets[position[piece]][to_y : to_y + rows_high, to_x : to_x + bytes_wide] = rows[
                    from_y : from_y + rows_high, from_x : from_x + bytes_wide
                ]
        for number in blank:
            for piece in range(starts[number] - base, starts[number + 1] - base):
                to_y, to_x = target_y[piece], 3 * target_x[piece]
                targets[position[piece]][to_y : to_y + height[piece], to_x : to_x + 3 * width[piece]] = WHITE
        with self._cursor.lock:
            self.bad |= bad
            self.num_decoded += last - first - int(is_sparse.sum())


class _Staging:
    """Tiles at the scale of the file that still wait for a piece; each is resized once it is whole."""

    def __init__(self, positions: NDArray[np.int64], boxes: NDArray[np.int64]) -> None:
        self._lock = threading.Lock()
        self._num_missing = np.bincount(positions, minlength=len(boxes))
        self._shape = (int(boxes[:, 3].max()), 3 * int(boxes[:, 2].max()))
        self._waiting: dict[int, NDArray[np.uint8]] = {}
        self._free: list[NDArray[np.uint8]] = []

    def rows(self, positions: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        with self._lock:
            for position in np.unique(positions).tolist():
                if position not in self._waiting:
                    self._waiting[position] = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
            return dict(self._waiting)

    def finished(self, positions: NDArray[np.int64]) -> list[tuple[int, NDArray[np.uint8]]]:
        touched, num_written = np.unique(positions, return_counts=True)
        with self._lock:
            self._num_missing[touched] -= num_written
            return [(p, self._waiting.pop(p)) for p in touched[self._num_missing[touched] == 0].tolist()]

    def give_back(self, staged: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(staged)


def run_in_threads(work: Callable[[], None], num_threads: int) -> None:
    if num_threads == 1:
        work()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(work) for _ in range(num_threads)]:
            future.result()


def _resize_into(staged: NDArray[np.uint8], box: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
    width, height = int(box[2]), int(box[3])
    pixels = staged[:height, : 3 * width].reshape(height, width, 3)
    resize_into(pixels, target)


def _strips(boxes: NDArray[np.int64], tile_height_px: int) -> list[NDArray[np.int64]]:
    """Split a read that resizes into columns so narrow that the tiles in flight fit into STAGING_BYTES."""
    if len(boxes) == 0:
        return []
    width, height = int(boxes[:, 2].max()), int(boxes[:, 3].max())
    rows_in_flight = 1 - (-tile_height_px // height)
    num_columns = max(1, STAGING_BYTES // (3 * width * height * rows_in_flight))
    strip = (boxes[:, 0] - boxes[:, 0].min()) // (num_columns * width)
    return [np.flatnonzero(strip == number) for number in np.unique(strip)]


def _whole_shrink(level: TiffLevel, scale: ReadScale, downsample: float) -> int:
    """The power of two by which a decoded tile is averaged on top of the scale, so that a mosaic stays small."""
    shrink = 1
    while (
        scale.downsample * shrink * 2 <= downsample * 1.001
        and level.tile_width_px // scale.denominator % (shrink * 2) == 0
        and level.tile_height_px // scale.denominator % (shrink * 2) == 0
    ):
        shrink *= 2
    return shrink
