"""Write an Aperio-style SVS: a pyramid of JPEG tiles with the resolution in its description.

The slide is made row by row of tiles, so the memory is one row of tiles per level plus the compressed tiles of the
smaller levels: each full row is encoded and reduced into the next level at once. As Aperio does, a level stores its
JPEG tables once and its tiles hold abbreviated streams. tifffile, OpenSlide, cuCIM and `ingest.slide` read the result.
The TIFF directories are written here (BigTIFF: magic 43, 8-byte offsets) because tifffile takes ready JPEG streams
only where imagecodecs is installed.
"""

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ingest.atomic import atomic_file
from ingest.errors import ConfigError

Pixels = NDArray[np.uint8]
TileFunction = Callable[[int, int, int, int], Pixels]  # x, y, width, height in level-0 pixels -> [height, width, 3]
Subsampling = Literal["420", "422", "444"]

GLASS = 255  # fills the part of an edge tile that lies outside the slide
_ASCII, _SHORT, _LONG, _UNDEFINED, _LONG8 = 2, 3, 4, 7, 16  # TIFF field types
_CODES = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
CHROMA_SHIFT: dict[Subsampling, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}


def write_svs(
    path: Path,
    pixels: Pixels | TileFunction,
    *,
    mpp: float | None,
    size_px: tuple[int, int] | None = None,
    tile_size_px: int = 256,
    downsamples: Sequence[int] = (1, 4, 16),
    quality: int = 85,
    subsampling: Subsampling = "420",
    scanner: str = "SYNTHETIC1",
) -> None:
    """Write one slide; it is there whole or not at all.

    Args:
        pixels: uint8 RGB [H, W, 3], or a function of x, y, width, height (level-0 pixels, inside the slide) that
            returns uint8 [height, width, 3]; it is called once per tile, in reading order.
        mpp: micrometres per level-0 pixel, written as MPP with AppMag beside it; None writes neither.
        size_px: width, height of the slide; needed, and only used, when `pixels` is a function.
        tile_size_px: side of the JPEG tiles; a multiple of 16 (of the largest step between two levels as well).
        downsamples: of the levels, rising from 1, each a whole multiple of the one before. A level smaller than
            one pixel is left out.
        quality: JPEG quality 1-100.
        scanner: ScanScope ID in the description.
    Raises:
        ConfigError: a size, the quality or the levels cannot be written.
    """
    import simplejpeg

    tile, (width_px, height_px) = _tile_function(pixels, size_px)
    steps = _level_steps(downsamples, tile_size_px)
    if not 1 <= quality <= 100:
        raise ConfigError(f"slide {path.name}: JPEG quality {quality}; give 1 to 100")
    if mpp is not None and not mpp > 0:
        raise ConfigError(f"slide {path.name}: mpp {mpp}; give micrometres per pixel above 0, or None to leave it out")

    def encode(rgb: Pixels) -> bytes:
        contiguous = np.ascontiguousarray(rgb)
        return bytes(simplejpeg.encode_jpeg(contiguous, quality=quality, colorsubsampling=subsampling))

    blank = np.full((tile_size_px, tile_size_px, 3), GLASS, np.uint8)
    tables, _ = _split_jpeg(encode(blank))  # one quality, standard Huffman tables: every tile has the same tables
    sizes = [(width_px, height_px)]
    for step in steps[1:]:
        sizes.append((sizes[-1][0] // step, sizes[-1][1] // step))
    sizes = [size for size in sizes if min(size) > 0]
    levels = [_Level(size, step, tile_size_px, encode) for size, step in zip(sizes, steps, strict=False)]
    for upper, lower in itertools.pairwise(levels):
        upper.lower = lower

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        link = _start_bigtiff(file)
        for number, level in enumerate(levels):
            streams = _encode_top(level, tile) if number == 0 else iter(level.finished)
            description = _description(sizes[0], sizes[number], tile_size_px, quality, mpp, scanner)
            abbreviated = (_split_jpeg(stream)[1] for stream in streams)
            link = _write_directory(
                file, link, level, abbreviated, tables=tables, subsampling=subsampling, description=description
            )


class _Level:
    """One level of the pyramid while rows of tiles pass through it."""

    def __init__(
        self, size_px: tuple[int, int], step: int, tile_size_px: int, encode: Callable[[Pixels], bytes]
    ) -> None:
        self.width_px, self.height_px = size_px
        self.step = step  # of this level against the one above
        self.tile_size_px = tile_size_px
        self.encode = encode
        self.lower: _Level | None = None
        self.finished: list[bytes] = []
        self.num_columns = -(-self.width_px // tile_size_px)
        self.num_rows_done = 0
        self._row = np.empty((tile_size_px, self.num_columns * tile_size_px, 3), np.uint8)
        self._num_lines = 0

    def encode_row(self, row: Pixels) -> Iterator[bytes]:
        """JPEG streams of a full row of tiles [tile, columns * tile, 3]; its reduction goes to the level below."""
        for column in range(self.num_columns):
            yield self.encode(row[:, column * self.tile_size_px : (column + 1) * self.tile_size_px])
        self.num_rows_done += 1
        if self.lower is not None:
            self.lower.take_lines(row)

    def take_lines(self, row: Pixels) -> None:
        """Area-average a row of the level above; encode a row of this level when it is complete."""
        import cv2

        width = row.shape[1] // self.step
        height = row.shape[0] // self.step
        reduced = np.asarray(cv2.resize(row, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if self._num_lines == 0:
            self._row.fill(GLASS)
        columns = min(width, self._row.shape[1])
        self._row[self._num_lines : self._num_lines + height, :columns] = reduced[:, :columns]
        self._num_lines += height
        num_lines_left = self.height_px - self.num_rows_done * self.tile_size_px
        if num_lines_left > 0 and self._num_lines >= min(self.tile_size_px, num_lines_left):
            self.finished.extend(self.encode_row(self._row))
            self._num_lines = 0


def _encode_top(level: _Level, tile: TileFunction) -> Iterator[bytes]:
    side = level.tile_size_px
    row = np.empty((side, level.num_columns * side, 3), np.uint8)
    for y in range(0, level.height_px, side):
        row.fill(GLASS)
        height = min(side, level.height_px - y)
        for x in range(0, level.width_px, side):
            width = min(side, level.width_px - x)
            row[:height, x : x + width] = tile(x, y, width, height)
        yield from level.encode_row(row)


def _tile_function(
    pixels: Pixels | TileFunction, size_px: tuple[int, int] | None
) -> tuple[TileFunction, tuple[int, int]]:
    if isinstance(pixels, np.ndarray):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ConfigError(f"slide pixels are {pixels.dtype} {pixels.shape}; give uint8 [height, width, 3]")
        array = pixels
        return lambda x, y, width, height: array[y : y + height, x : x + width], (array.shape[1], array.shape[0])
    if size_px is None or min(size_px) < 1:
        raise ConfigError(f"slide size {size_px}; a tile function needs size_px = (width, height) above 0")
    return pixels, size_px


def _level_steps(downsamples: Sequence[int], tile_size_px: int) -> list[int]:
    if not downsamples or downsamples[0] != 1:
        raise ConfigError(f"levels {tuple(downsamples)}: the first downsample must be 1")
    steps = [1]
    for above, below in itertools.pairwise(downsamples):
        if below <= above or below % above or tile_size_px % (below // above):
            raise ConfigError(
                f"levels {tuple(downsamples)}: each must be a whole multiple of the one before, by a step that "
                f"divides the tile of {tile_size_px} px"
            )
        steps.append(below // above)
    if tile_size_px % 16:
        raise ConfigError(f"JPEG tiles of {tile_size_px} px; TIFF wants a multiple of 16")
    return steps


def _start_bigtiff(file: BinaryIO) -> int:
    """Write the header; where to put the offset of the first directory."""
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    return 8


def _write_directory(
    file: BinaryIO,
    link: int,
    level: _Level,
    streams: Iterable[bytes],
    *,
    tables: bytes,
    subsampling: Subsampling,
    description: str,
) -> int:
    """Write the tiles of a level, then its directory, and link it at `link`; where the next directory is linked."""
    offsets, counts = [], []
    for stream in streams:
        offsets.append(file.tell())
        counts.append(len(stream))
        file.write(stream)
    entries = [
        (254, _LONG, [0]),  # NewSubfileType: a full image, as Aperio marks its levels
        (256, _LONG, [level.width_px]),
        (257, _LONG, [level.height_px]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [7]),  # JPEG
        (262, _SHORT, [6]),  # YCbCr
        (270, _ASCII, description.encode("ascii") + b"\0"),
        (277, _SHORT, [3]),
        (284, _SHORT, [1]),  # chunky
        (322, _LONG, [level.tile_size_px]),
        (323, _LONG, [level.tile_size_px]),
        (324, _LONG8, offsets),
        (325, _LONG, counts),
        (347, _UNDEFINED, tables),
        (530, _SHORT, list(CHROMA_SHIFT[subsampling])),
    ]
    _align(file)
    directory = bytearray(struct.pack("<Q", len(entries)))
    for tag, kind, values in entries:
        data = bytes(values) if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_CODES[kind]}", *values)
        if len(data) > 8:
            _align(file)
            field = struct.pack("<Q", file.tell())
            file.write(data)
        else:
            field = data.ljust(8, b"\0")
        directory += struct.pack("<HHQ", tag, kind, len(values)) + field
    _align(file)
    position = file.tell()
    file.write(directory + struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", position))
    file.seek(0, 2)
    return position + len(directory)


def _align(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % 8))


def _split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """Tables (DQT, DHT) and the abbreviated image (everything else, JFIF header left out), each a JPEG stream."""
    tables, image = bytearray(b"\xff\xd8"), bytearray(b"\xff\xd8")
    position = 2
    while True:
        marker = stream[position + 1]
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if marker == 0xDA:  # start of scan: the entropy-coded data and the end marker follow
            image += stream[position:]
            break
        if marker in (0xDB, 0xC4):
            tables += stream[position:end]
        elif marker != 0xE0:  # TIFF states size and colour itself; a JFIF header has no place in abbreviated tiles
            image += stream[position:end]
        position = end
    return bytes(tables + b"\xff\xd9"), bytes(image)


def _description(
    base_px: tuple[int, int],
    level_px: tuple[int, int],
    tile_size_px: int,
    quality: int,
    mpp: float | None,
    scanner: str,
) -> str:
    """The text that readers parse; the first line is Aperio's own form."""
    width, height = base_px
    text = f"Aperio Image Library fullslide\n{width}x{height} [0,0 {width}x{height}] ({tile_size_px}x{tile_size_px})"
    if level_px != base_px:
        text += f" -> {level_px[0]}x{level_px[1]}"
    text += f" JPEG/YCC Q={quality}"
    if mpp is not None:
        text += f"|AppMag = {10 / mpp:.3g}|MPP = {mpp:.6g}"
    return f"{text}|ScanScope ID = {scanner}"
