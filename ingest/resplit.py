"""`python -m ingest split`: split and balance a finished manifest anew, without reading a report or a slide again."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ingest.atomic import atomic_folder
from ingest.balance import BalanceConfig, Cohort, balance_weights, cohort_facts, plan_cohort
from ingest.card import write_card
from ingest.config import Section
from ingest.manifest import Provenance, read_dataset_card, read_footer, read_table, write_dataset_card, write_table
from ingest.split import SplitConfig, default_split
from ingest.split_table import read_split_table

if TYPE_CHECKING:
    import pandas as pd


class ResplitConfig(Section):
    """The two sections of a cohort definition that a finished manifest is split by."""

    split: SplitConfig = SplitConfig()
    balance: BalanceConfig = BalanceConfig()


def resplit(
    folder: Path,
    split: SplitConfig,
    balance: BalanceConfig,
    *,
    external: Path | None = None,
    val_is: Literal["tune", "test"] = "tune",
    keep_places: bool = True,
) -> Cohort:
    """Rewrite splits.parquet, the columns split and weight of slides.parquet, dataset.json and the card, all at once.

    Args:
        external: a split table of someone else; its rows take the place of the configured schemes.
        val_is: what "val" means in the external table, see `read_split_table`.
        keep_places: patients that have a place in a scheme of the same name keep it.
    Raises:
        ManifestError: the manifest is missing or damaged.
        GateError: the external table has a patient in two parts, or another leak; nothing is changed.
    """
    import pyarrow as pa

    table = read_table(folder, "slides")
    all_slides = table.drop_columns(["split", "weight"]).to_pandas()
    slides = all_slides[all_slides["exclude_reason"].isna()]
    if external is None:
        previous = read_table(folder, "splits").to_pandas() if keep_places else None
        cohort = plan_cohort(slides, split, balance, previous)
    else:
        cohort = _external_cohort(slides, balance, external, val_is)
    columns = {
        "split": pa.array(
            cohort.split.reindex(all_slides.index).astype("object").to_list(), pa.string(), from_pandas=True
        ),
        "weight": pa.array(cohort.weights.reindex(all_slides.index, fill_value=0).to_numpy(), pa.float32()),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    footer = read_footer(folder, "slides")
    provenance = Provenance(**{name: footer[name] for name in Provenance.__dataclass_fields__})
    facts = read_dataset_card(folder)
    digests = dict(facts.pop("content_digests"))
    with atomic_folder(folder) as fresh:
        shutil.copytree(folder, fresh, copy_function=os.link, dirs_exist_ok=True)  # unchanged tables are not copied
        digests["slides"] = write_table(fresh, "slides", table, provenance)
        digests["splits"] = write_table(
            fresh, "splits", pa.Table.from_pandas(cohort.splits, preserve_index=False), provenance
        )
        write_dataset_card(fresh, provenance, digests, facts | {"cohort": cohort.facts})
        write_card(fresh)
    return cohort


def _external_cohort(
    slides: "pd.DataFrame", balance: BalanceConfig, path: Path, val_is: Literal["tune", "test"]
) -> Cohort:
    splits = read_split_table(path, slides, val_is)
    placed = slides.assign(split=default_split(slides, splits))
    weights = balance_weights(placed, balance)
    return Cohort(splits, placed["split"], weights, cohort_facts(placed, weights, splits, None, balance))
