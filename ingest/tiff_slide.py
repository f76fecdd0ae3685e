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
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
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
from ingest.strips import cut_strips, join_pieces
from ingest.threads import deal
from ingest.tiff_decoder import TiffDecoder, max_tiles_of_strip
from ingest.tiff_index import JPEG, TiffLevel, read_index

READ_BYTES = 1 << 19  # one pread of 32 neighbours instead of 32 small ones: +30 % from a cold disk
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
        for part in (
            [slice(0, len(boxes))] if is_native else _narrow_parts(boxes, level.tile_height_px // scale.denominator)
        ):
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
            deal(job.reads, job.worker, num_threads)
            bad |= job.bad()
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
        starts = cut_strips(tiles, level.num_across, max_tiles_of_strip(level, scale.denominator))
        bad: list[int] = []

        def worker() -> Callable[[tuple[int, int]], None]:
            decoder = TiffDecoder(self._descriptor, level, scale.denominator)

            def read(strips: tuple[int, int]) -> None:
                for first, pixels, damaged in _decoded_strips(decoder, tiles, starts, strips):
                    bad.extend(damaged)
                    pixels = pixels.reshape(len(pixels), -1, 3)
                    if shrink > 1:
                        size = pixels.shape[1] // shrink, pixels.shape[0] // shrink
                        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
                    row, column = divmod(int(tiles[first]), level.num_across)
                    place = mosaic[row * side_y :, column * side_x :][: pixels.shape[0], : pixels.shape[1]]
                    place[:] = pixels[: place.shape[0], : place.shape[1]]

            return read

        deal(_reads(level.lengths[tiles], starts), worker, num_threads)
        check_damage(len(bad), len(tiles), max_damaged)
        size = thumbnail_size(self.info, slide_mpp, mpp)
        if mosaic.shape[:2] != (size[1], size[0]):
            mosaic = np.asarray(cv2.resize(mosaic, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return mosaic

    def damaged_ends(self, grid: TileGrid, tile_indices: NDArray[np.int64], level_index: int) -> set[int]:
        """Positions of tiles that need a file tile without the JPEG start or end mark; nothing is decoded.

        A cheap check for a reader that hands out black or half tiles without an error. Of JPEG2000, which decodes to a
        coarser picture when its end is missing, a tile that ends in zeros is told: the hole of an interrupted copy.
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
        if level.is_jpeg2000:
            return any(tail)
        return os.pread(self._descriptor, 2, offset) == b"\xff\xd8" and b"\xff\xd9" in tail


def open_tiff(path: Path, compressions: tuple[int, ...] = JPEG) -> TiffSlide:
    """Open a file of this reader's kind, or another for `damaged_ends` alone; errors as `read_index`."""
    levels, info = read_index(path, compressions)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return TiffSlide(descriptor, levels, info)


def _reads(lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of strips that are read together, about READ_BYTES each; `lengths` are those of the strips' tiles."""
    if len(starts) == 1:
        return []
    begin = np.cumsum(lengths)[starts[:-1]] - lengths[starts[:-1]]
    firsts = np.flatnonzero(np.diff(begin // READ_BYTES, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(starts) - 1], strict=True))


def _decoded_strips(
    decoder: TiffDecoder, file_tiles: NDArray[np.int64], starts: NDArray[np.int64], strips: tuple[int, int]
) -> Iterator[tuple[int, NDArray[np.uint8], list[int]]]:
    """For each strip: where its tiles begin in `file_tiles`, its rows, and the numbers in `file_tiles` of the damaged."""
    bounds = starts[strips[0] : strips[1] + 1].tolist()
    segments = decoder.read(file_tiles[bounds[0] : bounds[-1]])
    for first, last in pairwise(bounds):
        rows, damaged = decoder.decode_strip(segments[first - bounds[0] : last - bounds[0]])
        yield first, rows, [first + number for number in damaged]


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
        self._rows = out.reshape(len(out), out.shape[1], -1)  # a copy of whole rows is a memcpy
        self._file_tiles = pieces.file_tile[np.flatnonzero(np.diff(pieces.file_tile, prepend=-1))]
        lengths = level.lengths[self._file_tiles]
        self._starts = cut_strips(self._file_tiles, level.num_across, max_tiles_of_strip(level, denominator))
        tile_width_px = level.tile_width_px // denominator
        self._copies = join_pieces(pieces, self._starts, tile_width_px, out.shape[2] if is_native else None)
        self._copy_starts = np.searchsorted(self._copies.strip, np.arange(len(self._starts)))
        self._staging = None if is_native else _Staging(self._copies.position, boxes)
        self._damaged: list[int] = []
        self.reads = _reads(lengths, self._starts)
        self.num_decoded = int((lengths > 0).sum())

    def bad(self) -> set[int]:
        """Positions of the output tiles that a damaged tile of the file touches."""
        if not self._damaged:
            return set()
        return set(self._pieces.position[np.isin(self._pieces.file_tile, self._file_tiles[self._damaged])].tolist())

    def worker(self) -> Callable[[tuple[int, int]], None]:
        """What each thread does with a range of strips: decode, copy the tiles' rows to where they belong."""
        decoder = TiffDecoder(self._descriptor, self._level, self._denominator)

        def read(strips: tuple[int, int]) -> None:
            copies = slice(self._copy_starts[strips[0]], self._copy_starts[strips[1]])
            positions = self._copies.position[copies]
            targets = self._rows if self._staging is None else self._staging.rows(positions)
            self._copy(decoder, strips, targets)
            if self._staging is not None:
                for position, staged in self._staging.finished(positions):
                    _resize_into(staged, self._boxes[position], self._out[position])
                    self._staging.give_back(staged)

        return read

    def _copy(
        self,
        decoder: TiffDecoder,
        strips: tuple[int, int],
        targets: "NDArray[np.uint8] | dict[int, NDArray[np.uint8]]",
    ) -> None:
        bounds = self._copy_starts[strips[0] : strips[1] + 1].tolist()
        copies = list(zip(*(column[bounds[0] : bounds[-1]].tolist() for column in self._copies[1:]), strict=True))
        decoded = _decoded_strips(decoder, self._file_tiles, self._starts, strips)
        for (_, rows, bad), (first, last) in zip(decoded, pairwise(bounds), strict=True):
            self._damaged.extend(bad)
            for position, num_tiles, source_y, source_x, target_y, target_x, height, width in copies[
                first - bounds[0] : last - bounds[0]
            ]:
                source = rows[source_y : source_y + height, 3 * source_x : 3 * (source_x + num_tiles * width)]
                if num_tiles == 1:
                    target = targets[position][target_y : target_y + height, 3 * target_x : 3 * (target_x + width)]
                    target[:] = source
                else:
                    target = self._rows[position : position + num_tiles, target_y : target_y + height]
                    target[:] = source.reshape(height, num_tiles, 3 * width).swapaxes(0, 1)


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


def _resize_into(staged: NDArray[np.uint8], box: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
    width, height = int(box[2]), int(box[3])
    pixels = staged[:height, : 3 * width].reshape(height, width, 3)
    resize_into(pixels, target)


def _narrow_parts(boxes: NDArray[np.int64], tile_height_px: int) -> list[NDArray[np.int64]]:
    """Split a read that resizes into parts so narrow that the tiles in flight fit into STAGING_BYTES."""
    if len(boxes) == 0:
        return []
    width, height = int(boxes[:, 2].max()), int(boxes[:, 3].max())
    rows_in_flight = 1 - (-tile_height_px // height)
    num_columns = max(1, STAGING_BYTES // (3 * width * height * rows_in_flight))
    part = (boxes[:, 0] - boxes[:, 0].min()) // (num_columns * width)
    return [np.flatnonzero(part == number) for number in np.unique(part)]


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
