"""Features on disk in the forms that other tools read. The layouts are theirs; file names are slide keys.

    OUT/20x_224px_0px_overlap/                  TRIDENT's; also read by Patho-Bench, torchmil, and CLAM (float32)
        features_NAME/SLIDE.h5                      `features` [T, F], `coords` [T, 2] of level-0 pixels
        patches/SLIDE_patches.h5                    `coords` once more, with the same attributes
        bags_NAME/pt_files/SLIDE.pt                 CLAM, slideflow, OPAL: a float32 tensor [T, F]
        bags_NAME/pt_files/bags_config.json         what slideflow asks of bags
        stamp_NAME/SLIDE.h5                         STAMP: `feats` (or a link to the first file), `coords` in micrometres

Arrays are contiguous: 20,000 x 1,024 in float16 read in 0.016 s, in TRIDENT's own chunks of one row in 0.246 s.
A file has its final name only when it is whole.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from evaluate.tile_blocks import Scan
from ingest.atomic import atomic_file
from ingest.errors import SlideError
from ingest.geometry import TileGrid

FORMAT_VERSION = 1
Dtype = Literal["float16", "float32"]
NOMINAL_MAGNIFICATIONS = (80, 60, 40, 20, 10, 5)
STAMP_VERSION = "2.1.0"  # the first with these attributes; STAMP refuses files that are newer than itself


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStore:
    """The folder of one encoder's features of one tile geometry.

    Attributes:
        folder: `OUT/20x_224px_0px_overlap`.
        name: of the encoder in folder names.
        encoder_sha256: as `FrozenEncoder.digest`.
        precision: that the encoder computed in.
    """

    folder: Path
    name: str
    encoder_sha256: str
    num_features: int
    dtype: Dtype
    precision: str

    def features_path(self, slide_key: str) -> Path:
        return self.folder / f"features_{self.name}" / f"{slide_key}.h5"

    def patches_path(self, slide_key: str) -> Path:
        return self.folder / "patches" / f"{slide_key}_patches.h5"

    def bag_path(self, slide_key: str) -> Path:
        return self.folder / f"bags_{self.name}" / "pt_files" / f"{slide_key}.pt"

    def stamp_path(self, slide_key: str) -> Path:
        return self.folder / f"stamp_{self.name}" / f"{slide_key}.h5"


def geometry_folder(out: Path, tile_size_px: int, tile_mpp: float) -> Path:
    """`OUT/20x_224px_0px_overlap` for tiles of 224 px at 0.5 micrometres per pixel."""
    return out / f"{10 / tile_mpp:.4g}x_{tile_size_px}px_0px_overlap"


def is_finished(store: FeatureStore, scan: Scan) -> bool:
    """Whether the slide has whole features of this encoder, in this type and precision, of exactly these tiles."""
    try:
        with h5py.File(store.features_path(scan.slide_key), "r") as file:
            features = file["features"]
            same = (features.shape, str(features.dtype)) == ((scan.num_tiles, store.num_features), store.dtype)
            attributes = dict(file.attrs)
    except (OSError, KeyError):  # absent, cut off, or something else
        return False
    wanted = {"encoder_sha256": store.encoder_sha256, "precision": store.precision, "grid_sha256": _grid_digest(scan),
              "format_version": FORMAT_VERSION}  # fmt: skip
    return (
        same
        and all(attributes.get(name) == value for name, value in wanted.items())
        and store.patches_path(scan.slide_key).exists()
    )


def write_features(store: FeatureStore, scan: Scan, features_TF: NDArray[np.float32], num_damaged: int = 0) -> Path:
    """The file of TRIDENT's layout, and its patches file.

    Raises:
        SlideError: `not_finite` or `out_of_range`: a feature that the type of the store cannot hold; nothing is written.
    """
    if not np.isfinite(features_TF).all():
        raise SlideError(
            "not_finite",
            f"slide {scan.slide_key}: features are not finite; look at the weights, or set precision = float32",
        )
    with np.errstate(over="ignore"):
        stored_TF = features_TF.astype(store.dtype, copy=False)
    if not np.isfinite(stored_TF).all():
        raise SlideError(
            "out_of_range",
            f"slide {scan.slide_key}: features up to {np.abs(features_TF).max():.3g} do not fit into {store.dtype} "
            "(65,504 at most); set dtype = float32",
        )
    coords, attributes = _coords(scan), _trident_attributes(store, scan)
    with atomic_file(store.patches_path(scan.slide_key)) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("coords", data=coords).attrs.update(attributes)
    path = store.features_path(scan.slide_key)
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("features", data=stored_TF).attrs.update(
            {"name": scan.slide_key, "savetodir": path.parent.name}
        )
        file.create_dataset("coords", data=coords).attrs.update(attributes)
        file.attrs.update({
            "format_version": FORMAT_VERSION, "encoder_name": store.name, "encoder_sha256": store.encoder_sha256,
            "precision": store.precision, "mpp": scan.grid.tile_mpp, "tile_px": scan.grid.tile_size_px,
            "slide_mpp": scan.grid.slide_mpp, "stride_px": scan.grid.stride_px, "grid_sha256": _grid_digest(scan),
            "num_damaged_tiles": num_damaged,
        })  # fmt: skip
    return path


def read_features(store: FeatureStore, slide_key: str) -> NDArray[np.float32]:
    """[T, F] in float32, as written (rounded to float16 where that is the type of the store)."""
    with h5py.File(store.features_path(slide_key), "r") as file:
        features: NDArray[np.float32] = file["features"][:].astype(np.float32)
    return features


def write_bag(store: FeatureStore, slide_key: str) -> Path:
    """The features as one float32 tensor: half precision in a float32 layer is an error in CLAM."""
    import torch

    path = store.bag_path(slide_key)
    with atomic_file(path) as temporary:
        torch.save(torch.from_numpy(read_features(store, slide_key)), temporary)
    return path


def write_bags_config(store: FeatureStore, tile_size_px: int, tile_mpp: float) -> None:
    """Beside the bags: slideflow compares the tile size of a model with it."""
    facts: Mapping[str, Any] = {
        "extractor": {"class": store.name, "kwargs": {}}, "normalizer": None, "num_features": store.num_features,
        "tile_px": tile_size_px, "tile_um": tile_size_px * tile_mpp, "encoder_sha256": store.encoder_sha256,
    }  # fmt: skip
    with atomic_file(store.bag_path("").parent / "bags_config.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_stamp(store: FeatureStore, scan: Scan, link: bool) -> Path:
    """STAMP's file of a slide; with `link` its `feats` are those of the first file, reached by a relative path."""
    path, source = store.stamp_path(scan.slide_key), store.features_path(scan.slide_key)
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        if link:
            file["feats"] = h5py.ExternalLink(os.path.relpath(source, path.parent), "features")
        else:
            with h5py.File(source, "r") as whole:
                file.create_dataset("feats", data=whole["features"][:])
        file.create_dataset("coords", data=(_coords(scan) * scan.grid.slide_mpp).astype(np.float32))
        file.attrs.update({
            "feat_type": "tile", "unit": "um", "tile_size_um": scan.grid.tile_size_px * scan.grid.tile_mpp,
            "tile_size_px": scan.grid.tile_size_px, "stamp_version": STAMP_VERSION, "extractor": store.name,
            "encoder_sha256": store.encoder_sha256,
        })  # fmt: skip
    return path


