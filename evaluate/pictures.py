"""Pictures of slides: those behind the worst errors of a report, and all of one slide for a pathologist."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluate.attention import attention_ranks, extreme_tiles, heat_map
from evaluate.attention_folder import write_attention_folder
from evaluate.predict import SlideResult, read_slide
from evaluate.report.build import ErrorCase, TileImage, WorstError
from ingest.errors import InputError, SlideError
from ingest.slide import open_slide
from pretrain.cohort import CohortSlide

THUMBNAIL_PX = 260  # longer side in the report
HEAT_MAP_PX = 1500  # longer side of the heat map of one slide
NUM_TILES = 4
TILE_PX = 80
JPEG_QUALITY = 80


def error_cases(errors: Sequence[WorstError], slides: Mapping[str, CohortSlide], folder: Path) -> list[ErrorCase]:
    """The cases with their pictures; a slide that cannot be opened now keeps its line and says so."""
    cases = []
    for error in errors:
        slide, result = slides[error.slide_key], read_slide(folder, error.slide_key)
        note = f"{slide.num_tiles:,} tiles"
        thumbnail: bytes | None = None
        tiles: tuple[TileImage, ...] = ()
        try:
            thumbnail, tiles = _pictures(slide, result)
        except SlideError as fault:
            note += f"; no picture: {fault.reason}"
        cases.append(ErrorCase(slide_key=error.slide_key, label=error.label, score=error.score, note=note,
                               thumbnail=thumbnail, tiles=tiles))  # fmt: skip
    return cases


def _pictures(slide: CohortSlide, result: SlideResult) -> tuple[bytes, tuple[TileImage, ...]]:
    grid = slide.grid
    with open_slide(str(slide.path), mpp_override=grid.slide_mpp) as opened:
        longer_um = max(grid.width_px, grid.height_px) * grid.slide_mpp
        picture = opened.thumbnail(max(grid.slide_mpp, longer_um / THUMBNAIL_PX))
        if result.attention is None:
            return _jpeg(picture), ()
        picture = heat_map(picture, grid, result.tile_indices, result.attention, opacity=0.35)
        chosen = np.sort(extreme_tiles(result.attention, NUM_TILES).most)
        pixels = np.empty((len(chosen), grid.tile_size_px, grid.tile_size_px, 3), np.uint8)
        opened.read_tiles(grid, result.tile_indices[chosen], pixels)
    ranks = attention_ranks(result.attention)[chosen]
    tiles = tuple(
        TileImage(_jpeg(cv2.resize(pixels[index], (TILE_PX, TILE_PX))), f"attention rank {ranks[index]:.0%}")
        for index in np.argsort(-ranks)
    )
    return _jpeg(picture), tiles


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert done, "JPEG of an 8-bit picture"
    return bytes(encoded.tobytes())


def attention_folder(slide: CohortSlide, result: SlideResult, folder: Path, viewer_mpp: float | None = None) -> None:
    """Heat map, galleries, GeoJSON and viewer of one slide; see `write_attention_folder`.

    Args:
        viewer_mpp: sharpness of the picture in the viewer, micrometres per pixel; None: the thumbnail.
    Raises:
        InputError: the run's aggregator gives no attention.
    """
    if result.attention is None:
        raise InputError(f"slide {slide.slide_key}: the aggregator of this run gives no attention; train with gma")
    grid = slide.grid
    with open_slide(str(slide.path), mpp_override=grid.slide_mpp) as opened:

        def read_tiles(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
            pixels = np.empty((len(indices), grid.tile_size_px, grid.tile_size_px, 3), np.uint8)
            opened.read_tiles(grid, indices, pixels)
            return pixels

        longer_um = max(grid.width_px, grid.height_px) * grid.slide_mpp
        thumbnail = opened.thumbnail(max(grid.slide_mpp, longer_um / HEAT_MAP_PX))
        sharper = opened.thumbnail(max(grid.slide_mpp, viewer_mpp)) if viewer_mpp is not None else None
        write_attention_folder(folder, slide_key=slide.slide_key, thumbnail=thumbnail, grid=grid,
                               tile_indices=result.tile_indices, attention=result.attention, read_tiles=read_tiles,
                               viewer_picture=sharper)  # fmt: skip
