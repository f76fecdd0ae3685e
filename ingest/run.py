"""`python -m ingest run`: from LIS records and slide files to a published manifest, top to bottom.

read -> identify -> label -> join -> count tiles -> policy -> split and balance -> check -> publish. Every row that a stage
drops becomes a `Loss`; nothing is published unless the ledger adds up, the gates hold and no identifier is found in what
would be written. A rerun takes over the tile counts that are done and the places of patients in earlier splits.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ingest.atomic import atomic_folder, recover_folder
from ingest.balance import Cohort, plan_cohort
from ingest.card import write_card
from ingest.case import BlockLabel, Label, PartLabel
from ingest.cohort import CohortConfig
from ingest.config import config_digest
from ingest.deidentify import (
    Pseudonymiser,
    open_pseudonymiser,
    open_vault,
    read_crosswalk,
    write_crosswalk,
    write_vault_table,
    year_of,
)
from ingest.errors import GateError, InputError
from ingest.identity import (
    CasePatients,
    PatientGroups,
    assign_keys,
    late_merges,
    patient_groups,
    require_acknowledged,
    split_changes_table,
)
from ingest.join import SlideJoin, block_name, join_slides, named_accessions
from ingest.ledger import Ledger, Loss, Tally, facts
from ingest.manifest import (
    TARGET_PREFIX,
    Provenance,
    plain_schema,
    read_footer,
    read_table,
    table_from_rows,
    table_rows,
    write_dataset_card,
    write_sorted,
    write_table,
)
from ingest.policy import Policy
from ingest.privacy import crosswalk_identifiers, identifier_index, require_clean
from ingest.progress import track
from ingest.row_store import RowStore
from ingest.rulefile import Rules, load_rules
from ingest.scratch import open_scratch
from ingest.source.read import read_source
from ingest.source.tables import SourceTables
from ingest.specimens import label_records
from ingest.split import merge_places
from ingest.tiles import SlideFile, TileCount, count_tiles

FOUND_IN_TABLES = ("duplicate_row", "no_identifier")  # reasons of losses of rows that are in a canonical table
TILE_JOURNAL = "tile_counts.jsonl"  # in the vault: counts that are done, whatever becomes of the run
Part = tuple[str, str]  # accession and designator: never leaves this module
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimens:
    """The labelled parts: three tables on disk, and what the join and the ledger need to know about them.

    Attributes:
        label_of: of the cases that have a scan; all others are only in the tables.
        rows: of specimens.parquet, `num_slides` still 0.
    """

    label_of: Mapping[Part, PartLabel]
    rows: RowStore
    conflicts: RowStore
    evidence: RowStore
    num_cases: int
    num_cases_used: int
    num_parts: int
    num_parts_used: int
    num_not_assessable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run has published, for the last lines on the screen."""

    manifest: Path
    tallies: tuple[Tally, ...]
    gates: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, Mapping[str, int]]  # split -> label -> slides