def is_current(path: Path, source: Path) -> bool:
    """Whether a form that was made from `source` exists and is not older than it."""
    return path.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def is_stamp_link(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        return isinstance(file.get("feats", getlink=True), h5py.ExternalLink)


def nominal_magnification(mpp: float) -> float:
    """What a scanner calls `mpp`: 40 for 0.2528 and 0.221; the plain 10 / mpp where no usual name is near."""
    exact = 10 / mpp
    nearest = min(NOMINAL_MAGNIFICATIONS, key=lambda name: abs(np.log(name / exact)))
    return nearest if abs(np.log(nearest / exact)) < np.log(1.15) else exact


def _trident_attributes(store: FeatureStore, scan: Scan) -> dict[str, Any]:
    grid: TileGrid = scan.grid
    target = 10 / grid.tile_mpp
    return {
        "patch_size": grid.tile_size_px, "patch_size_level0": round(grid.stride_px),
        "level0_magnification": nominal_magnification(grid.slide_mpp),
        "target_magnification": round(target) if abs(target - round(target)) < 1e-6 else target,
        "overlap": 0, "name": scan.slide_key, "savetodir": store.folder.name,  # theirs is a path; ours leaves none
        "level0_width": grid.width_px, "level0_height": grid.height_px,
    }  # fmt: skip


def _coords(scan: Scan) -> NDArray[np.int64]:
    return scan.grid.boxes(scan.tile_indices())[:, :2]


def _grid_digest(scan: Scan) -> str:
    return hashlib.sha256(repr(astuple(scan.grid)).encode() + scan.mask).hexdigest()
