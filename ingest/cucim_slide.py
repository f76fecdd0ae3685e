"""Reader on cuCIM, for those who ask for it (extra `gpu`, Linux): batches of tiles from tiled TIFF and SVS.

What it needs guarding against, each seen with 26.10: a batch that is kept without a copy is overwritten, and one used
after its iterator ends crashes the process; a damaged tile comes back black, a half tile half decoded, both without an
error; its cache is on only through a configuration file; it does not see a file's missing mpp. So every batch is
copied, the file tiles' start and end marks are checked through our own index, tiles with black in them are read again
by ours, and the cache is configured before the import.
"""

import atexit
import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ConfigError, SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import DAMAGED, WHITE, ReadReport, ReadScale, choose_scale, resize_into, scaled_boxes
from ingest.tiff_slide import TiffSlide, open_tiff

CACHE_MB = 128
BATCH_TILES = 32
SUSPECT_BLACK = 64  # pixels of exact black in a tile; scanners hardly ever write them, a failed decode only them


class CucimSlide:
    """A slide opened by cuCIM, with our own index beside it for the checks. Made by `open_with_cucim`."""

    def __init__(self, image: Any, tiff: TiffSlide) -> None:
        self._image = image
        self._tiff = tiff
        self.info = tiff.info

    def close(self) -> None:
        self._image.close()
        self._tiff.close()

    def scale_for(self, slide_mpp: float, mpp: float) -> ReadScale:
        return choose_scale(self.info.levels, [(1,)] * len(self.info.levels), slide_mpp, mpp)

    def thumbnail(self, slide_mpp: float, mpp: float, num_threads: int, max_damaged: float) -> NDArray[np.uint8]:
        """See `ingest.slide.Slide.thumbnail`; read by ours, which scales while it decodes and reports damage."""
        return self._tiff.thumbnail(slide_mpp, mpp, num_threads, max_damaged)

    def read_tiles(
        self, grid: TileGrid, tile_indices: NDArray[np.int64], out: NDArray[np.uint8], num_threads: int
    ) -> ReadReport:
        """See `ingest.slide.Slide.read_tiles`."""
        scale = self.scale_for(grid.slide_mpp, grid.tile_mpp)
        level = self.info.levels[scale.level]
        boxes, _ = scaled_boxes(grid, tile_indices, scale.downsample, level.width_px, level.height_px)
        bad = self._tiff.damaged_ends(grid, tile_indices, level_index=scale.level)
        suspects: list[int] = []
        # One region size per call of cuCIM: boxes of a grid that is not whole differ by a pixel.
        for size in np.unique(boxes[:, 2:], axis=0):
            positions = np.flatnonzero((boxes[:, 2:] == size).all(axis=1))
            # Locations are level-0 pixels; aligned to the downsample, because cuCIM rounds where OpenSlide blends.
            locations = np.round(boxes[positions, :2] * scale.downsample).astype(int).tolist()
            batches = self._batches(locations, size.tolist(), scale.level, num_threads)
            suspects += self._copy(batches, positions, out)
        again = sorted(set(suspects) - bad)
        if again:
            bad |= self._read_again(grid, tile_indices, np.array(again), out, num_threads)
        for position in bad:
            out[position] = WHITE
        return ReadReport(tuple((position, DAMAGED) for position in sorted(bad)), 0)

    def _batches(
        self, locations: list[list[int]], size: list[int], level: int, num_threads: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Copies of the batches: each is made while cuCIM's own is alive, which is overwritten by the next."""
        try:
            for batch in self._image.read_region(
                location=[tuple(location) for location in locations],
                size=tuple(size),
                level=level,
                num_workers=num_threads,
                batch_size=BATCH_TILES,
            ):
                yield np.array(batch, copy=True)
        except (RuntimeError, ValueError, IndexError) as error:
            raise SlideError("cannot_read", "reader cucim: it fails on this file; set tiles.reader = auto") from error

    def _copy(
        self, batches: Iterator[NDArray[np.uint8]], positions: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> list[int]:
        """Put the tiles where they belong; returns the positions of those with black in them."""
        suspects: list[int] = []
        done = 0
        for batch in batches:
            for tile in batch.reshape(-1, *batch.shape[-3:]):
                position = int(positions[done])
                if tile.shape == out[position].shape:
                    out[position] = tile
                else:
                    resize_into(tile, out[position])
                if np.count_nonzero(~tile.any(axis=-1)) >= SUSPECT_BLACK:
                    suspects.append(position)
                done += 1
        if done != len(positions):
            raise SlideError("cannot_read", f"cuCIM returned {done} of {len(positions)} tiles; set tiles.reader = auto")
        return suspects

    def _read_again(
        self,
        grid: TileGrid,
        tile_indices: NDArray[np.int64],
        positions: NDArray[np.int64],
        out: NDArray[np.uint8],
        num_threads: int,
    ) -> set[int]:
        pixels = np.empty((len(positions), *out.shape[1:]), np.uint8)
        report = self._tiff.read_tiles(grid, tile_indices[positions], pixels, num_threads)
        out[positions] = pixels
        return {int(positions[position]) for position, _ in report.bad}


def open_with_cucim(path: Path) -> CucimSlide:
    """Open a slide.

    Raises:
        ConfigError: cuCIM is not installed.
        SlideError: `cannot_open`: not a tiled JPEG TIFF, the only kind whose damage can be told; or as `open_tiff`.
    """
    try:
        tiff = open_tiff(path)
    except SlideError as error:
        if error.reason != "unsupported":
            raise
        raise SlideError("cannot_open", f"reader cucim: {error}; set reader = auto") from error
    try:
        image = _import_cucim()(str(path))
    except (RuntimeError, ValueError, IndexError) as error:  # what it raises on damaged indices, by trial
        tiff.close()
        raise SlideError("cannot_open", "reader cucim: it refuses the file; set reader = auto") from error
    return CucimSlide(image, tiff)


def _import_cucim() -> Any:
    """The class CuImage, with the cache on; setting it from Python has no effect in the wheel."""
    if "CUCIM_CONFIG_PATH" not in os.environ:
        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="cucim_", delete=False) as file:
            json.dump({"cache": {"type": "per_process", "memory_capacity": CACHE_MB, "capacity": 2 * CACHE_MB}}, file)
        os.environ["CUCIM_CONFIG_PATH"] = file.name
        atexit.register(Path(file.name).unlink, missing_ok=True)
    try:
        cucim = importlib.import_module("cucim")
    except ImportError as error:
        raise ConfigError(
            "reader cucim is not installed; pip install 'fullslide[gpu]', or set reader = auto"
        ) from error
    return cucim.CuImage
