"""Tiles with a label each, for probes: images in a table, or places on the slides of a manifest.

    patient_id (or patient_key), label, png      images: PNG or JPEG bytes (column png, jpg, jpeg or image), all of one size
    slide_key, x, y, label                       level-0 pixels inside a tissue tile of the manifest; the patient is known there

`label` is 0 or 1. Rows that cannot be used are counted by reason; nothing is left out in silence.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from evaluate.roc import Ints
from evaluate.tile_blocks import Block, Scan
from ingest.errors import InputError

IMAGE_COLUMNS = ("png", "jpg", "jpeg", "image")
PATIENT_COLUMNS = ("patient_key", "patient_id")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledTiles:
    """Usable rows.

    Attributes:
        labels, patients: [n] 0 or 1, and whose tile it is.
        images: uint8 [n, S, S, 3]; None for tiles on slides.
        places: (scan, grid index) of each tile on slides; empty for images.
        left_out: reason -> rows; rows in the file = n + the sum.
    """

    labels: Ints
    patients: NDArray[np.str_]
    images: NDArray[np.uint8] | None = None
    places: tuple[tuple[Scan, int], ...] = ()
    left_out: Mapping[str, int]


def read_labelled_tiles(path: Path, scans: Sequence[Scan], seen_patients: frozenset[str]) -> LabelledTiles:
    """The usable rows of a Parquet or CSV table.

    Args:
        scans: of the manifest; needed for places on slides.
        seen_patients: on whom one of the encoders was trained or selected; their tiles are left out.
    Raises:
        InputError: the table is unreadable, a column is missing, a label is neither 0 nor 1, or no row can be used.
    """
    frame = _read(path)
    labels = pd.to_numeric(frame["label"], errors="coerce") if "label" in frame else None
    if labels is None or not labels.isin([0, 1]).all():
        raise InputError(f"{path.name}: needs a column label of 0 and 1 only; give one finding against the rest")
    image_column = next((name for name in IMAGE_COLUMNS if name in frame), None)
    places = {"slide_key", "x", "y"} <= set(frame.columns)
    if image_column is None and not places:
        raise InputError(f"{path.name}: needs a column of images ({', '.join(IMAGE_COLUMNS)}), or slide_key, x and y; "
                         f"found {', '.join(map(str, frame.columns[:10]))}")  # fmt: skip
    found = (
        _from_images(path, frame, labels, image_column) if image_column else _from_places(path, frame, labels, scans)
    )
    unseen = ~np.isin(found.patients, sorted(seen_patients))
    if not unseen.any():
        raise InputError(f"{path.name}: no row can be used ({_reasons(found.left_out, int((~unseen).sum()))})")
    kept = np.flatnonzero(unseen)
    left_out = dict(found.left_out) | ({"patient_seen_in_training": int((~unseen).sum())} if not unseen.all() else {})
    return LabelledTiles(labels=found.labels[kept], patients=found.patients[kept], left_out=left_out,
                         images=None if found.images is None else found.images[kept],
                         places=tuple(found.places[k] for k in kept) if found.places else ())  # fmt: skip


def place_blocks(tiles: LabelledTiles, block_tiles: int) -> Iterator[Block]:
    """What to read for tiles on slides: each place once, slide by slide."""
    for scan, indices in _by_slide(tiles):
        for first in range(0, len(indices), block_tiles):
            yield Block(scan=scan, first=first, tile_indices=indices[first : first + block_tiles])


def num_place_blocks(tiles: LabelledTiles, block_tiles: int) -> int:
    return sum(-(-len(indices) // block_tiles) for _, indices in _by_slide(tiles))


def _by_slide(tiles: LabelledTiles) -> list[tuple[Scan, NDArray[np.int64]]]:
    scans = {scan.slide_key: scan for scan, _ in tiles.places}
    return [
        (scan, np.unique([index for other, index in tiles.places if other.slide_key == key]))
        for key, scan in sorted(scans.items())
    ]


def _from_images(path: Path, frame: pd.DataFrame, labels: pd.Series, column: str) -> LabelledTiles:
    from PIL import Image, UnidentifiedImageError

    patient_column = next((name for name in PATIENT_COLUMNS if name in frame), None)
    if patient_column is None or frame[patient_column].isna().any():
        raise InputError(f"{path.name}: every image needs a patient_id; tiles of one patient are not independent")
    pictures: list[NDArray[np.uint8] | None] = []
    for content in frame[column]:
        try:
            pictures.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        except (UnidentifiedImageError, OSError, TypeError):
            pictures.append(None)
    shapes = Counter(
        picture.shape for picture in pictures if picture is not None and picture.shape[0] == picture.shape[1]
    )
    if not shapes:
        raise InputError(f"{path.name}: no square image in column {column}; give PNG or JPEG bytes")
    shape = shapes.most_common(1)[0][0]
    kept = [k for k, picture in enumerate(pictures) if picture is not None and picture.shape == shape]
    broken = sum(picture is None for picture in pictures)
    other = len(pictures) - broken - len(kept)
    reasons = {"unreadable_image": broken, "other_size": other}
    return LabelledTiles(
        labels=labels.to_numpy(np.int64)[kept], patients=frame[patient_column].astype(str).to_numpy(str)[kept],
        images=np.stack([picture for k in kept if (picture := pictures[k]) is not None]),
        left_out={reason: count for reason, count in reasons.items() if count},
    )  # fmt: skip


def _from_places(path: Path, frame: pd.DataFrame, labels: pd.Series, scans: Sequence[Scan]) -> LabelledTiles:
    if not scans:
        raise InputError(f"{path.name}: places on slides need the manifest and the vault of these slides; give both")
    scan_of = {scan.slide_key: scan for scan in scans}
    tissue = {key: set(scan_of[key].tile_indices().tolist()) for key in set(frame["slide_key"]) & set(scan_of)}
    kept, places, reasons = [], [], Counter[str]()
    for row, (key, x, y) in enumerate(zip(frame["slide_key"], frame["x"], frame["y"], strict=True)):
        if key not in tissue:
            reasons["slide_not_in_manifest"] += 1
            continue
        grid = scan_of[key].grid
        # + 0.5: a corner as the grid rounds it lies up to half a pixel before the exact one
        column, line = (int((float(value) + 0.5) // grid.stride_px) for value in (x, y))
        index = line * grid.num_columns + column
        if not (0 <= column < grid.num_columns and 0 <= line < grid.num_rows and index in tissue[key]):
            reasons["not_on_a_tissue_tile"] += 1
            continue
        kept.append(row)
        places.append((scan_of[key], index))
    return LabelledTiles(labels=labels.to_numpy(np.int64)[kept], places=tuple(places), left_out=dict(reasons),
                         patients=np.array([scan.patient_key for scan, _ in places], dtype=str))  # fmt: skip


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"slide_key": str})
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such file; give a Parquet or CSV table of labelled tiles") from None
    except (pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: not a Parquet or CSV table ({type(error).__name__})") from None


def _reasons(left_out: Mapping[str, int], num_seen: int) -> str:
    reasons = dict(left_out) | ({"patient_seen_in_training": num_seen} if num_seen else {})
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "it is empty"
