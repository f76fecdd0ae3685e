"""`python -m ingest import`: a manifest from a table that someone else made, checked like one of our own."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest.atomic import atomic_folder
from ingest.balance import BalanceConfig, Cohort, balance_weights, cohort_facts, plan_cohort
from ingest.card import write_card
from ingest.config import config_digest
from ingest.errors import GateError, InputError, SlideError
from ingest.exchange import Imported, KeyFor, mask_from_corners, read_tile_table, tile_row
from ingest.leakage import find_leaks
from ingest.ledger import Ledger, facts
from ingest.manifest import TARGET_PREFIX, Provenance, table_from_rows, write_dataset_card, write_table
from ingest.privacy import Identifiers, PrivacyConfig, require_clean
from ingest.split import SplitConfig, default_split


def publish_import(
    imported: Imported,
    manifest: Path,
    vault: Path,
    key_fingerprint: str,
    *,
    task: str = "cancer",
    split: SplitConfig,
    balancing: BalanceConfig,
    tiles: Mapping[str, Mapping[str, Any]] | None = None,
    identifiers: Identifiers | None = None,
) -> Cohort:
    """Write manifest and vault; the split of the table is kept if it has one, otherwise patients are split anew.

    Args:
        vault: an open vault folder (`deidentify.open_vault`); gets locations.parquet when the table names files.
        key_fingerprint: of the pseudonymiser, or "public".
        tiles: slide_key -> row of tiles.parquet, see `imported_tiles`.
        identifiers: what must not be found in the manifest; None for public data sets, whose identifiers name no one.
    Raises:
        PrivacyError: one of them was found; nothing is written.
        InputError: no slide has a label.
        GateError: the split of the table has a patient in two parts, or another leak; nothing is written.
    """
    import pandas as pd
    import pyarrow as pa

    tiles = tiles or {}
    target = TARGET_PREFIX + task
    rows = [{**row, **_geometry(tiles.get(row["slide_key"]))} for row in imported.slides]
    usable = [row for row in rows if row["exclude_reason"] is None]
    if not usable:
        raise InputError(f"import: none of {imported.num_rows} rows has a slide with a label; nothing was written")
    slides = pd.DataFrame(usable).assign(site=None, centre=None)
    cohort = plan_cohort(slides, split, balancing) if imported.splits.empty else _as_split(imported, slides, balancing)
    for row, part, weight in zip(usable, cohort.split, cohort.weights, strict=True):
        row.update(split=part if isinstance(part, str) else None, weight=float(weight))
    ledger = Ledger(imported.losses)
    tally = ledger.balance("row", imported.num_rows, len(rows))
    digest = hashlib.sha256(f"{config_digest(split)}{config_digest(balancing)}".encode()).hexdigest()
    provenance = Provenance(config_digest=digest, rules_digest="", policy_digest="", key_fingerprint=key_fingerprint,
                            snapshot_at="")  # fmt: skip
    extra = {target: pa.int8()}
    with atomic_folder(manifest) as folder:
        digests = {
            name: write_table(folder, name, table, provenance)
            for name, table in {
                "slides": table_from_rows("slides", rows, extra),
                "specimens": table_from_rows("specimens", imported.specimens, extra),
                "splits": pa.Table.from_pandas(cohort.splits, preserve_index=False),
                "quarantine": ledger.rows.table(),
                **({"tiles": table_from_rows("tiles", tiles.values())} if tiles else {}),
            }.items()
        }
        write_dataset_card(
            folder, provenance, digests, {"ledger": facts([tally]), "cohort": cohort.facts, "tasks": [task]}
        )
        write_card(folder)
        if identifiers is not None:
            require_clean(folder, identifiers, PrivacyConfig())
    if imported.locations:
        places = [{"slide_key": key, "path": path} for key, path in imported.locations]
        write_table(vault, "locations", table_from_rows("locations", places), provenance)
    return cohort


def imported_tiles(
    path: Path, imported: Imported, key_for: KeyFor, tile_size_px: int, tile_mpp: float
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Rows of tiles.parquet from OPAL's tile_data.csv; slides are opened for their size, not read.

    Returns:
        slide_key -> row, and counts for the screen: slides without tiles by reason, and "tiles_without_cell".
    """
    from ingest.slide import open_slide

    corners_of = {key_for("slide", slide): corners for slide, corners in read_tile_table(path).items()}
    rows: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for slide_key, location in imported.locations:
        if slide_key not in corners_of:
            counts["not_in_tile_table"] += 1
            continue
        try:
            with open_slide(Path(location)) as slide:
                grid = slide.grid(tile_size_px, tile_mpp)
        except SlideError as error:
            counts[error.reason] += 1
            continue
        mask, num_without_cell = mask_from_corners(corners_of[slide_key], grid)
        counts["tiles_without_cell"] += num_without_cell
        rows[slide_key] = tile_row(slide_key, grid, mask)
    return rows, dict(counts)


def _as_split(imported: Imported, slides: Any, balancing: BalanceConfig) -> Cohort:
    leaks = find_leaks(imported.splits, slides)
    if leaks:
        raise GateError(f"import: {leaks[0].message} ({len(leaks)} such findings); import without its split columns, "
                        "or mend the table")  # fmt: skip
    placed = slides.assign(split=default_split(slides, imported.splits))
    weights = balance_weights(placed, balancing)
    return Cohort(
        imported.splits, placed["split"], weights, cohort_facts(placed, weights, imported.splits, None, balancing)
    )


def _geometry(tile: Mapping[str, Any] | None) -> dict[str, Any]:
    if tile is None:
        return {}
    return {"width_px": tile["width_px"], "height_px": tile["height_px"], "mpp": tile["slide_mpp"],
            "num_tiles": tile["num_tiles"], "tissue_mm2": tile["tissue_mm2"]}  # fmt: skip
