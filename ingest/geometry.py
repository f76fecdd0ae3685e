"""Where tiles lie on a slide: one pure grid, shared by counting, training, evaluation and heat maps.

The grid is anchored at level-0 pixel (0, 0), tiles do not overlap, and tiles that would cross the edge are left out.
A tile's index is `row * num_columns + column`: indices in rising order are in reading (raster) order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ResolutionError

RESOLUTION_TOLERANCE = 0.06  # a scan up to 6 % coarser than asked for is taken as it is: 0.2528 and 0.25 are both 40x


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """The tiles of `tile_size_px` at `tile_mpp` that fit on a slide scanned at `slide_mpp`.

    Attributes:
        width_px, height_px: size of the slide at level 0.
        slide_mpp: micrometres per level-0 pixel.
        tile_size_px: side of a tile as the encoder sees it.
        tile_mpp: micrometres per pixel of a tile; 0.5 is 20x.
    """

    width_px: int
    height_px: int
    slide_mpp: float
    tile_size_px: int
    tile_mpp: float

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px", "slide_mpp", "tile_size_px", "tile_mpp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"tile grid: {name} = {getattr(self, name)}; it must be above 0")
        if self.slide_mpp > self.tile_mpp * (1 + RESOLUTION_TOLERANCE):
            raise ResolutionError(
                "coarse_scan",
                f"scanned at {self.slide_mpp:.4g} mpp, asked for {self.tile_mpp:.4g}; up-sampling would invent "
                f"detail: set tiles.mpp = {self.slide_mpp:.4g} or coarser, or exclude the slide",
            )

    @property
    def stride_px(self) -> float:
        """Side of a tile in level-0 pixels; not whole when the scan is not a whole multiple of `tile_mpp`."""
        return self.tile_size_px * self.tile_mpp / self.slide_mpp

    @property
    def num_columns(self) -> int:
        return _num_fitting(self.width_px, self.stride_px)

    @property
    def num_rows(self) -> int:
        return _num_fitting(self.height_px, self.stride_px)

    @property
    def num_cells(self) -> int:
        return self.num_rows * self.num_columns

    def boxes(self, tile_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """[K, 4] boxes x, y, width, height in level-0 pixels; neighbours share their edge exactly."""
        rows, columns = np.divmod(np.asarray(tile_indices, dtype=np.int64), self.num_columns)
        left, right = _edge(columns, self.stride_px), _edge(columns + 1, self.stride_px)
        top, bottom = _edge(rows, self.stride_px), _edge(rows + 1, self.stride_px)
        return np.stack([left, top, right - left, bottom - top], axis=-1)


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """A [rows, columns] mask as bits in reading order, most significant bit first."""
    return np.packbits(mask.ravel()).tobytes()


def unpack_mask(bits: bytes, num_rows: int, num_columns: int) -> NDArray[np.bool_]:
    """The inverse of `pack_mask`."""
    flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=num_rows * num_columns)
    mask: NDArray[np.bool_] = flat.astype(np.bool_).reshape(num_rows, num_columns)
    return mask


def _num_fitting(length_px: int, stride_px: float) -> int:
    return int(np.floor(length_px / stride_px + 1e-9))


def _edge(index: NDArray[np.int64], stride_px: float) -> NDArray[np.int64]:
    edge: NDArray[np.int64] = np.floor(index * stride_px + 0.5).astype(np.int64)
    return edge