def run(config: CohortConfig, acknowledge_merges: bool = False) -> Summary:
    """Build and publish the manifest of a cohort.

    Raises:
        ConfigError, InputError: nothing can be built from this configuration or source.
        GateError: the result is not to be believed, or splits would change silently; nothing is published.
        PrivacyError: an identifier was found in what would be published; nothing is published.
    """
    manifest, vault = config.output.manifest, open_vault(config.output.vault, config.output.manifest)
    recover_folder(manifest)
    rules = load_rules(config.labels.rules)
    with closing(open_scratch(vault)) as scratch:
        pseudonymiser = open_pseudonymiser(config.deidentify, Path(), read_crosswalk(vault), scratch)
        ledger = Ledger(scratch=scratch)
        with read_source(config.source, config.source_folder, vault) as source:
            patients, previous = identify(source, config, pseudonymiser, ledger, scratch, acknowledge_merges)
            pa.default_memory_pool().release_unused()  # of a million names; the reading of reports takes long
            scans = source.table("slides")
            with_scans = named_accessions(scans, config.join)
            specimens = label_specimens(source, patients, with_scans, rules, pseudonymiser, ledger, config, scratch)
            cases = source.table("cases", with_scans)
            join = join_slides(scans, cases, _all_parts(source.table("parts", with_scans), specimens),
                               source.table("blocks", with_scans), config.join, _labelled_blocks(specimens))  # fmt: skip
            counts = _count(join, config, pseudonymiser, vault)
            ledger.add(_join_losses(join, pseudonymiser))
            rows = slide_rows(
                join, specimens, counts, patients, cases, pseudonymiser, config.labels.policy, rules, ledger
            )
            slides = table_from_rows("slides", rows, _target_columns(rules))
            usable = slides.filter(pc.is_null(slides["exclude_reason"]))
            ledger.add(_source_losses(source, pseudonymiser))
            tallies = _tallies(source, specimens, scans.num_rows, usable.num_rows, ledger)
            snapshot_at = source.snapshot_at
        provenance = Provenance(config_digest=_digest(config), rules_digest=rules.digest,
                                policy_digest=config_digest(config.labels.policy),
                                key_fingerprint=pseudonymiser.fingerprint, snapshot_at=snapshot_at)  # fmt: skip
        if not usable.num_rows:
            raise InputError(
                f"cohort: no slide is left with tiles and a target ({ledger.most_frequent()}); see the reasons above"
            )
        plain = plain_schema("slides", _target_columns(rules))
        frame = usable.select(plain.names).cast(plain).to_pandas()
        cohort = plan_cohort(frame, config.split, config.balance, previous)
        gates = check_gates(config, rules, join, specimens, usable, slides, ledger)
        with atomic_folder(manifest) as folder:
            digests = {
                name: write_table(folder, name, table, provenance)
                for name, table in {
                    "slides": _placed(slides, cohort),
                    "tiles": table_from_rows("tiles", _tile_rows(counts, set(slides["slide_key"].to_pylist()))),
                    "splits": pa.Table.from_pandas(cohort.splits, preserve_index=False),
                }.items()
            }
            for store, batches in (
                (specimens.rows, _with_slide_counts(specimens.rows.batches(), usable)),
                (ledger.rows, ledger.rows.batches()),
                (specimens.conflicts, specimens.conflicts.batches()),
                (specimens.evidence, specimens.evidence.batches()),
            ):
                digests[store.name] = write_sorted(folder, store.name, store.schema, batches, provenance)
            write_dataset_card(folder, provenance, digests, {
                "ledger": facts(tallies), "funnel": _funnel(join, slides, usable, cohort.weights), "cohort": cohort.facts,
                "gates": gates, "tasks": sorted(_target_types(rules)),
            })  # fmt: skip
            write_card(folder)
            names = chain(crosswalk_identifiers(pseudonymiser.crosswalk()), _names_of_scans(scans))
            require_clean(folder, identifier_index(names, config.privacy), config.privacy)
            _write_vault(vault, join, pseudonymiser, provenance, config)
    return Summary(manifest=manifest, tallies=tallies, gates=gates, counts=_split_counts(usable, cohort))


# The stages.


def count_only(config: CohortConfig, executor: str = "") -> list[TileCount]:
    """Count the tiles of every scan that the LIS joins to a part, and remember them in the vault: `run` takes them over.

    For cohorts whose slides take hours: it can be stopped and started again, and spread over a Dask cluster.

    Args:
        executor: see `count_tiles`.
    """
    vault = open_vault(config.output.vault, config.output.manifest)
    with closing(open_scratch(vault)) as scratch:
        pseudonymiser = open_pseudonymiser(config.deidentify, Path(), read_crosswalk(vault), scratch)
        with read_source(config.source, config.source_folder, vault) as source:
            scans = source.table("slides")
            with_scans = named_accessions(scans, config.join)
            join = join_slides(scans, source.table("cases", with_scans), source.table("parts", with_scans),
                               source.table("blocks", with_scans), config.join)  # fmt: skip
        files = _slide_files(join, config, pseudonymiser)
        write_crosswalk(vault, pseudonymiser)  # random keys must be the same next time
    return count_tiles(files, config.tiles, vault / TILE_JOURNAL, executor, config.num_workers)


