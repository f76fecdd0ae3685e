"""The slides to train on: a manifest joined with the vault's slide locations, as plain frozen records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.errors import ConfigError, ManifestError
from ingest.geometry import TileGrid, unpack_mask
from ingest.manifest import TARGET_PREFIX, read_footer, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSlide:
    """One scan with its tissue tiles packed as bits; 13,050 slides of 45,056 tiles take 132 MB.

    Attributes:
        targets: one value per task in the order of the cohort; NaN = not known.
        weight: how often the slide is drawn relative to others, 0 = not drawn in training.
        clusters: one byte per tissue tile, its kind of tissue; empty without `sample.mode = cluster`.
    """

    slide_key: str
    specimen_key: str
    case_key: str
    patient_key: str
    path: Path
    grid: TileGrid
    mask: bytes
    num_tiles: int
    split: str
    weight: float
    targets: tuple[float, ...]
    clusters: bytes = b""

    def tile_indices(self) -> NDArray[np.int64]:
        """[T] indices of the tissue tiles in the grid, rising."""
        mask = unpack_mask(self.mask, self.grid.num_rows, self.grid.num_columns)
        return np.flatnonzero(mask.ravel()).astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The usable slides of a manifest, sorted by key, and what identifies it."""

    tasks: tuple[str, ...]
    slides: tuple[CohortSlide, ...]
    tile_size_px: int
    tile_mpp: float
    manifest_digest: str

    def part(self, split: str) -> tuple[CohortSlide, ...]:
        return tuple(slide for slide in self.slides if slide.split == split)


def load_cohort(manifest: Path, locations: Path, tasks: Sequence[str], scheme: str, fold: int) -> Cohort:
    """Every slide with tiles, a place on disk, a split and at least one known target.

    Args:
        manifest: folder of `slides.parquet`, `tiles.parquet`, `splits.parquet`.
        locations: the vault folder that holds `locations.parquet`.
        tasks: target names: `cancer` stands for the column `y_cancer`.
        scheme, fold: which rows of `splits.parquet` to train by.
    Raises:
        ConfigError: a task, scheme or fold that the manifest does not have.
        ManifestError: no slide is left, a slide has no location, or tables were made with different keys.
    """
    if read_footer(manifest, "slides")["key_fingerprint"] != read_footer(locations, "locations")["key_fingerprint"]:
        raise ManifestError(
            f"manifest {manifest.name} and vault {locations.name} were made with different keys; "
            "use the vault that was written together with this manifest"
        )
    slides = read_table(manifest, "slides")
    known = [name.removeprefix(TARGET_PREFIX) for name in slides.column_names if name.startswith(TARGET_PREFIX)]
    if unknown := [task for task in tasks if task not in known]:
        raise ConfigError(
            f"task {unknown[0]}: manifest {manifest.name} has the tasks {', '.join(known) or 'none'}; "
            "set data.tasks to some of these"
        )
    split_of = _splits(manifest, scheme, fold)
    tiles = {row["slide_key"]: row for row in read_table(manifest, "tiles").to_pylist()}
    path_of = dict(
        zip(
            *(read_table(locations, "locations").column(name).to_pylist() for name in ("slide_key", "path")),
            strict=True,
        )
    )
    columns = [
        "slide_key",
        "specimen_key",
        "case_key",
        "patient_key",
        "weight",
        *(TARGET_PREFIX + task for task in tasks),
    ]
    usable: list[CohortSlide] = []
    for row in slides.select(columns).to_pylist():
        targets = tuple(
            float("nan") if (value := row[TARGET_PREFIX + task]) is None else float(value) for task in tasks
        )
        tile_row = tiles.get(row["slide_key"])
        split = split_of.get(row["patient_key"])
        if tile_row is None or tile_row["num_tiles"] == 0 or split is None or all(np.isnan(targets)):
            continue
        if row["slide_key"] not in path_of:
            raise ManifestError(
                f"slide {row['slide_key']}: no location in the vault {locations.name}; "
                "use the vault that was written together with this manifest"
            )
        grid = TileGrid(
            width_px=tile_row["width_px"],
            height_px=tile_row["height_px"],
            slide_mpp=tile_row["slide_mpp"],
            tile_size_px=tile_row["tile_size_px"],
            tile_mpp=tile_row["tile_mpp"],
        )
        usable.append(
            CohortSlide(
                slide_key=row["slide_key"],
                specimen_key=row["specimen_key"],
                case_key=row["case_key"],
                patient_key=row["patient_key"],
                path=Path(path_of[row["slide_key"]]),
                grid=grid,
                mask=tile_row["mask"],
                num_tiles=tile_row["num_tiles"],
                split=split,
                weight=row["weight"],
                targets=targets,
            )
        )
    if not usable:
        raise ManifestError(
            f"manifest {manifest.name}: no slide has tiles, a split in scheme {scheme} fold {fold} and a "
            f"known value for {', '.join(tasks)}; look at it with `python -m ingest show`"
        )
    sizes = {(slide.grid.tile_size_px, slide.grid.tile_mpp) for slide in usable}
    if len(sizes) != 1:
        raise ManifestError(
            f"manifest {manifest.name}: tiles of {len(sizes)} sizes; count all slides again with one setting"
        )
    ((tile_size_px, tile_mpp),) = sizes
    usable.sort(key=lambda slide: slide.slide_key)
    return Cohort(
        tasks=tuple(tasks),
        slides=tuple(usable),
        tile_size_px=tile_size_px,
        tile_mpp=tile_mpp,
        manifest_digest=read_footer(manifest, "slides")["content_digest"],
    )


def _splits(manifest: Path, scheme: str, fold: int) -> dict[str, str]:
    table = read_table(manifest, "splits")
    found = sorted(set(zip(table.column("scheme").to_pylist(), table.column("fold").to_pylist(), strict=True)))
    if (scheme, fold) not in found:
        listed = ", ".join(f"{name} fold {number}" for name, number in found[:8])
        raise ConfigError(
            f"scheme {scheme} fold {fold}: manifest {manifest.name} has {listed or 'no splits'}; "
            "make it with `python -m ingest split`"
        )
    chosen = table.filter(
        pc.and_(pc.equal(table.column("scheme").cast(pa.string()), scheme), pc.equal(table.column("fold"), fold))
    )
    return dict(zip(chosen.column("patient_key").to_pylist(), chosen.column("split").to_pylist(), strict=True))
