"""A small invented cohort and a whole manifest of it, for tests of what reads manifests. No value stems from a patient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ingest.balance import BalanceConfig, plan_cohort
from ingest.card import write_card
from ingest.geometry import TileGrid, pack_mask
from ingest.ledger import Ledger, Loss, facts
from ingest.manifest import Provenance, table_from_rows, write_dataset_card, write_table
from ingest.split import SplitConfig

PROVENANCE = Provenance(config_digest="c" * 64, rules_digest="r" * 64, policy_digest="p" * 64, key_fingerprint="f" * 16,
                        snapshot_at="2020-01-01T00:00:00")  # fmt: skip


def invented_patients(num_patients: int, seed: int = 0, prefix: str = "p") -> pd.DataFrame:
    """One row per patient as `split_patients` wants it; a quarter has cancer, at least two patients."""
    generator = np.random.default_rng(seed)
    labels = np.where(np.arange(num_patients) < max(2, num_patients // 4), "cancer", "benign")
    return pd.DataFrame({
        "patient_key": [f"{prefix}{number:05d}" for number in range(num_patients)],
        "label": labels,
        "site": generator.choice(["breast", "lymph_node"], num_patients),
        "centre": generator.choice(["north", "south", "west"], num_patients),
        "num_slides": generator.geometric(0.4, num_patients),
    })  # fmt: skip


def invented_slides(num_patients: int, seed: int = 0) -> pd.DataFrame:
    """One row per slide: keys, label, y_cancer, site, centre; each slide is a specimen, each patient has one case."""
    patients = invented_patients(num_patients, seed)
    slides = (
        patients.loc[patients.index.repeat(patients["num_slides"])].drop(columns="num_slides").reset_index(drop=True)
    )
    number = slides.groupby("patient_key").cumcount().astype(str)
    slides["case_key"] = "c" + slides["patient_key"]
    slides["specimen_key"] = "sp" + slides["patient_key"] + "x" + number
    slides["slide_key"] = "sl" + slides["patient_key"] + "x" + number
    slides["y_cancer"] = (slides["label"] == "cancer").astype("int64")
    slides["content_hash"] = "h" + slides["slide_key"]
    return slides


def write_manifest(
    folder: Path,
    slides: pd.DataFrame,
    *,
    split: SplitConfig | None = None,
    balancing: BalanceConfig | None = None,
    splits: pd.DataFrame | None = None,
    num_failed: int = 3,
) -> None:
    """A sound manifest of `slides`, with tiles, ledger and card; `splits` replaces the planned split."""
    split = split or SplitConfig()
    cohort = plan_cohort(slides, split, balancing or BalanceConfig())
    records = slides.assign(split=cohort.split, weight=cohort.weights).to_dict("records")
    rows = [dict[str, Any]({str(name): value for name, value in row.items()}) for row in records]
    tiles = [invented_tiles(str(row["slide_key"]), 4 + position % 9) for position, row in enumerate(rows)]
    for row, tile in zip(rows, tiles, strict=True):
        row.update(num_tiles=tile["num_tiles"], label_scope="part", evidence_source="text")
        row["split"] = row["split"] if isinstance(row["split"], str) else None  # pandas says NaN for no place
    specimens: list[dict[str, Any]] = [{**row, "atypia": False, "num_slides": 1} for row in rows]
    losses = [Loss("slide", f"lost{number}", "tiles", "failed", "unreadable_slide") for number in range(num_failed)]
    ledger = Ledger(losses)
    tally = ledger.balance("slide", len(rows) + num_failed, len(rows))
    placed = splits if splits is not None else cohort.splits
    tables = {
        "slides": _table("slides", rows),
        "tiles": _table("tiles", tiles),
        "specimens": _table("specimens", specimens),
        "splits": pa.Table.from_pandas(placed, preserve_index=False),
        "quarantine": ledger.rows.table(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    digests = {name: write_table(folder, name, table, PROVENANCE) for name, table in tables.items()}
    write_dataset_card(folder, PROVENANCE, digests, {"ledger": facts([tally]), "cohort": cohort.facts,
                       "gates": {"slides_failed": {"value": 0.01, "high": 0.1, "passed": True}}})  # fmt: skip
    write_card(folder)


def invented_tiles(slide_key: str, num_tiles: int) -> dict[str, Any]:
    """A row of tiles.parquet: a slide of 6 x 4 cells with its first `num_tiles` cells as tissue."""
    grid = TileGrid(width_px=6 * 448 + 10, height_px=4 * 448, slide_mpp=0.25, tile_size_px=224, tile_mpp=0.5)
    mask = (np.arange(24) < num_tiles).reshape(4, 6)
    return {"slide_key": slide_key, "width_px": grid.width_px, "height_px": grid.height_px, "slide_mpp": 0.25,
            "tile_size_px": 224, "tile_mpp": 0.5, "num_columns": 6, "num_rows": 4, "mask": pack_mask(mask),
            "num_tiles": num_tiles, "tissue_mm2": 0.5, "reader": "tiff"}  # fmt: skip


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    from ingest.manifest import TABLES

    known = set(TABLES[name].names)
    extra: Mapping[str, pa.DataType] = {"y_cancer": pa.int8()} if name in ("slides", "specimens") else {}
    return table_from_rows(name, [{key: row[key] for key in row if key in known | set(extra)} for row in rows], extra)