def identify(
    source: SourceTables, config: CohortConfig, pseudonymiser: Pseudonymiser, ledger: Ledger, scratch: sqlite3.Connection,
    acknowledge_merges: bool,
) -> tuple[CasePatients, pd.DataFrame | None]:  # fmt: skip
    """The patient of every case, and where patients stood in the manifest that will be replaced.

    Raises:
        GateError: patients of different splits have become one since, and `acknowledge_merges` is False.
    """
    groups = patient_groups(source.batches("patients"), source.batches("cases"), config.identity)
    ledger.add(Loss("row", pseudonymiser.key("row", digest), "source_patients", "failed", "no_identifier")
               for digest in groups.unnamed_rows)  # fmt: skip
    previous = _previous_splits(config.output.manifest, pseudonymiser, groups, config.output.vault, acknowledge_merges)
    return CasePatients(groups, assign_keys(groups, pseudonymiser), scratch), previous


def label_specimens(
    source: SourceTables, patients: CasePatients, with_scans: AbstractSet[str], rules: Rules,
    pseudonymiser: Pseudonymiser, ledger: Ledger, config: CohortConfig, scratch: sqlite3.Connection,
) -> Specimens:  # fmt: skip
    """Label every part of every case whose patient is known."""
    policy = config.labels.policy
    label_of: dict[Part, PartLabel] = {}
    specimens = RowStore(scratch, "specimens", _target_columns(rules))
    conflicts, evidence = RowStore(scratch, "conflicts"), RowStore(scratch, "evidence")
    num_cases = num_cases_used = num_parts = num_parts_used = num_not_assessable = 0
    labelled = label_records(source.case_records(), config.labels.rules, config.num_workers)
    for case in track(labelled, source.num_different("cases"), "reading reports"):
        num_cases += 1
        accession = case.accession
        case_key = pseudonymiser.key("case", accession)
        patient_key, unresolved = patients.find(accession)
        if patient_key is None or case.reason:
            stage, reason = ("identity", unresolved) if unresolved else ("label", case.reason)
            ledger.add([Loss("case", case_key, stage, "failed", reason)])
            continue
        num_cases_used += 1
        rows: list[Row] = []
        for part in case.labels.parts:
            specimen_key = pseudonymiser.key("specimen", accession, part.part)
            num_parts += 1
            if accession in with_scans:
                label_of[accession, part.part] = replace(part, evidence=())  # which is on disk
            num_not_assessable += part.label == "not_assessable"
            y, reason = _choice(part, part.label, part.finding, policy, rules)
            targets = _targets(part, y, rules)
            if all(value is None for value in targets.values()):
                ledger.add([Loss("part", specimen_key, "policy", "excluded", reason)])
            else:
                num_parts_used += 1
                reason = ""
            rows.append({
                "patient_key": patient_key, "case_key": case_key, "specimen_key": specimen_key,
                "label": part.label, "finding": part.finding or None, "evidence_source": part.evidence_source,
                "rule_id": part.rule_id or None, "exclude_reason": reason or None, "site": part.site,
                "laterality": part.laterality or None, "procedure": part.procedure, "atypia": part.atypia, "num_slides": 0,
                **targets,
            })  # fmt: skip
            evidence.add(
                {"specimen_key": specimen_key, "rule_id": item.rule_id, "term": item.term, "section": item.section,
                 "context": item.context, "version": item.version, "start": item.start, "end": item.end} for item in part.evidence
            )  # fmt: skip
        specimens.add(rows)
        conflicts.add(
            {"specimen_key": pseudonymiser.key("specimen", accession, item.part), "source_a": item.source_a,
             "label_a": item.label_a, "source_b": item.source_b, "label_b": item.label_b, "resolution": item.resolution}
            for item in case.labels.conflicts
        )  # fmt: skip
    return Specimens(label_of=label_of, rows=specimens, conflicts=conflicts, evidence=evidence, num_cases=num_cases,
                     num_cases_used=num_cases_used, num_parts=num_parts, num_parts_used=num_parts_used,
                     num_not_assessable=num_not_assessable)  # fmt: skip


