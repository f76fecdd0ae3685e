"""Reader for everything OpenSlide knows: NDPI, MRXS, SCN, BIF, VMS, DICOM, JPEG2000 and TIFFs of unusual layout.

Three hazards it guards: a handle is dead for every later read after one error, so it is opened again; regions that
were not scanned come back transparent, which is white here (dropping the alpha channel would make them black); and a
JPEG2000 tile whose end is missing comes back as a coarser picture without an error, so the ends are looked at.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from ingest.errors import SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import (
    DAMAGED,
    WHITE,
    Level,
    ReadReport,
    ReadScale,
    SlideInfo,
    check_damage,
    choose_scale,
    resize_into,
    scaled_boxes,
    thumbnail_size,
    trusted_mpp,
)
from ingest.threads import deal
from ingest.tiff_index import JPEG2000
from ingest.tiff_slide import TiffSlide, open_tiff

RUN_TILES = 8  # neighbours of a row are read in one region: their shared file tiles are blitted once
CACHE_BYTES = 64 << 20  # a little more than two rows of file tiles under a run
PATCH_PX = 256  # a band that raises is read in patches, to lose only those that are damaged
BAND_PIXELS = 16 << 20  # a thumbnail is read in bands of at most this many pixels: 64 MB as OpenSlide returns them


class OpenSlideSlide:
    """A slide opened by OpenSlide; reads are thread-safe. Made by `open_with_openslide`."""

    def __init__(self, path: Path, handle: openslide.OpenSlide, info: SlideInfo, jpeg2000: TiffSlide | None) -> None:
        self._path = path
        self._jpeg2000 = jpeg2000
        self._lock = threading.Lock()
        self._handle = handle
        self._num_opened = 0
        self.info = info

    def close(self) -> None:
        self._handle.close()
        if self._jpeg2000 is not None:
            self._jpeg2000.close()

    def scale_for(self, slide_mpp: float, mpp: float) -> ReadScale:
        return choose_scale(self.info.levels, [(1,)] * len(self.info.levels), slide_mpp, mpp)

    def read_tiles(
        self, grid: TileGrid, tile_indices: NDArray[np.int64], out: NDArray[np.uint8], num_threads: int
    ) -> ReadReport:
        """See `ingest.slide.Slide.read_tiles`."""
        scale = self.scale_for(grid.slide_mpp, grid.tile_mpp)
        level = self.info.levels[scale.level]
        boxes, _ = scaled_boxes(grid, tile_indices, scale.downsample, level.width_px, level.height_px)
        failed: list[int] = []

        def read(run: range) -> None:
            failed.extend(self._read_run(scale, boxes, run, out))

        deal(_runs(boxes), lambda: read, num_threads)
        bad = set(failed)
        if self._jpeg2000 is not None:
            cut = self._jpeg2000.damaged_ends(grid, tile_indices, scale.level)
            out[sorted(cut)] = WHITE
            bad |= cut
        return ReadReport(tuple((position, DAMAGED) for position in sorted(bad)), 0)

    def thumbnail(self, slide_mpp: float, mpp: float, num_threads: int, max_damaged: float) -> NDArray[np.uint8]:
        """See `ingest.slide.Slide.thumbnail`; read by one thread."""
        scale = self.scale_for(slide_mpp, mpp)
        level = self.info.levels[scale.level]
        width, height = thumbnail_size(self.info, slide_mpp, mpp)
        thumbnail = np.empty((height, width, 3), np.uint8)
        rows_per_band = max(1, int(BAND_PIXELS / level.width_px * height / level.height_px))
        num_patches = num_bad = 0
        for top in range(0, height, rows_per_band):
            bottom = min(top + rows_per_band, height)
            first, last = top * level.height_px // height, -(-bottom * level.height_px // height)
            pixels, patches, bad = self._read_in_patches(scale, first, last, level.width_px)
            num_patches, num_bad = num_patches + patches, num_bad + bad
            thumbnail[top:bottom] = cv2.resize(pixels, (width, bottom - top), interpolation=cv2.INTER_AREA)
        check_damage(num_bad, num_patches, max_damaged)
        return thumbnail

    def _read_in_patches(
        self, scale: ReadScale, first: int, last: int, width: int
    ) -> tuple[NDArray[np.uint8], int, int]:
        """A band of the level, the number of its patches, and of those that cannot be read (white)."""
        patches = [
            (x, y, min(PATCH_PX, width - x), min(PATCH_PX, last - y))
            for y in range(first, last, PATCH_PX)
            for x in range(0, width, PATCH_PX)
        ]
        pixels = self._read(scale, 0, first, width, last - first)
        if pixels is not None:
            return pixels, len(patches), 0
        num_bad = 0
        pixels = np.full((last - first, width, 3), WHITE, np.uint8)
        for x, y, patch_width, patch_height in patches:
            patch = self._read(scale, x, y, patch_width, patch_height)
            if patch is None:
                num_bad += 1
            else:
                pixels[y - first : y - first + patch_height, x : x + patch_width] = patch
        return pixels, len(patches), num_bad

    def _read_run(self, scale: ReadScale, boxes: NDArray[np.int64], run: range, out: NDArray[np.uint8]) -> list[int]:
        left, top = int(boxes[run[0], 0]), int(boxes[run[0], 1])
        right, bottom = int(boxes[run[-1], 0] + boxes[run[-1], 2]), int((boxes[run, 1] + boxes[run, 3]).max())
        region = self._read(scale, left, top, right - left, bottom - top)
        if region is None and len(run) > 1:  # find out which of the tiles it is
            return [bad for position in run for bad in self._read_run(scale, boxes, range(position, position + 1), out)]
        if region is None:
            out[run[0]] = WHITE
            return [run[0]]
        for position in run:
            x, y, width, height = boxes[position].tolist()
            pixels = region[y - top : y - top + height, x - left : x - left + width]
            if pixels.shape == out[position].shape:
                out[position] = pixels
            else:
                resize_into(pixels, out[position])
        return []

    def _read(self, scale: ReadScale, x: int, y: int, width: int, height: int) -> NDArray[np.uint8] | None:
        """RGB pixels of a region given in pixels of the level, or None where OpenSlide raised."""
        location = round(x * scale.downsample), round(y * scale.downsample)
        with self._handle_now() as (handle, number):
            try:
                image = handle.read_region(location, scale.level, (width, height))
            except openslide.OpenSlideError:
                self._reopen(number)
                return None
        rgba = np.asarray(image)
        rgb = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        if not (rgba[..., 3] == 255).all():
            rgb[rgba[..., 3] == 0] = WHITE
        return rgb  # type: ignore[no-any-return]

    @contextmanager
    def _handle_now(self) -> Iterator[tuple[openslide.OpenSlide, int]]:
        with self._lock:
            handle, number = self._handle, self._num_opened
        yield handle, number

    def _reopen(self, number: int) -> None:
        with self._lock:
            if number != self._num_opened:
                return  # another thread has done it
            # The dead handle is left to the garbage collector: another thread may be inside a read of it.
            self._handle = _open(self._path)
            self._num_opened += 1


def open_with_openslide(path: Path) -> OpenSlideSlide:
    """Open a slide.

    Raises:
        SlideError: `cannot_open`: OpenSlide does not know the format or refuses the file; `truncated`: a TIFF with
            JPEG2000 tiles ends before its last tile.
    """
    try:
        handle = _open(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError("cannot_open", "no reader knows this format; convert it or exclude the slide") from error
    except openslide.OpenSlideError as error:
        raise SlideError("cannot_open", f"OpenSlide cannot open it ({_without_path(error, path)})") from error
    properties = handle.properties
    width_px, height_px = handle.dimensions
    levels = tuple(
        Level(width, height, _whole(downsample))
        for (width, height), downsample in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    )
    scanner = next(
        (properties[name] for name in ("aperio.ScannerType", "hamamatsu.Product", "tiff.Model") if name in properties),
        "",
    )
    info = SlideInfo(
        width_px=width_px,
        height_px=height_px,
        mpp=trusted_mpp(_number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")),
        levels=levels,
        vendor=properties.get("openslide.vendor", ""),
        scanner=scanner,
    )
    return OpenSlideSlide(path, handle, info, _jpeg2000_index(path, levels))


def _jpeg2000_index(path: Path, levels: tuple[Level, ...]) -> TiffSlide | None:
    """Our index of a TIFF with JPEG2000 tiles, where its levels are those that OpenSlide sees."""
    try:
        tiff = open_tiff(path, JPEG2000)
    except SlideError as error:
        if error.reason == "truncated":
            raise
        return None
    if [(level.width_px, level.height_px) for level in tiff.info.levels] == [
        (level.width_px, level.height_px) for level in levels
    ]:
        return tiff
    tiff.close()
    return None


def _open(path: Path) -> openslide.OpenSlide:
    handle = openslide.OpenSlide(str(path))
    handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    return handle


def _runs(boxes: NDArray[np.int64]) -> list[range]:
    """Positions that follow each other in a row without a gap, at most RUN_TILES together."""
    runs: list[range] = []
    start = 0
    for position in range(1, len(boxes) + 1):
        if (
            position == len(boxes)
            or position - start == RUN_TILES
            or boxes[position, 1] != boxes[start, 1]
            or abs(int(boxes[position, 0] - boxes[position - 1, 0] - boxes[position - 1, 2])) > 2
        ):
            runs.append(range(start, position))
            start = position
    return runs


def _whole(downsample: float) -> float:
    return float(round(downsample)) if abs(downsample - round(downsample)) < 0.01 * downsample else downsample


def _number(properties: openslide._PropertyMap, name: str) -> float | None:
    try:
        return float(properties[name])
    except (KeyError, ValueError):
        return None


def _without_path(error: Exception, path: Path) -> str:
    return str(error).replace(str(path), "the file").replace(path.name, "the file")
