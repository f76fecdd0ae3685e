"""Tile and thumbnail pictures made small enough for one page, as data URIs."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.errors import InputError

Picture = NDArray[np.uint8]
# Tried in turn until the page fits: side in px, JPEG quality. H&E at 128 px and 80 is about 6 kB.
STEPS = ((128, 82), (112, 76), (96, 70), (80, 62), (64, 55))


def embed_images(images: Sequence[bytes], max_bytes: int) -> list[str]:
    """Data URIs of PNG or JPEG files, all at one size, together at most `max_bytes` long.

    Raises:
        InputError: a picture cannot be read, or so many that they do not fit at the smallest size.
    """
    pixels = [_decoded(image, number) for number, image in enumerate(images)]
    for side, quality in STEPS:
        uris = [_data_uri(picture, side, quality) for picture in pixels]
        if sum(map(len, uris)) <= max_bytes:
            return uris
    raise InputError(f"report: {len(images)} pictures do not fit into {max_bytes:,} bytes; show fewer cases")


def _decoded(image: bytes, number: int) -> Picture:
    picture: Picture | None = cv2.imdecode(np.frombuffer(image, dtype=np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"report: picture {number + 1} is neither PNG nor JPEG")
    return picture


def _data_uri(picture: Picture, side: int, quality: int) -> str:
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "JPEG of an 8-bit picture"
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
