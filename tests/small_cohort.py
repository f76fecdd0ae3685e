"""A cohort of a few small slides with a manifest and a vault, for tests of training and evaluation. All invented."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ingest.geometry import TileGrid, pack_mask
from ingest.manifest import Provenance, table_from_rows, write_dataset_card, write_table
from ingest.svs import write_svs
from pretrain.config import PretrainConfig

TILE_PX = 32
PROVENANCE = Provenance(config_digest="c", rules_digest="r", policy_digest="p", key_fingerprint="k", snapshot_at="")
SPLITS = ("train", "train", "train", "train", "tune", "tune", "test", "test")


def write_small_cohort(folder: Path, seed: int = 0, tune_labels: tuple[int, int] = (0, 1)) -> PretrainConfig:
    """Eight slides of 8 patients, 11 to 18 tiles each: stripes (positive) or dots; returns a configuration to train on it."""
    generator = np.random.default_rng(seed)
    slides, tiles, specimens, locations, splits = [], [], [], [], []
    for number, split in enumerate(SPLITS):
        slide_key, patient_key, label = f"slide{number}", f"patient{number}", number % 2
        if split == "tune":
            label = tune_labels[number - SPLITS.index("tune")]
        num_rows, num_columns = 4, 5
        width_px, height_px = num_columns * TILE_PX + 7, num_rows * TILE_PX + 3
        path = folder / "files" / f"{slide_key}.svs"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_svs(path, _pixels(width_px, height_px, label, generator), mpp=0.5, tile_size_px=64, downsamples=(1,))
        grid = TileGrid(width_px=width_px, height_px=height_px, slide_mpp=0.5, tile_size_px=TILE_PX, tile_mpp=0.5)
        mask = np.zeros(grid.num_cells, dtype=np.bool_)
        mask[generator.choice(grid.num_cells, size=11 + number, replace=False)] = True
        common = {"slide_key": slide_key, "width_px": width_px, "height_px": height_px, "num_tiles": int(mask.sum()),
                  "tissue_mm2": 0.1}  # fmt: skip
        slides.append({**common, "patient_key": patient_key, "case_key": f"case{number}", "specimen_key": f"part{number}",
                       "label": ("benign", "cancer")[label], "y_cancer": label, "mpp": 0.5, "split": split, "weight": 1.0,
                       "site": "breast", "centre": "north", "stain": "H&E"})  # fmt: skip
        specimens.append({**slides[-1], "atypia": False, "num_slides": 1})
        tiles.append({**common, "slide_mpp": 0.5, "tile_size_px": TILE_PX, "tile_mpp": 0.5, "num_columns": num_columns,
                      "num_rows": num_rows, "mask": pack_mask(mask.reshape(num_rows, num_columns)), "reader": "tiff"})  # fmt: skip
        locations.append({"slide_key": slide_key, "path": str(path)})
        splits.append({"patient_key": patient_key, "scheme": "holdout", "fold": 0, "split": split})
    manifest, vault = folder / "manifest", folder / "vault"
    for name, rows in (("slides", slides), ("tiles", tiles), ("specimens", specimens), ("splits", splits)):
        extra = {"y_cancer": pa.int8()} if name in ("slides", "specimens") else None
        write_table(manifest, name, table_from_rows(name, rows, extra), PROVENANCE)
    write_dataset_card(manifest, PROVENANCE, {}, {
        "ledger": {"slide": {"in": 9, "used": 8, "left_out": {"tiles/blank": 1}}},
        "funnel": [["scans in the LIS", 9], ["with a target", 8]],
    })  # fmt: skip
    write_table(vault, "locations", table_from_rows("locations", locations), PROVENANCE)
    return PretrainConfig.model_validate({
        "data": {"manifest": manifest, "vault": vault, "slides_per_epoch": 1.0},
        "run": {"folder": folder / "run", "num_epochs": 2, "device": "cpu", "select_by": "last", "seed": 3},
        "encoder": {"name": "test_resnet"},
        "aggregator": {"hidden_size": 32, "gate_size": 16},
        "step": {"resident_tiles": 6, "chunk_tiles": 5, "timeout_seconds": 60},
        "optim": {"learning_rate": 1e-3, "warmup_epochs": 0.5},
    })  # fmt: skip


def with_settings(config: PretrainConfig, **sections: Mapping[str, object]) -> PretrainConfig:
    """A copy with some keys of some sections changed."""
    updated = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=updated)


def _pixels(width_px: int, height_px: int, label: int, generator: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:height_px, :width_px]
    pattern = (rows // 3) % 2 if label else ((rows // 3) + (columns // 3)) % 2
    picture = np.stack([170 + 60 * pattern, 90 + 60 * pattern, 150 + 50 * pattern], axis=-1)
    return np.clip(picture + generator.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
