"""`python -m ingest relabel`: another policy (label -> y) on a finished manifest, without reading a report or a slide again."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ingest.atomic import atomic_folder
from ingest.balance import BalanceConfig, plan_cohort
from ingest.card import write_card
from ingest.config import config_digest
from ingest.errors import ManifestError
from ingest.ledger import Ledger, Loss, facts
from ingest.manifest import (
    TARGET_PREFIX,
    Provenance,
    read_dataset_card,
    read_footer,
    read_table,
    write_dataset_card,
    write_table,
)
from ingest.policy import Policy
from ingest.split import SplitConfig

SITE_REASONS = frozenset({"other_site", "site_unknown"})  # decided by the rules' organ, not by the policy
Row = dict[str, Any]


def relabel(folder: Path, task: str, policy: Policy, split: SplitConfig, balancing: BalanceConfig) -> Counter[str]:
    """Rewrite y_<task> of slides and specimens, the ledger, split and weights; patients keep their places.

    Returns:
        How many slides changed, by `old -> new` value.
    Raises:
        ManifestError: the manifest is missing, damaged, or has no such task.
    """
    column = TARGET_PREFIX + task
    tables = {name: read_table(folder, name) for name in ("slides", "specimens", "quarantine", "splits")}
    if column not in tables["slides"].column_names:
        raise ManifestError(f"manifest {folder.name}: no column {column}; choose one of its tasks with --task")
    specimens, slides = tables["specimens"].to_pylist(), tables["slides"].to_pylist()
    atypia_of = {row["specimen_key"]: row["atypia"] for row in specimens}
    before = [row[column] for row in slides]
    for row in specimens:
        _decide(row, column, policy, row["finding"] or "", row["atypia"])
    for row in slides:
        finding = "" if row["label_scope"] == "block" else row["finding"] or ""
        _decide(row, column, policy, finding, atypia_of[row["specimen_key"]])
    usable = [row for row in slides if row["exclude_reason"] is None]
    for row in slides:
        row["split"], row["weight"] = None, 0.0
    cohort = plan_cohort(pd.DataFrame(usable), split, balancing, tables["splits"].to_pandas())
    for row, part, weight in zip(usable, cohort.split, cohort.weights, strict=True):
        row["split"], row["weight"] = part if isinstance(part, str) else None, float(weight)
    num_usable = Counter(row["specimen_key"] for row in usable)
    for row in specimens:
        row["num_slides"] = num_usable[row["specimen_key"]]
    document = read_dataset_card(folder)
    ledger = _ledger(tables["quarantine"].to_pylist(), specimens, slides)
    tallies = [ledger.balance(entity, tally["in"], tally["in"] - ledger.num_lost(entity))
               for entity, tally in document["ledger"].items()]  # fmt: skip
    footer = read_footer(folder, "slides")
    provenance = Provenance(**{
        **{name: footer[name] for name in Provenance.__dataclass_fields__}, "policy_digest": config_digest(policy),
    })  # fmt: skip
    digests = dict(document.pop("content_digests"))
    others = {path.stem for path in folder.glob("*.parquet")} - set(tables)
    with atomic_folder(folder) as fresh:
        for name, table in {
            **{name: read_table(folder, name) for name in others},  # only their footers change
            "slides": pa.Table.from_pylist(slides, schema=tables["slides"].schema),
            "specimens": pa.Table.from_pylist(specimens, schema=tables["specimens"].schema),
            "quarantine": ledger.rows.table(),
            "splits": pa.Table.from_pandas(cohort.splits, preserve_index=False),
        }.items():
            digests[name] = write_table(fresh, name, table, provenance)
        if "funnel" in document:
            document["funnel"] = _funnel(document["funnel"], len(usable), int((cohort.weights > 0).sum()))
        write_dataset_card(fresh, provenance, digests,
                           document | {"ledger": facts(tallies), "cohort": cohort.facts})  # fmt: skip
        write_card(fresh)
    changes = Counter(f"{_word(old)} -> {_word(row[column])}" for old, row in zip(before, slides, strict=True))
    return Counter({change: count for change, count in changes.items() if len(set(change.split(" -> "))) == 2})


def _decide(row: Row, column: str, policy: Policy, finding: str, atypia: bool) -> None:
    if row["exclude_reason"] in SITE_REASONS:
        return
    row[column], reason = policy.y(row["label"], finding, atypia)
    has_target = any(value is not None for name, value in row.items() if name.startswith(TARGET_PREFIX))
    row["exclude_reason"] = None if has_target else reason


def _ledger(quarantine: list[Row], specimens: list[Row], slides: list[Row]) -> Ledger:
    """The ledger with the policy's losses made anew; all others stay."""
    losses = [Loss(**row) for row in quarantine if row["stage"] != "policy"]
    losses += [Loss("part", row["specimen_key"], "policy", "excluded", row["exclude_reason"])
               for row in specimens if row["exclude_reason"] is not None]  # fmt: skip
    losses += [Loss("slide", row["slide_key"], "policy", "excluded", row["exclude_reason"])
               for row in slides if row["exclude_reason"] is not None]  # fmt: skip
    return Ledger(losses)


def _funnel(steps: list[list[Any]], num_usable: int, num_drawn: int) -> list[list[Any]]:
    """The last two steps are the policy's: with a target, and drawn after balancing."""
    *before, with_target, drawn = steps
    return [*before, [with_target[0], num_usable], [drawn[0], num_drawn]]


def _word(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
