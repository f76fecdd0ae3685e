"""A picture for people of what will be read: thumbnail, outline of the tissue, grid of the tiles kept, and counts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.atomic import atomic_file
from ingest.geometry import TileGrid
from ingest.tiles import TilesConfig

LONG_SIDE_PX = 1600
CAPTION_PX = 44
OUTLINE_RGB, GRID_RGB, TEXT_RGB = (20, 130, 60), (60, 60, 60), (20, 20, 20)


@dataclass(frozen=True, slots=True)
class Preview:
    """What the picture shows, for the command to print.

    Attributes:
        description: reader, format, size and mpp of the slide.
        num_tiles, num_cells: tissue tiles, and tiles of the whole grid.
    """

    description: str
    num_tiles: int
    num_cells: int
    tissue_mm2: float
    path: Path


def write_preview(slide_path: Path, png_path: Path, config: TilesConfig, mpp_override: float | None = None) -> Preview:
    """Write the preview of a slide as PNG, its long side about 1600 px; a blank slide is drawn too.

    Raises:
        SlideError: the slide cannot be opened or read, or is not a brightfield scan.
        ResolutionError: its mpp is unknown or too coarse for the tiles.
    """
    from ingest.slide import open_slide
    from ingest.tissue import check_brightfield, mask_mpp, tissue_mask, tissue_mm2, tissue_tiles

    with open_slide(slide_path, config.reader, mpp_override) as slide:
        grid = slide.grid(config.size_px, config.mpp)
        thumbnail_mpp = mask_mpp(grid, config.thumbnail_mpp)
        thumbnail = slide.thumbnail(thumbnail_mpp, max_damaged=config.max_damaged)
        description = slide.describe()
    check_brightfield(thumbnail)
    mask = tissue_mask(thumbnail, thumbnail_mpp)
    tiles = tissue_tiles(mask, grid, config.min_tissue)
    area_mm2 = tissue_mm2(mask, grid)
    caption = f"{np.count_nonzero(tiles):,} of {tiles.size:,} tiles of {config.size_px} px at {config.mpp:g} um/px"
    picture = draw_preview(thumbnail, mask, tiles, grid, f"{caption}, tissue {area_mm2:.1f} mm2")
    _write_png(png_path, picture)
    return Preview(description, int(np.count_nonzero(tiles)), tiles.size, area_mm2, png_path)


def draw_preview(
    thumbnail: NDArray[np.uint8], mask: NDArray[np.bool_], tiles: NDArray[np.bool_], grid: TileGrid, caption: str
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB: the thumbnail with outline, kept tiles and caption.

    Args:
        thumbnail, mask: [h, w, 3] and [h, w] of the whole slide.
        tiles: bool [num_rows, num_columns], the tiles kept.
    """
    import cv2

    height, width = thumbnail.shape[:2]
    zoom = LONG_SIDE_PX / max(height, width)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    shrinks = zoom < 1
    picture = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    outline = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    boxes = grid.boxes(np.flatnonzero(tiles.ravel())) * (size[0] / grid.width_px)
    for x, y, box_width, box_height in np.round(boxes).astype(int).tolist():
        cv2.rectangle(picture, (x, y), (x + box_width, y + box_height), GRID_RGB, 1)
    contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, contours, -1, OUTLINE_RGB, 2)
    canvas = np.full((size[1] + CAPTION_PX, max(size[0], 900), 3), 255, np.uint8)
    canvas[: size[1], : size[0]] = picture
    baseline = size[1] + CAPTION_PX - 15
    cv2.putText(canvas, caption, (8, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.7, TEXT_RGB, 1, cv2.LINE_AA)
    return canvas


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    import cv2

    is_written, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert is_written, "OpenCV encodes every uint8 RGB image as PNG"
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.tobytes())
