"""Where the tissue is: a guarded saturation threshold on a thumbnail, then the share of tissue in each tile.

Plain Otsu calls 16-72 % of a blank slide tissue, and pen strokes pull its threshold so high that 67 % tissue become
5 %. So black borders and pen are taken out first and the threshold is kept between a floor and a cap: at most the
faintest stain is lost, never the slide. Pure functions of arrays; all lengths in micrometres.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.errors import SlideError
from ingest.geometry import TileGrid

DARK = 50  # HSV value below which a pixel is border, fold or black pen
BRIGHT = 140  # glass and pale tissue are brighter in every channel
SATURATION_FLOOR = 12  # stained pixels lie above; camera noise of a blank slide below
SATURATION_CAP = 35  # Otsu may not ask for more, whatever pen or strong stain does to the histogram
TINT_MARGIN = 10  # above the faintest 2 % of the slide: glass or lamp with a colour of its own is not tissue
MIN_TISSUE_MM2 = 0.02  # smaller spots are dust: 1.6 tiles of 112 um; the smallest biopsy fragments are larger
MAX_MASK_PIXELS = 20e6  # a glass slide of 25 x 50 mm at 8 mpp; bounds time (0.6 s) and memory (400 MB)
MAX_HOLE_MM2 = 0.25  # vessels, glands and fat lobules inside tissue belong to it; larger gaps are glass
PEN_WIDTH_UM = 60.0  # no pen is thinner; chromatic fringes at the edge of tissue, which are green too, are
PEN_MARGIN_UM = 40.0  # the blurred edge of a stroke is removed with it


def tissue_mask(thumbnail: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Pixels that show stained tissue.

    Args:
        thumbnail: uint8 [H, W, 3] RGB of the whole slide, stained brightfield; 4 to 16 mpp is sensible.
        mpp: micrometres per pixel of the thumbnail.
    Returns:
        bool [H, W]; small holes are filled, spots below 0.02 mm2 removed. All False for a blank slide.
    """
    hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
    _, saturation, value = cv2.split(hsv)
    saturation = cv2.medianBlur(saturation, 3)
    usable = cv2.compare(value, DARK, cv2.CMP_GE)
    usable[_pen(hsv, mpp) > 0] = 0
    threshold = _threshold(cv2.calcHist([saturation], [0], usable, [256], [0, 256]).ravel().astype(np.float64))
    stained = cv2.bitwise_and(cv2.compare(saturation, threshold, cv2.CMP_GT), usable)
    stained = cv2.morphologyEx(stained, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    pixels_per_mm2 = (1000.0 / mpp) ** 2
    # Dust first: specks in a gap would cut its hole into pieces that are small enough to be filled.
    stained = _without_small(stained, MIN_TISSUE_MM2 * pixels_per_mm2)
    holes = cv2.bitwise_not(stained)
    large_holes = _without_small(holes, MAX_HOLE_MM2 * pixels_per_mm2, connectivity=4, keep_border=True)
    # Pen that covers tissue stays out even where it looks like a hole.
    filled = cv2.bitwise_or(stained, cv2.bitwise_and(cv2.bitwise_not(large_holes), usable))
    return np.asarray(filled, dtype=np.bool_)


def tissue_tiles(mask: NDArray[np.bool_], grid: TileGrid, min_tissue_fraction: float) -> NDArray[np.bool_]:
    """The tiles of the grid of which at least `min_tissue_fraction` (0..1] is tissue.

    Args:
        mask: bool [H, W] over the whole slide, at any scale; a tile's edges are rounded to its pixels.
    Returns:
        bool [num_rows, num_columns].
    """
    return tissue_fraction(mask, grid) >= min_tissue_fraction


def tissue_fraction(mask: NDArray[np.bool_], grid: TileGrid) -> NDArray[np.float64]:
    """float [num_rows, num_columns]: the share 0..1 of each tile that is tissue."""
    if grid.num_cells == 0:
        return np.zeros((grid.num_rows, grid.num_columns))
    summed = cv2.integral(mask.view(np.uint8))  # int32: up to 2e9 pixels
    columns = _mask_edges(grid.num_columns, grid.stride_px, mask.shape[1] / grid.width_px, mask.shape[1])
    rows = _mask_edges(grid.num_rows, grid.stride_px, mask.shape[0] / grid.height_px, mask.shape[0])
    low, high = summed[rows[:, 0]], summed[rows[:, 1]]
    tissue = high[:, columns[:, 1]] - high[:, columns[:, 0]] - low[:, columns[:, 1]] + low[:, columns[:, 0]]
    area = np.outer(rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0])
    return np.asarray(tissue / area, dtype=np.float64)


