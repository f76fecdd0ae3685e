"""One open slide, whatever its format: size, micrometres per pixel, a thumbnail, and tiles of the shared grid.

Three readers stand behind it. `tiff` is ours and the fastest; `openslide` takes every other format; `cucim` is there
for those who ask for it. `auto` takes `tiff` where it can and `openslide` elsewhere; `Slide.describe` says which.
Measured per core at 40x -> 20x: OpenSlide as usually called 162 tiles/s, cuCIM 563, ours 1,974 (`make bench PART=slides`).
"""

from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ResolutionError, SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import MAX_DAMAGED, ReadReport, ReadScale, SlideInfo

MAX_SIDE_PX = 1_500_000  # a glass of 75 mm at 0.05 mpp; what is larger is a damaged index and would take all memory

ReaderName = Literal["auto", "tiff", "openslide", "cucim"]


class Reader(Protocol):
    """What a reader offers; `Slide` checks the arguments before they come here."""

    info: SlideInfo

    def close(self) -> None: ...

    def scale_for(self, slide_mpp: float, mpp: float) -> ReadScale: ...

    def thumbnail(self, slide_mpp: float, mpp: float, num_threads: int, max_damaged: float) -> NDArray[np.uint8]: ...

    def read_tiles(
        self, grid: TileGrid, tile_indices: NDArray[np.int64], out: NDArray[np.uint8], num_threads: int
    ) -> ReadReport: ...


class Slide:
    """An open slide; made by `open_slide`, closed by its context. Reads are thread-safe.

    Attributes:
        width_px, height_px: size at level 0.
        mpp: micrometres per level-0 pixel, from the file or as given.
        reader: `tiff`, `openslide` or `cucim`.
        info: what the file says about itself.
    """

    def __init__(self, reader_name: str, reader: Reader, mpp: float, why: str) -> None:
        self.reader = reader_name
        self.info = reader.info
        self.mpp = mpp
        self.width_px, self.height_px = reader.info.width_px, reader.info.height_px
        self._reader = reader
        self._why = why

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    @property
    def vendor(self) -> str:
        return self.info.vendor

    @property
    def scanner(self) -> str:
        return self.info.scanner

    def grid(self, tile_size_px: int, tile_mpp: float) -> TileGrid:
        """The tile grid of this slide.

        Raises:
            ResolutionError: `coarse_scan`: the slide was scanned coarser than `tile_mpp`.
        """
        return TileGrid(
            width_px=self.width_px,
            height_px=self.height_px,
            slide_mpp=self.mpp,
            tile_size_px=tile_size_px,
            tile_mpp=tile_mpp,
        )

    def describe(self) -> str:
        """One line for people: reader and why, format, size, mpp, levels."""
        scanner = f", scanner {self.scanner}" if self.scanner else ""
        levels = ", ".join(f"{level.downsample:g}" for level in self.info.levels)
        return (
            f"reader {self.reader} ({self._why}), format {self.vendor}{scanner}, "
            f"{self.width_px:,} x {self.height_px:,} px at {self.mpp:.4g} mpp, levels 1/[{levels}]"
        )

    def thumbnail(self, mpp: float, num_threads: int = 1, max_damaged: float = MAX_DAMAGED) -> NDArray[np.uint8]:
        """The whole slide at `mpp` micrometres per pixel; parts that are damaged or were not scanned are white.

        Args:
            max_damaged: share 0..1 of damaged parts above which the slide is refused.
        Returns:
            uint8 [round(height_px * self.mpp / mpp), round(width_px * self.mpp / mpp), 3] RGB, 0..255.
        Raises:
            SlideError: `cannot_read` or `damaged_tiles`.
            ResolutionError: `coarse_scan`: `mpp` is finer than the scan.
        """
        try:
            return self._reader.thumbnail(self.mpp, mpp, num_threads, max_damaged)
        except OSError as error:
            raise SlideError("cannot_read", f"the file system failed: {error.strerror}; try again") from error

    def read_tiles(
        self,
        grid: TileGrid,
        tile_indices: NDArray[np.int64],
        out: NDArray[np.uint8],
        num_threads: int = 1,
    ) -> ReadReport:
        """Read tiles of `grid` into `out`, in place.

        A scale within 0.5 % of the one asked for is taken pixel for pixel; any other is resized once, from the
        nearest finer scale of the file (or one at most 6 % coarser).

        Args:
            tile_indices: int64 [K] of the grid, rising; repeats are allowed. Neighbours share file tiles, which are
                decoded once per call: ask for contiguous runs.
            out: uint8 [K, S, S, 3], C-contiguous; S is `grid.tile_size_px`.
        Returns:
            Which tiles are damaged (their damaged parts are white), and how many file tiles were decoded.
        Raises:
            SlideError: `cannot_read`: the file system failed.
            ValueError: the arguments do not fit each other or this slide.
        """
        tile_indices = np.asarray(tile_indices, dtype=np.int64)
        size = grid.tile_size_px
        if (grid.width_px, grid.height_px, grid.slide_mpp) != (self.width_px, self.height_px, self.mpp):
            raise ValueError(
                f"grid of a {grid.width_px} x {grid.height_px} px slide at {grid.slide_mpp} mpp on one of "
                f"{self.width_px} x {self.height_px} px at {self.mpp} mpp; count its tiles again"
            )
        if out.dtype != np.uint8 or out.shape != (len(tile_indices), size, size, 3) or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}; it must be C-contiguous uint8 {(len(tile_indices), size, size, 3)}"
            )
        if len(tile_indices) == 0:
            return ReadReport((), 0)
        if tile_indices[0] < 0 or tile_indices[-1] >= grid.num_cells or (np.diff(tile_indices) < 0).any():
            raise ValueError(f"tile indices must rise and lie in [0, {grid.num_cells})")
        try:
            return self._reader.read_tiles(grid, tile_indices, out, num_threads)
        except OSError as error:
            raise SlideError("cannot_read", f"the file system failed: {error.strerror}; try again") from error