def slide_rows(
    join: SlideJoin, specimens: Specimens, counts: Mapping[str, TileCount], patients: CasePatients, cases: pa.Table,
    pseudonymiser: Pseudonymiser, policy: Policy, rules: Rules, ledger: Ledger,
) -> Iterator[Row]:  # fmt: skip
    """Rows of slides.parquet for joined scans with tissue; what falls out here is added to the ledger."""
    facts_of_case = {row["accession"]: row
                     for row in cases.select(["accession", "client", "signed_at", "accessioned_at"]).to_pylist()}  # fmt: skip
    first_with: dict[str, str] = {}
    for scan in table_rows(join.used):
        slide_key = pseudonymiser.key("slide", scan["slide_id"])
        accession, designator = scan["accession"], scan["part"]
        part = specimens.label_of.get((accession, designator))
        if part is None:
            ledger.add([Loss("slide", slide_key, "label", "failed", "case_or_part_left_out")])
            continue
        if math.isnan(stated_mpp(scan["mpp"]) or 0.0):
            ledger.add([Loss("slide", slide_key, "tiles", "failed", "bad_mpp")])
            continue
        count = counts[slide_key]
        if count.status != "counted":
            ledger.add([Loss("slide", slide_key, "tiles", count.status, count.reason)])
            continue
        original = first_with.setdefault(count.content_hash, slide_key)
        if original != slide_key:
            ledger.add([Loss("slide", slide_key, "tiles", "excluded", "duplicate_content")])
            continue
        block = _block_label(part, scan)
        label, rule_id = (block.label, block.rule_id) if block is not None else (part.label, part.rule_id)
        y, reason = _choice(part, label, "" if block is not None else part.finding, policy, rules)
        targets = _targets(part, y, rules)
        if all(value is None for value in targets.values()):
            ledger.add([Loss("slide", slide_key, "policy", "excluded", reason)])
        else:
            reason = ""
        case = facts_of_case[accession]
        yield {
            "patient_key": patients.find(accession)[0], "case_key": pseudonymiser.key("case", accession),
            "specimen_key": pseudonymiser.key("specimen", accession, designator), "slide_key": slide_key,
            "block_key": pseudonymiser.key("block", accession, designator, scan["block"]) if scan["block"] else None,
            "label": label, "finding": part.finding or None, "label_scope": "block" if block is not None else "part",
            "evidence_source": part.evidence_source, "rule_id": rule_id or None, "exclude_reason": reason or None,
            "site": part.site, "laterality": part.laterality or None, "procedure": part.procedure,
            "stain": scan["stain"], "scanner": scan["scanner"] or count.scanner or None, "centre": case["client"],
            "year": year_of(case["signed_at"] or case["accessioned_at"]), "num_slides_in_part": scan["num_slides_in_part"],
            "width_px": count.width_px, "height_px": count.height_px, "mpp": count.slide_mpp, "num_tiles": count.num_tiles,
            "tissue_mm2": count.tissue_mm2, "content_hash": pseudonymiser.key("content", count.content_hash),
            "duplicate_of": None, "split": None, "weight": 0.0, **targets,
        }  # fmt: skip


