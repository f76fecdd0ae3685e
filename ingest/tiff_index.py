"""The index of a tiled JPEG TIFF: which pages are the pyramid, where their tiles lie, and the size of a pixel.

Only layouts that are surely plain are taken: OpenSlide's own detection says which vendors write TIFFs whose tiles
overlap or lie elsewhere, and those are left to it.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from ingest.errors import SlideError
from ingest.read_plan import Level, SlideInfo, trusted_mpp

DENOMINATORS = (1, 2, 4, 8)
JPEG, JPEG2000 = (7,), (33003, 33005)  # TIFF compressions; the latter are Aperio's two
MAX_TILE_PX = 8192  # no writer makes larger tiles; a damaged index would ask for terabytes

# tifffile reports every odd tag on stderr; what matters to us is checked below and raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class TiffLevel:
    """Where the tiles of one pyramid level lie in the file, and what libjpeg needs in front of each."""

    level: Level
    tile_width_px: int
    tile_height_px: int
    num_across: int
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    is_jpeg2000: bool
    prefix: bytes
    denominators: tuple[int, ...]


def read_index(path: Path, compressions: tuple[int, ...] = JPEG) -> tuple[tuple[TiffLevel, ...], SlideInfo]:
    """The levels of a file of our reader's kind, and what it says about itself.

    Args:
        compressions: of its tiles; ours decodes JPEG only.
    Raises:
        SlideError: `unsupported`: another reader must take it, the message says why; `truncated`: the file ends
            before its own index says; `cannot_open`: it looks like TIFF, but its index cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4)[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise SlideError("unsupported", "not a TIFF file")
        file_size = file.seek(0, os.SEEK_END)
    vendor = _vendor(path)
    if vendor not in ("aperio", "generic-tiff"):
        raise SlideError("unsupported", f"layout {vendor} is read by OpenSlide")
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = _pyramid_pages(tiff)
            levels = tuple(_tiff_level(page, pages[0], compressions) for page in pages)
            info = _slide_info(pages[0], levels, vendor, tiff.ome_metadata)
    except SlideError:
        raise
    except Exception as error:  # tifffile raises whatever a damaged index leads it into
        if _index_is_cut(path, file_size):
            raise SlideError(
                "truncated", "the file ends before its index; the copy is incomplete: copy it again"
            ) from error
        raise SlideError("cannot_open", f"the TIFF index is damaged ({type(error).__name__})") from error
    for level in levels:
        if len(level.offsets) and int((level.offsets + level.lengths).max()) > file_size:
            raise SlideError("truncated", f"the file ends at byte {file_size:,}, before its last tile; copy it again")
    return levels, info


def _vendor(path: Path) -> str:
    """The format as OpenSlide detects it: the one list of layouts whose tiles overlap or lie elsewhere."""
    import openslide

    try:
        return openslide.OpenSlide.detect_format(str(path)) or "generic-tiff"
    except openslide.OpenSlideError:
        return "generic-tiff"


def _pyramid_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The tiled pages that show the whole slide, finest first; labels, macros and thumbnails are left out."""
    base = tiff.pages[0]
    candidates = [*(base.pages or []), *(page.aspage() for page in tiff.pages[1:])]
    pages = [base]
    for page in candidates:
        finer = pages[-1]
        if not page.is_tiled or page.imagewidth >= finer.imagewidth or page.imagelength >= finer.imagelength:
            continue
        downsample = round(base.imagewidth / page.imagewidth)
        fits_width = abs(base.imagewidth / downsample - page.imagewidth) <= 1.01
        fits_height = abs(base.imagelength / downsample - page.imagelength) <= 1.01
        if fits_width and fits_height:
            pages.append(page)
    return pages


def _tiff_level(page: tifffile.TiffPage, base: tifffile.TiffPage, compressions: tuple[int, ...]) -> TiffLevel:
    if not page.is_tiled:
        raise SlideError("unsupported", "the TIFF is not tiled")
    if page.compression not in compressions:
        kind = "JPEG" if compressions == JPEG else "JPEG2000"
        raise SlideError("unsupported", f"TIFF compression {int(page.compression)} is not {kind}")
    if page.samplesperpixel != 3 or page.bitspersample != 8 or page.planarconfig != 1:
        raise SlideError("unsupported", "the TIFF is not 8-bit RGB in one plane")
    if page.photometric not in (2, 6):
        raise SlideError("unsupported", f"TIFF photometric {int(page.photometric)} is neither RGB nor YCbCr")
    if getattr(page, "imagedepth", 1) != 1:
        raise SlideError("unsupported", "the TIFF has several focal planes")
    if not (0 < page.tilewidth <= MAX_TILE_PX and 0 < page.tilelength <= MAX_TILE_PX):
        raise SlideError("cannot_open", f"the TIFF index is damaged: tiles of {page.tilewidth} x {page.tilelength} px")
    num_across, num_down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets = np.asarray(page.dataoffsets, dtype=np.int64)
    lengths = np.asarray(page.databytecounts, dtype=np.int64)
    if len(offsets) != num_across * num_down or len(lengths) != len(offsets):
        raise SlideError("cannot_open", f"the TIFF index lists {len(offsets)} tiles of {num_across * num_down}")
    denominators = tuple(
        denominator
        for denominator in DENOMINATORS
        if page.tilewidth % denominator == 0 and page.tilelength % denominator == 0
    )
    return TiffLevel(
        level=Level(page.imagewidth, page.imagelength, float(round(base.imagewidth / page.imagewidth))),
        tile_width_px=page.tilewidth,
        tile_height_px=page.tilelength,
        num_across=num_across,
        offsets=offsets,
        lengths=np.where(offsets == 0, 0, lengths),
        is_jpeg2000=page.compression in JPEG2000,
        prefix=_jpeg_prefix(page),
        denominators=denominators,
    )


def _jpeg_prefix(page: tifffile.TiffPage) -> bytes:
    """Start mark, an Adobe mark that states the colours of the TIFF tag, and the shared tables.

    Without the mark libjpeg guesses: Aperio's RGB tiles, which carry none, then come out as if they were YCbCr.
    """
    transform = 1 if page.photometric == 6 else 0
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    tables = page.jpegtables or b""
    if tables[:2] == b"\xff\xd8":
        tables = tables[2:]
    return b"\xff\xd8" + adobe + (tables[:-2] if tables[-2:] == b"\xff\xd9" else tables)


def _slide_info(page: tifffile.TiffPage, levels: tuple[TiffLevel, ...], vendor: str, ome: str | None) -> SlideInfo:
    description = page.description or ""
    if vendor == "aperio":
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
        mpp = trusted_mpp(*(2 * [float(found[1])])) if found else None
    elif ome is not None:
        mpp = _ome_mpp(ome)
    else:
        mpp = trusted_mpp(*_tag_mpp(page))
    model = re.search(r"ScannerType\s*=\s*([\w .-]+)", description) or re.search(r"Biosystems (GT\w+)", description)
    return SlideInfo(
        width_px=page.imagewidth,
        height_px=page.imagelength,
        mpp=mpp,
        levels=tuple(level.level for level in levels),
        vendor=vendor,
        scanner=model[1].strip() if model else "",
    )


def _tag_mpp(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    micrometres = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", 1)))
    values: list[float | None] = []
    for name in ("XResolution", "YResolution"):
        numerator, denominator = page.tags.valueof(name, (0, 1))
        values.append(micrometres * denominator / numerator if micrometres and numerator and denominator else None)
    return values[0], values[1]


def _ome_mpp(ome: str) -> float | None:
    values: list[float | None] = []
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', ome)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', ome)
        factor = (
            {"nm": 1e-3, "mm": 1e3}.get(unit[1], 1.0 if unit[1] in ("\u00b5m", "\u03bcm") else 0.0) if unit else 1.0
        )
        values.append(float(size[1]) * factor if size else None)
    return trusted_mpp(values[0], values[1])


def _index_is_cut(path: Path, file_size: int) -> bool:
    """Whether the first directory lies behind the end of the file; most scanners write it last."""
    with path.open("rb") as file:
        head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    is_big = head[2:4] in (b"+\0", b"\0+")
    offset = int.from_bytes(head[8:16] if is_big else head[4:8], order)
    return offset + 2 > file_size