def open_slide(path: Path | str, reader: ReaderName = "auto", mpp_override: float | None = None) -> Slide:
    """Open a slide.

    Args:
        mpp_override: micrometres per level-0 pixel, for files that do not say it or say it wrongly.
    Raises:
        SlideError: `cannot_open`, `truncated`.
        ResolutionError: `no_mpp`: the file does not say its mpp (72 dpi is none), and none is given.
    """
    path = Path(path)
    if not path.exists():
        raise SlideError("cannot_open", "no such file; mount the slide storage or correct the location")
    name, opened, why = _open_reader(path, reader)
    width_px, height_px = opened.info.width_px, opened.info.height_px
    if max(width_px, height_px) > MAX_SIDE_PX:
        opened.close()
        raise SlideError("cannot_open", f"claims to be {width_px:,} x {height_px:,} px; its index is damaged")
    mpp = mpp_override if mpp_override is not None else opened.info.mpp
    if mpp is None or not 0 < mpp < float("inf"):
        opened.close()
        raise ResolutionError(
            "no_mpp",
            "the file does not say its micrometres per pixel (a screen's 72 or 96 dpi does not count); "
            "give the slide an mpp above 0 in the manifest, or --mpp",
        )
    return Slide(name, opened, mpp, why)


def _open_reader(path: Path, reader: ReaderName) -> tuple[str, Reader, str]:
    try:
        if reader == "cucim":
            from ingest.cucim_slide import open_with_cucim

            return "cucim", open_with_cucim(path), "as asked"
        if reader == "openslide":
            return "openslide", _openslide(path), "as asked"
        from ingest.tiff_slide import open_tiff

        try:
            return "tiff", open_tiff(path), "as asked" if reader == "tiff" else "tiled JPEG TIFF"
        except SlideError as error:
            if error.reason != "unsupported":
                raise
            if reader == "tiff":
                raise SlideError("cannot_open", f"reader tiff: {error}; set reader = auto") from error
            return "openslide", _openslide(path), str(error)
    except OSError as error:
        raise SlideError("cannot_open", f"the file system failed: {error.strerror}") from error


def _openslide(path: Path) -> Reader:
    from ingest.openslide_slide import open_with_openslide

    return open_with_openslide(path)