def mask_mpp(grid: TileGrid, wanted_mpp: float) -> float:
    """The scale to find tissue at: `wanted_mpp`, or coarser where the slide is or MAX_MASK_PIXELS demand it."""
    area_um2 = grid.width_px * grid.height_px * grid.slide_mpp**2
    return max(wanted_mpp, grid.slide_mpp, float(np.sqrt(area_um2 / MAX_MASK_PIXELS)))


def tissue_mm2(mask: NDArray[np.bool_], grid: TileGrid) -> float:
    """Area of the tissue in square millimetres."""
    width_um, height_um = grid.width_px * grid.slide_mpp, grid.height_px * grid.slide_mpp
    return float(np.count_nonzero(mask)) / mask.size * width_um * height_um / 1e6


def check_brightfield(thumbnail: NDArray[np.uint8]) -> None:
    """Refuse fluorescence and other dark-ground images, which saturation would call tissue all over.

    Raises:
        SlideError: `not_brightfield`: more than half of the slide is dark and next to nothing is bright.
    """
    red, green, blue = cv2.split(thumbnail)
    dark = float((cv2.max(cv2.max(red, green), blue) < DARK).mean())
    bright = float((cv2.min(cv2.min(red, green), blue) >= BRIGHT).mean())  # in all channels: light, not a glowing stain
    if dark > 0.5 and bright < 0.05:
        raise SlideError(
            "not_brightfield",
            f"{dark:.0%} of the slide is dark and {bright:.0%} bright: no brightfield scan; exclude the slide",
        )


def _threshold(histogram: NDArray[np.float64]) -> int:
    total = histogram.sum()
    if total == 0:
        return SATURATION_CAP
    levels = np.arange(256)
    weight = np.cumsum(histogram) / total
    mean = np.cumsum(histogram * levels) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - mean) ** 2 / (weight * (1 - weight))
    otsu = int(np.nanargmax(np.where(np.isfinite(between), between, 0)))
    faintest = int(np.searchsorted(weight, 0.02))
    floor = min(max(SATURATION_FLOOR, faintest + TINT_MARGIN), SATURATION_CAP)
    return int(np.clip(otsu, floor, SATURATION_CAP))


def _pen(hsv: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
    """Felt pen: green and cyan, which no H&E stain is, strong blue, and red stronger than blood; hue is 0..179."""
    core = cv2.inRange(hsv, (35, 60, DARK), (95, 255, 255))
    core |= cv2.inRange(hsv, (95, 110, DARK), (116, 255, 255))
    core |= cv2.inRange(hsv, (0, 205, DARK), (8, 255, 255)) | cv2.inRange(hsv, (172, 205, DARK), (179, 255, 255))
    stroke = cv2.morphologyEx(core, cv2.MORPH_OPEN, _square(PEN_WIDTH_UM / mpp))
    return np.asarray(cv2.dilate(stroke, _square(PEN_WIDTH_UM / mpp + 2 * PEN_MARGIN_UM / mpp)), dtype=np.uint8)


def _square(side: float) -> NDArray[np.uint8]:
    return np.ones((2 * max(1, round(side / 2)) + 1,) * 2, np.uint8)


def _without_small(
    mask: NDArray[np.uint8], min_pixels: float, connectivity: int = 8, keep_border: bool = False
) -> NDArray[np.uint8]:
    """The components of at least `min_pixels`; with `keep_border` also those that touch the edge of the image."""
    if not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity, ltype=cv2.CV_32S)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    if keep_border:
        left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
        right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
        keep |= (left == 0) | (top == 0) | (right == mask.shape[1]) | (bottom == mask.shape[0])
    keep[0] = False  # the background of the components
    return np.asarray(np.where(keep, 255, 0).astype(np.uint8)[labels], dtype=np.uint8)


def _mask_edges(num: int, stride_px: float, scale: float, length: int) -> NDArray[np.int64]:
    """[num, 2] first and end mask pixel of each column or row of the grid; at least one pixel each."""
    exact = np.arange(num + 1) * stride_px * scale
    edges = np.floor(exact + (0.5 if stride_px * scale >= 1 else 1e-9)).astype(np.int64)
    first = np.minimum(edges[:-1], length - 1)
    return np.stack([first, np.clip(edges[1:], first + 1, length)], axis=1)