def check_gates(
    config: CohortConfig, rules: Rules, join: SlideJoin, specimens: Specimens, usable: pa.Table, slides: pa.Table,
    ledger: Ledger,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The gates with what was measured.

    Raises:
        GateError: one of them is broken.
    """
    known = usable[TARGET_PREFIX + rules.task].drop_null()
    positive = pc.sum(known).as_py() / len(known) if len(known) else None
    num_failed = ledger.num_lost("slide", stage="tiles", status="failed")
    limits = config.gates
    measured = {
        "slides_joined": (join.join_rate, limits.min_slides_joined, 1.0),
        "parts_not_assessable": (specimens.num_not_assessable / max(specimens.num_parts, 1), 0.0,
                                 limits.max_parts_not_assessable),
        "positive_slides": (positive, limits.min_positive, limits.max_positive),
        "slides_failed": (num_failed / max(num_failed + slides.num_rows, 1), 0.0, limits.max_slides_failed),
    }  # fmt: skip
    gates = {
        name: {"value": None if value is None else round(value, 4), "low": low, "high": high,
               "passed": value is None or low <= value <= high}
        for name, (value, low, high) in measured.items()
    }  # fmt: skip
    broken = [f"{name} = {gate['value']} (allowed {gate['low']} to {gate['high']})"
              for name, gate in gates.items() if not gate["passed"]]  # fmt: skip
    if broken:
        raise GateError(
            f"gate broken: {'; '.join(broken)}; nothing was published; look for the cause in "
            f"{ledger.most_frequent()}, or set [ingest.gates]"
        )
    return gates


# Small steps.


def _digest(config: CohortConfig) -> str:
    """Of all that decides the result; the number of workers does not."""
    return config_digest(config.model_copy(update={"num_workers": 1}))


def _targets(part: PartLabel, y: int | None, rules: Rules) -> Row:
    """The target columns of a part: the rules' own task by label and policy, the others as the report states them."""
    values: Row = {TARGET_PREFIX + name: None for name in _target_types(rules)}
    values[TARGET_PREFIX + rules.task] = y
    for target in part.targets:
        values[TARGET_PREFIX + target.task] = target.y
    return values


def _choice(part: PartLabel, label: Label, finding: str, policy: Policy, rules: Rules) -> tuple[int | None, str]:
    """y and the reason of an exclusion; a part of an organ that the rules are not about has no y."""
    sites = rules.file.ruleset.sites
    if sites and part.site not in sites:
        return None, "site_unknown" if part.site == "unknown" else "other_site"
    return policy.y(label, finding, part.atypia)


def _target_types(rules: Rules) -> dict[str, pa.DataType]:
    """Columns by name: the label's own task, and every task that the rules read from results; null = not known."""
    return {rules.task: pa.int8(), **{task: pa.float32() for task in rules.target_tasks}}


def _target_columns(rules: Rules) -> dict[str, pa.DataType]:
    return {TARGET_PREFIX + name: kind for name, kind in _target_types(rules).items()}


def _block_label(part: PartLabel, scan: Row) -> BlockLabel | None:
    """The statement about the very block of this scan, if the report makes one."""
    if scan["label_scope"] != "block" or not scan["block"]:
        return None
    name = block_name(scan["part"], scan["block"])
    return next((block for block in part.blocks if block_name(scan["part"], block.block) == name), None)


def _labelled_blocks(specimens: Specimens) -> list[tuple[str, str, str]]:
    return [(accession, designator, block_name(designator, block.block))
            for (accession, designator), part in specimens.label_of.items() for block in part.blocks]  # fmt: skip


def _all_parts(lis_parts: pa.Table, specimens: Specimens) -> pa.Table:
    """The LIS part list, and for cases with a scan but without a list the parts that the report names."""
    listed = set(lis_parts.column("accession").to_pylist())
    named = [{"accession": accession, "part": designator} for accession, designator in specimens.label_of
             if accession not in listed]  # fmt: skip
    return pa.concat_tables([lis_parts, pa.Table.from_pylist(named, schema=lis_parts.schema)])


def _count(join: SlideJoin, config: CohortConfig, pseudonymiser: Pseudonymiser, vault: Path) -> dict[str, TileCount]:
    files = _slide_files(join, config, pseudonymiser)
    rows = count_tiles(files, config.tiles, vault / TILE_JOURNAL, num_processes=config.num_workers)
    return {row.slide_key: row for row in rows}


def _slide_files(join: SlideJoin, config: CohortConfig, pseudonymiser: Pseudonymiser) -> list[SlideFile]:
    return [
        SlideFile(pseudonymiser.key("slide", row["slide_id"]), str((config.slide_folder / row["path"]).resolve()),
                  stated_mpp(row["mpp"]))
        for row in table_rows(join.used) if not math.isnan(stated_mpp(row["mpp"]) or 0.0)
    ]  # fmt: skip


def stated_mpp(text: str | None) -> float | None:
    """The resolution that the slide list states: None if it states none, NaN if it is no number above 0."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if 0 < value < math.inf else math.nan


def _placed(slides: pa.Table, cohort: Cohort) -> pa.Table:
    """`slides` with the columns split and weight; those that are not usable have neither."""
    is_usable = pc.is_null(slides["exclude_reason"]).to_numpy()
    split, weight = np.full(slides.num_rows, None, dtype=object), np.zeros(slides.num_rows, np.float32)
    split[is_usable] = [part if isinstance(part, str) else None for part in cohort.split]
    weight[is_usable] = cohort.weights
    for name, values in (("split", pa.array(split, pa.string())), ("weight", pa.array(weight))):
        slides = slides.set_column(slides.schema.get_field_index(name), name, values)
    return slides


def _with_slide_counts(specimens: Iterable[pa.RecordBatch], usable: pa.Table) -> Iterator[pa.RecordBatch]:
    """The column `num_slides`: usable scans of each part."""
    num_of_part = Counter(usable["specimen_key"].to_pylist())
    for batch in specimens:
        counts = [num_of_part[key] for key in batch.column("specimen_key").to_pylist()]
        position = batch.schema.get_field_index("num_slides")
        yield batch.set_column(position, batch.schema.field(position), pa.array(counts, pa.int32()))


def _tile_rows(counts: Mapping[str, TileCount], slide_keys: set[str]) -> Iterator[Row]:
    return (
        {"slide_key": key, "width_px": count.width_px, "height_px": count.height_px, "slide_mpp": count.slide_mpp,
         "tile_size_px": count.tile_size_px, "tile_mpp": count.tile_mpp, "num_columns": count.num_columns,
         "num_rows": count.num_rows, "mask": count.mask, "num_tiles": count.num_tiles, "tissue_mm2": count.tissue_mm2,
         "reader": count.reader}
        for key, count in counts.items() if key in slide_keys
    )  # fmt: skip


def _join_losses(join: SlideJoin, pseudonymiser: Pseudonymiser) -> list[Loss]:
    grouped = Counter((pseudonymiser.key("slide", row["slide_id"]), row["status"], row["reason"])
                      for row in table_rows(join.rejected))  # fmt: skip
    return [Loss("slide", key, "join", status, reason, count) for (key, status, reason), count in grouped.items()]


def _source_losses(source: SourceTables, pseudonymiser: Pseudonymiser) -> Iterator[Loss]:
    """Files, messages and rows of the source that are in no table."""
    for entry in source.rejected():
        yield Loss(entry.entity, pseudonymiser.key("row", entry.digest), f"source_{entry.table}", entry.status, entry.reason,
                   entry.count)  # fmt: skip


def _tallies(
    source: SourceTables, specimens: Specimens, num_slides: int, num_usable: int, ledger: Ledger
) -> tuple[Tally, ...]:
    """The ledger, checked: what is used is counted where it is used, never as what is left over. Entities: file, message
    and row of the source; case, part and slide of the cohort."""
    num_kept = sum(count for table, count in source.num_kept.items() if table != "messages")
    num_rows = sum(count for table, count in source.num_rows.items() if table != "messages")
    # Copies and rows without a name were put into a table first and found there.
    tallies = [ledger.balance("row", num_rows, num_kept - ledger.num_lost("row", reasons=FOUND_IN_TABLES)),
               ledger.balance("case", specimens.num_cases, specimens.num_cases_used),
               ledger.balance("part", specimens.num_parts, specimens.num_parts_used),
               ledger.balance("slide", num_slides, num_usable)]  # fmt: skip
    if "messages" in source.num_rows:
        tallies.append(ledger.balance("message", source.num_rows["messages"], source.num_kept["messages"]))
    if num_files := ledger.num_lost("file"):
        tallies.append(ledger.balance("file", num_files, 0))  # of files that could be read only their rows count
    return tuple(tallies)


def _funnel(join: SlideJoin, slides: pa.Table, usable: pa.Table, weights: Iterable[float]) -> list[list[Any]]:
    """Scans left after each step, in the order in which the paper tells its cohort."""
    drawn = sum(weight > 0 for weight in weights)
    return [["scans in the LIS", join.funnel["listed"]], ["with a file", join.funnel["scanned"]],
            ["H&E of fixed tissue", join.funnel["stain"]], ["joined to a part", join.funnel["part"]],
            ["one scan per glass", join.funnel["unique"]], ["readable, with tissue", slides.num_rows],
            ["with a target", usable.num_rows], ["drawn after balancing", drawn]]  # fmt: skip


def _split_counts(usable: pa.Table, cohort: Cohort) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for split, label in zip(cohort.split, usable["label"].to_pylist(), strict=True):
        counts.setdefault(split if isinstance(split, str) else "no split", Counter())[label] += 1
    return {split: dict(sorted(labels.items())) for split, labels in sorted(counts.items())}


def _names_of_scans(scans: pa.Table) -> Iterator[str]:
    return (name for column in ("accession", "barcode") for name in scans[column].to_pylist() if name)


# What an earlier run left.


def _previous_splits(
    manifest: Path, pseudonymiser: Pseudonymiser, groups: PatientGroups, vault: Path, acknowledged: bool
) -> pd.DataFrame | None:
    """Where patients stood in the manifest that will be replaced: they keep their place.

    Raises:
        GateError: patients of different splits have become one since, and `acknowledged` is False.
    """
    fingerprint = pseudonymiser.fingerprint
    if not (manifest / "splits.parquet").exists() or read_footer(manifest, "splits")["key_fingerprint"] != fingerprint:
        return None
    previous: pd.DataFrame = read_table(manifest, "splits").to_pandas()
    holdout = previous[(previous["scheme"] == "holdout") & (previous["fold"] == 0)]
    places = dict(zip(holdout["patient_key"], holdout["split"].astype(str), strict=True))
    merges = late_merges(groups, pseudonymiser, places)
    if merges:
        write_vault_table(vault, "split_changes", split_changes_table(merges))
    require_acknowledged(merges, acknowledged)
    joined = {old: merge.patient_keys[0] for merge in merges for old in merge.patient_keys[1:]}
    return merge_places(previous, joined, acknowledged) if joined else previous


def _write_vault(
    vault: Path, join: SlideJoin, pseudonymiser: Pseudonymiser, provenance: Provenance, config: CohortConfig
) -> None:
    """Crosswalk and locations, before the manifest that needs them is put in place."""
    write_crosswalk(vault, pseudonymiser)
    located = ({"slide_key": pseudonymiser.key("slide", row["slide_id"]),
                "path": str((config.slide_folder / row["path"]).resolve())} for row in table_rows(join.used))  # fmt: skip
    write_table(vault, "locations", table_from_rows("locations", located), provenance)
