"""Invented slides for tests and benchmarks: a stained texture, slides of it as SVS, and damage of every kind."""

import io
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from ingest.svs import Subsampling, write_svs
from ingest.tiff_index import JPEG, JPEG2000, read_index

Damage = Literal["random", "inside", "half", "empty"]
REAL_SLIDES = Path(__file__).parents[2] / "shared" / "data" / "slides"


def stained_texture(side_px: int, mpp: float, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]: pink stroma with purple nuclei, whose JPEG size at quality 80 is that of real H&E.

    Real H&E at 0.5 mpp, quality 80, 4:2:0, takes about 7 % of the raw bytes; so does this.
    """
    rng = np.random.default_rng(seed)
    coarse = side_px
    weight = np.zeros((side_px, side_px), np.float32)
    scale = 1.0
    while coarse >= 16:  # octaves of noise: amplitude halves with the wavelength, as in tissue
        octave = rng.standard_normal((coarse, coarse)).astype(np.float32)
        weight += cv2.resize(octave, (side_px, side_px), interpolation=cv2.INTER_CUBIC) * (0.5 / scale * 0.14)
        coarse //= 2
        scale *= 0.62
    weight = np.clip(0.45 + 0.16 * weight, 0, 1)
    stain = weight[..., None] * np.array([105, 60, 35], np.float32)
    nuclei = np.zeros((side_px, side_px), np.uint8)
    for x, y, radius in rng.integers((0, 0, 3), (side_px, side_px, 6), (int((side_px * mpp / 15) ** 2), 3)).tolist():
        cv2.circle(nuclei, (x, y), round(radius / mpp / 1.2), 255, -1, cv2.LINE_AA)
    share = (nuclei.astype(np.float32) / 255)[..., None]
    colour = np.array([232, 160, 200], np.float32) - stain + np.array([20, 12, 10], np.float32)
    colour = colour * (1 - share) + np.array([95, 60, 140], np.float32) * share + 20 * (weight[..., None] - 0.5) * share
    sensor = rng.normal(0, 4.0, (side_px, side_px, 1)).astype(np.float32)
    return np.asarray(np.clip(colour + sensor, 0, 255), dtype=np.uint8)


def write_textured_svs(
    path: Path,
    size_px: tuple[int, int],
    mpp: float,
    *,
    quality: int = 80,
    subsampling: Subsampling = "420",
    tile_size_px: int = 256,
    downsamples: tuple[int, ...] = (1, 4, 16),
    texture_px: int = 2048,
    seed: int = 0,
) -> None:
    """A slide covered with the texture, repeated; the repeats cost no less to decode than new tissue."""
    texture = stained_texture(texture_px, mpp, seed)
    repeated = np.pad(texture, ((0, tile_size_px), (0, tile_size_px), (0, 0)), mode="wrap")

    def tile(x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        left, top = x % texture_px, y % texture_px
        return repeated[top : top + height, left : left + width]

    write_svs(
        path,
        tile,
        mpp=mpp,
        size_px=size_px,
        tile_size_px=tile_size_px,
        downsamples=downsamples,
        quality=quality,
        subsampling=subsampling,
    )


def write_jpeg2000_svs(path: Path, pixels: NDArray[np.uint8], mpp: float) -> None:
    """An Aperio slide of one level with lossless JPEG2000 tiles of 256 px (RGB, TIFF compression 33005)."""
    height, width = pixels.shape[:2]
    side = 256
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")

    def streams() -> Iterator[bytes]:
        for y, x in itertools.product(range(0, height, side), range(0, width, side)):
            file = io.BytesIO()
            tile = Image.fromarray(padded[y : y + side, x : x + side])
            tile.save(file, "JPEG2000", no_jp2=True, irreversible=False, mct=0)
            yield file.getvalue()

    # tifffile writes streams as they are, but knows the compression only with a codec; so the tag is set afterwards.
    tifffile.imwrite(
        path,
        streams(),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(side, side),
        compression="zlib",
        photometric="rgb",
        description=f"Aperio Image Library v12.0\n{width}x{height} ({side}x{side}) J2K/KDU Q=100|MPP = {mpp}",
        metadata=None,
    )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(JPEG2000[1])


def damage_tile(path: Path, file_tile: int, how: Damage, level: int = 0, compressions: tuple[int, ...] = JPEG) -> None:
    """Spoil one file tile in place.

    random: random bytes; inside: the same between intact start and end marks; half: zeros from its middle on;
    empty: length 0 in the index, as scanners mark background that they left out.
    """
    levels, _ = read_index(path, compressions)
    offset, length = int(levels[level].offsets[file_tile]), int(levels[level].lengths[file_tile])
    with path.open("r+b") as file:
        if how == "random":
            file.seek(offset)
            file.write(np.random.default_rng(0).bytes(length))
        elif how == "inside":
            file.seek(offset + 2)
            file.write(np.random.default_rng(0).bytes(length - 4))
        elif how == "half":
            file.seek(offset + length // 2)
            file.write(bytes(length - length // 2))
        else:
            _zero_length(file.fileno(), path, file_tile, level)


def _zero_length(descriptor: int, path: Path, file_tile: int, level: int) -> None:
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[level].tags["TileByteCounts"]
        item = tag.valueoffset + file_tile * 4
    os.pwrite(descriptor, bytes(4), item)


def write_plain_tiff(path: Path, pixels: NDArray[np.uint8], dots_per_cm: float | None, *, is_rgb: bool = False) -> None:
    """A tiled JPEG TIFF of another make than `write_svs`: classic, index in front, whole JFIF streams.

    With `is_rgb` the streams hold RGB, as the TIFF's tag says, though JFIF means YCbCr: a known contradiction.
    """
    height, width = pixels.shape[:2]
    side = 256
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    streams = [
        _jfif(padded[y : y + side, x : x + side], is_rgb) for y in range(0, height, side) for x in range(0, width, side)
    ]
    short, long, rational = 3, 4, 5
    entries: list[tuple[int, int, list[int]]] = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8, 8, 8]),
        (259, short, [7]),
        (262, short, [2 if is_rgb else 6]),
        (277, short, [3]),
        (284, short, [1]),
        (322, long, [side]),
        (323, long, [side]),
        (324, long, [0] * len(streams)),
        (325, long, [len(stream) for stream in streams]),
        (530, short, [1, 1]),
    ]
    if dots_per_cm is not None:
        resolution = [round(dots_per_cm * 1000), 1000]
        entries += [(282, rational, resolution), (283, rational, resolution), (296, short, [3])]
    entries.sort()
    values_at = 8 + 2 + 12 * len(entries) + 4
    sizes = {kind: struct.calcsize(code) for kind, code in ((short, "H"), (long, "I"), (rational, "I"))}
    num_values = sum(len(v) * sizes[kind] for _, kind, v in entries if len(v) * sizes[kind] > 4)
    first_tile = values_at + num_values
    starts = list(itertools.accumulate((len(stream) for stream in streams[:-1]), initial=first_tile))
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        if tag == 324:
            numbers = starts
        data = struct.pack(f"<{len(numbers)}{'H' if kind == short else 'I'}", *numbers)
        if len(data) > 4:
            values, data = values + data, struct.pack("<I", values_at + len(values))
        count = 1 if kind == rational else len(numbers)
        directory += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + directory + bytes(4) + values + b"".join(streams))


def _jfif(pixels: NDArray[np.uint8], is_rgb: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=0, keep_rgb=is_rgb)
    stream = file.getvalue()
    if not is_rgb:
        return stream
    assert stream[2:4] == b"\xff\xee", "Pillow marks RGB by an Adobe mark"
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    return stream[:2] + jfif + stream[4 + int.from_bytes(stream[4:6], "big") :]
