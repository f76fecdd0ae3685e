"""`python -m ingest run`: from LIS records and slide files to a published manifest, top to bottom.

read -> identify -> label -> join -> count tiles -> policy -> split and balance -> check -> publish. Every row that a stage
drops becomes a `Loss`; nothing is published unless the ledger adds up, the gates hold and no identifier is found in what
would be written. A rerun takes over the tile counts that are done and the places of patients in earlier splits.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ingest.atomic import atomic_folder, recover_folder
from ingest.balance import plan_cohort
from ingest.card import write_card
from ingest.case import BlockLabel, Label, PartLabel
from ingest.cohort import CohortConfig
from ingest.config import config_digest
from ingest.deidentify import (
    Pseudonymiser,
    open_pseudonymiser,
    open_vault,
    read_vault_table,
    write_vault_table,
    year_of,
)
from ingest.errors import GateError, InputError
from ingest.identity import (
    PatientGroups,
    late_merges,
    patient_groups,
    patient_keys,
    require_acknowledged,
    split_changes_table,
)
from ingest.join import SlideJoin, block_name, join_slides
from ingest.ledger import Loss, Tally, balance, facts, quarantine_rows
from ingest.manifest import (
    TARGET_PREFIX,
    Provenance,
    TableBuilder,
    read_footer,
    read_table,
    table_from_rows,
    write_dataset_card,
    write_table,
)
from ingest.policy import Policy
from ingest.privacy import crosswalk_identifiers, identifier_index, require_clean
from ingest.progress import track
from ingest.rulefile import Rules, load_rules
from ingest.source.read import read_source
from ingest.source.tables import SourceTables
from ingest.specimens import label_records
from ingest.split import merge_places
from ingest.tiles import SlideFile, TileCount, count_tiles

TILE_JOURNAL = "tile_counts.jsonl"  # in the vault: counts that are done, whatever becomes of the run
Part = tuple[str, str]  # accession and designator: never leaves this module
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimens:
    """The labelled parts: three tables, and what the join and the ledger need to know about them.

    Attributes:
        label_of: of the cases that have a scan; all others are only in the tables.
        table: rows of specimens.parquet, `num_slides` still 0.
    """

    label_of: Mapping[Part, PartLabel]
    table: pa.Table
    conflicts: pa.Table
    evidence: pa.Table
    losses: list[Loss]
    num_cases: int
    num_parts: int
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
    crosswalk = read_vault_table(vault, "crosswalk")
    pseudonymiser = open_pseudonymiser(config.deidentify, Path(), crosswalk)
    with read_source(config.source, config.source_folder, vault) as source:
        groups = patient_groups(source.patients, source.cases, config.identity)
        known_keys = _known_patient_keys(crosswalk)
        previous = _previous_splits(manifest, pseudonymiser.fingerprint, groups, known_keys, vault, acknowledge_merges)
        keys = patient_keys(groups, pseudonymiser, known_keys)
        patient_of = {accession: keys[group] for accession, group in groups.group_of_case.items()}
        specimens = label_specimens(source, patient_of, groups, rules, pseudonymiser, config)
        join = join_slides(source.slides, source.cases, _all_parts(source.parts, specimens), source.blocks, config.join,
                           _labelled_blocks(specimens))  # fmt: skip
        counts = _count(join, config, pseudonymiser, vault)
        losses = [*specimens.losses, *_join_losses(join, pseudonymiser)]
        cases = _case_facts(source, join)
        slides = slide_rows(
            join, specimens, counts, patient_of, cases, pseudonymiser, config.labels.policy, rules, losses
        )
        num_slides, snapshot_at = source.slides.num_rows, source.snapshot_at
        named_by_slides = [
            name for column in ("accession", "barcode") for name in source.slides[column].to_pylist() if name
        ]
        tallies = _tallies(source, specimens, slides, losses, num_slides, pseudonymiser)
    provenance = Provenance(config_digest=_digest(config), rules_digest=rules.digest,
                            policy_digest=config_digest(config.labels.policy), key_fingerprint=pseudonymiser.fingerprint,
                            snapshot_at=snapshot_at)  # fmt: skip
    usable = [row for row in slides if row["exclude_reason"] is None]
    if not usable:
        raise InputError(
            f"cohort: no slide is left with tiles and a target ({_top_losses(losses)}); see the reasons above"
        )
    cohort = plan_cohort(pd.DataFrame(usable), config.split, config.balance, previous)
    for row, split, weight in zip(usable, cohort.split, cohort.weights, strict=True):
        row["split"], row["weight"] = split if isinstance(split, str) else None, float(weight)
    gates = check_gates(config, rules, join, specimens, usable, slides, tallies)
    targets = {TARGET_PREFIX + name: kind for name, kind in _target_types(rules).items()}
    with atomic_folder(manifest) as folder:
        digests = {
            name: write_table(folder, name, table, provenance)
            for name, table in {
                "slides": table_from_rows("slides", slides, targets),
                "tiles": table_from_rows("tiles", _tile_rows(counts, {row["slide_key"] for row in slides})),
                "specimens": _with_slide_counts(specimens.table, usable),
                "splits": pa.Table.from_pandas(cohort.splits, preserve_index=False),
                "quarantine": table_from_rows("quarantine", quarantine_rows(tallies)),
                "conflicts": specimens.conflicts,
                "evidence": specimens.evidence,
            }.items()
        }
        write_dataset_card(folder, provenance, digests, {
            "ledger": facts(tallies), "funnel": _funnel(join, slides, usable, cohort.weights), "cohort": cohort.facts,
            "gates": gates, "tasks": sorted(_target_types(rules)),
        })  # fmt: skip
        write_card(folder)
        names = [*crosswalk_identifiers(pseudonymiser.crosswalk()), *named_by_slides]
        identifiers = identifier_index(names, config.privacy)
        require_clean(folder, identifiers, config.privacy)
        _write_vault(vault, join, pseudonymiser, provenance, config)
    return Summary(manifest=manifest, tallies=tallies, gates=gates, counts=_split_counts(usable))


# The stages.


def count_only(config: CohortConfig, executor: str = "") -> list[TileCount]:
    """Count the tiles of every scan that the LIS joins to a part, and remember them in the vault: `run` takes them over.

    For cohorts whose slides take hours: it can be stopped and started again, and spread over a Dask cluster.

    Args:
        executor: see `count_tiles`.
    """
    vault = open_vault(config.output.vault, config.output.manifest)
    pseudonymiser = open_pseudonymiser(config.deidentify, Path(), read_vault_table(vault, "crosswalk"))
    with read_source(config.source, config.source_folder, vault) as source:
        join = join_slides(source.slides, source.cases, source.parts, source.blocks, config.join)
    files = _slide_files(join, config, pseudonymiser)
    write_vault_table(vault, "crosswalk", pseudonymiser.crosswalk())  # random keys must be the same next time
    return count_tiles(files, config.tiles, vault / TILE_JOURNAL, executor, config.num_workers)


def label_specimens(
    source: SourceTables, patient_of: Mapping[str, str], groups: PatientGroups, rules: Rules,
    pseudonymiser: Pseudonymiser, config: CohortConfig,
) -> Specimens:  # fmt: skip
    """Label every part of every case whose patient is known."""
    policy = config.labels.policy
    unresolved = {entry.accession: entry.reason for entry in groups.rejected if entry.accession is not None}
    with_scans = set(source.slides.column("accession").to_pylist())
    label_of: dict[Part, PartLabel] = {}
    targets_of = {TARGET_PREFIX + name: kind for name, kind in _target_types(rules).items()}
    specimens, conflicts, evidence = (
        TableBuilder("specimens", targets_of),
        TableBuilder("conflicts"),
        TableBuilder("evidence"),
    )
    losses: list[Loss] = []
    num_cases = num_parts = num_not_assessable = 0
    labelled = label_records(source.case_records(), config.labels.rules, config.num_workers)
    for case in track(labelled, source.cases.num_rows, "reading reports"):
        num_cases += 1
        accession = case.accession
        case_key = pseudonymiser.key("case", accession)
        if (
            reason := unresolved.get(accession)
            or case.reason
            or ("" if accession in patient_of else "patient_unresolved")
        ):
            stage = "label" if reason == case.reason else "identity"
            losses.append(Loss("case", case_key, stage, "failed", reason))
            continue
        for part in case.labels.parts:
            specimen_key = pseudonymiser.key("specimen", accession, part.part)
            num_parts += 1
            if accession in with_scans:
                label_of[accession, part.part] = part
            num_not_assessable += part.label == "not_assessable"
            y, reason = _choice(part, part.label, part.finding, policy, rules)
            targets = _targets(part, y, rules)
            if all(value is None for value in targets.values()):
                losses.append(Loss("part", specimen_key, "policy", "excluded", reason))
            else:
                reason = ""
            specimens.add([{
                "patient_key": patient_of[accession], "case_key": case_key, "specimen_key": specimen_key,
                "label": part.label, "finding": part.finding or None, "evidence_source": part.evidence_source,
                "rule_id": part.rule_id or None, "exclude_reason": reason or None, "site": part.site,
                "laterality": part.laterality or None, "procedure": part.procedure, "atypia": part.atypia, "num_slides": 0,
                **targets,
            }])  # fmt: skip
            evidence.add(
                {"specimen_key": specimen_key, "rule_id": item.rule_id, "term": item.term, "section": item.section,
                 "context": item.context, "version": item.version, "start": item.start, "end": item.end} for item in part.evidence
            )  # fmt: skip
        conflicts.add(
            {"specimen_key": pseudonymiser.key("specimen", accession, item.part), "source_a": item.source_a,
             "label_a": item.label_a, "source_b": item.source_b, "label_b": item.label_b, "resolution": item.resolution}
            for item in case.labels.conflicts
        )  # fmt: skip
    return Specimens(label_of=label_of, table=specimens.table(), conflicts=conflicts.table(), evidence=evidence.table(),
                     losses=losses, num_cases=num_cases, num_parts=num_parts,
                     num_not_assessable=num_not_assessable)  # fmt: skip


def slide_rows(
    join: SlideJoin, specimens: Specimens, counts: Mapping[str, TileCount], patient_of: Mapping[str, str],
    cases: Mapping[str, Row], pseudonymiser: Pseudonymiser, policy: Policy, rules: Rules, losses: list[Loss],
) -> list[Row]:  # fmt: skip
    """Rows of slides.parquet for joined scans with tissue; what falls out here is added to `losses`."""
    rows: list[Row] = []
    first_with: dict[str, str] = {}
    for scan in join.used.to_pylist():
        slide_key = pseudonymiser.key("slide", scan["slide_id"])
        accession, designator = scan["accession"], scan["part"]
        part = specimens.label_of.get((accession, designator))
        if part is None:
            losses.append(Loss("slide", slide_key, "label", "failed", "case_or_part_left_out"))
            continue
        if math.isnan(stated_mpp(scan["mpp"]) or 0.0):
            losses.append(Loss("slide", slide_key, "tiles", "failed", "bad_mpp"))
            continue
        count = counts[slide_key]
        if count.status != "counted":
            losses.append(Loss("slide", slide_key, "tiles", count.status, count.reason))
            continue
        original = first_with.setdefault(count.content_hash, slide_key)
        if original != slide_key:
            losses.append(Loss("slide", slide_key, "tiles", "excluded", "duplicate_content"))
            continue
        block = _block_label(part, scan)
        label, rule_id = (block.label, block.rule_id) if block is not None else (part.label, part.rule_id)
        y, reason = _choice(part, label, "" if block is not None else part.finding, policy, rules)
        targets = _targets(part, y, rules)
        if all(value is None for value in targets.values()):
            losses.append(Loss("slide", slide_key, "policy", "excluded", reason))
        else:
            reason = ""
        case = cases[accession]
        rows.append({
            "patient_key": patient_of[accession], "case_key": pseudonymiser.key("case", accession),
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
        })  # fmt: skip
    return rows


def check_gates(
    config: CohortConfig, rules: Rules, join: SlideJoin, specimens: Specimens, usable: list[Row], slides: list[Row],
    tallies: Iterable[Tally],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The gates with what was measured.

    Raises:
        GateError: one of them is broken.
    """
    column = TARGET_PREFIX + rules.task
    known = [row[column] for row in usable if row[column] is not None]
    positive = sum(known) / len(known) if known else None
    num_failed = sum(loss.count for tally in tallies if tally.entity == "slide" for loss in tally.losses
                     if loss.stage == "tiles" and loss.status == "failed")  # fmt: skip
    limits = config.gates
    measured = {
        "slides_joined": (join.join_rate, limits.min_slides_joined, 1.0),
        "parts_not_assessable": (specimens.num_not_assessable / max(specimens.num_parts, 1), 0.0,
                                 limits.max_parts_not_assessable),
        "positive_slides": (positive, limits.min_positive, limits.max_positive),
        "slides_failed": (num_failed / max(num_failed + len(slides), 1), 0.0, limits.max_slides_failed),
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
            f"{_top_losses(loss for tally in tallies for loss in tally.losses)}, or set [ingest.gates]"
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


def _case_facts(source: SourceTables, join: SlideJoin) -> dict[str, Row]:
    """What slides.parquet says of a case, for cases with a scan: facility and year."""
    wanted = set(join.used.column("accession").to_pylist())
    columns = source.cases.select(["accession", "client", "signed_at", "accessioned_at"])
    return {row["accession"]: row for batch in columns.to_batches() for row in batch.to_pylist()
            if row["accession"] in wanted}  # fmt: skip


def _count(join: SlideJoin, config: CohortConfig, pseudonymiser: Pseudonymiser, vault: Path) -> dict[str, TileCount]:
    files = _slide_files(join, config, pseudonymiser)
    rows = count_tiles(files, config.tiles, vault / TILE_JOURNAL, num_processes=config.num_workers)
    return {row.slide_key: row for row in rows}


def _slide_files(join: SlideJoin, config: CohortConfig, pseudonymiser: Pseudonymiser) -> list[SlideFile]:
    return [
        SlideFile(pseudonymiser.key("slide", row["slide_id"]), str((config.slide_folder / row["path"]).resolve()),
                  stated_mpp(row["mpp"]))
        for row in join.used.to_pylist() if not math.isnan(stated_mpp(row["mpp"]) or 0.0)
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


def _with_slide_counts(specimens: pa.Table, usable: list[Row]) -> pa.Table:
    """The column `num_slides`: usable scans of each part."""
    num_of_part = Counter(row["specimen_key"] for row in usable)
    counts = [num_of_part[key] for key in specimens.column("specimen_key").to_pylist()]
    column = specimens.column_names.index("num_slides")
    return specimens.set_column(column, specimens.schema.field(column), pa.array(counts, pa.int32()))


def _tile_rows(counts: Mapping[str, TileCount], slide_keys: set[str]) -> list[Row]:
    return [
        {"slide_key": key, "width_px": count.width_px, "height_px": count.height_px, "slide_mpp": count.slide_mpp,
         "tile_size_px": count.tile_size_px, "tile_mpp": count.tile_mpp, "num_columns": count.num_columns,
         "num_rows": count.num_rows, "mask": count.mask, "num_tiles": count.num_tiles, "tissue_mm2": count.tissue_mm2,
         "reader": count.reader}
        for key, count in counts.items() if key in slide_keys
    ]  # fmt: skip


def _join_losses(join: SlideJoin, pseudonymiser: Pseudonymiser) -> list[Loss]:
    grouped = Counter((pseudonymiser.key("slide", row["slide_id"]), row["status"], row["reason"])
                      for row in join.rejected.to_pylist())  # fmt: skip
    return [Loss("slide", key, "join", status, reason, count) for (key, status, reason), count in grouped.items()]


def _tallies(
    source: SourceTables, specimens: Specimens, slides: list[Row], losses: list[Loss], num_slides: int,
    pseudonymiser: Pseudonymiser,
) -> tuple[Tally, ...]:  # fmt: skip
    """The ledger, checked. Entities: file, message and row of the source; case, part and slide of the cohort."""
    rejected = [Loss(entry.entity, pseudonymiser.key("row", entry.digest), f"source_{entry.table}", entry.status,
                     entry.reason, entry.count) for entry in source.rejected]  # fmt: skip
    num_rows = sum(count for table, count in source.num_rows.items() if table != "messages")
    num_lost = Counter(dict.fromkeys(("row", "message", "file"), 0))
    for loss in rejected:
        num_lost[loss.entity] += loss.count
    num_cases_lost = sum(loss.count for loss in losses if loss.entity == "case")
    num_parts_lost = sum(loss.count for loss in losses if loss.entity == "part")
    num_usable = sum(row["exclude_reason"] is None for row in slides)
    tallies = [balance("row", num_rows, num_rows - num_lost["row"], rejected),
               balance("case", specimens.num_cases, specimens.num_cases - num_cases_lost, losses),
               balance("part", specimens.num_parts, specimens.num_parts - num_parts_lost, losses),
               balance("slide", num_slides, num_usable, losses)]  # fmt: skip
    if "messages" in source.num_rows:
        num_messages = source.num_rows["messages"]
        tallies.append(balance("message", num_messages, num_messages - num_lost["message"], rejected))
    if num_lost["file"]:
        tallies.append(balance("file", num_lost["file"], 0, rejected))
    return tuple(tallies)


def _funnel(join: SlideJoin, slides: list[Row], usable: list[Row], weights: Iterable[float]) -> list[list[Any]]:
    """Scans left after each step, in the order in which the paper tells its cohort."""
    drawn = sum(weight > 0 for weight in weights)
    return [["scans in the LIS", join.funnel["listed"]], ["with a file", join.funnel["scanned"]],
            ["H&E of fixed tissue", join.funnel["stain"]], ["joined to a part", join.funnel["part"]],
            ["one scan per glass", join.funnel["unique"]], ["readable, with tissue", len(slides)],
            ["with a target", len(usable)], ["drawn after balancing", drawn]]  # fmt: skip


def _split_counts(usable: list[Row]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in usable:
        counts.setdefault(row["split"] or "no split", Counter())[row["label"]] += 1
    return {split: dict(sorted(labels.items())) for split, labels in sorted(counts.items())}


def _top_losses(losses: Iterable[Loss]) -> str:
    counts: Counter[str] = Counter()
    for loss in losses:
        counts[f"{loss.entity} {loss.reason}"] += loss.count
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(4)) or "nothing was left out"


# What an earlier run left.


def _known_patient_keys(crosswalk: pa.Table | None) -> dict[str, str]:
    if crosswalk is None:
        return {}
    return {row["identifier"]: row["key"] for row in crosswalk.to_pylist() if row["domain"] == "patient"}


def _previous_splits(
    manifest: Path,
    fingerprint: str,
    groups: PatientGroups,
    known_keys: Mapping[str, str],
    vault: Path,
    acknowledged: bool,
) -> pd.DataFrame | None:
    """Where patients stood in the manifest that will be replaced: they keep their place.

    Raises:
        GateError: patients of different splits have become one since, and `acknowledged` is False.
    """
    if not (manifest / "splits.parquet").exists() or read_footer(manifest, "splits")["key_fingerprint"] != fingerprint:
        return None
    previous: pd.DataFrame = read_table(manifest, "splits").to_pandas()
    holdout = previous[(previous["scheme"] == "holdout") & (previous["fold"] == 0)]
    places = dict(zip(holdout["patient_key"], holdout["split"].astype(str), strict=True))
    merges = late_merges(groups, known_keys, places)
    if merges:
        write_vault_table(vault, "split_changes", split_changes_table(merges))
    require_acknowledged(merges, acknowledged)
    joined = {old: merge.patient_keys[0] for merge in merges for old in merge.patient_keys[1:]}
    return merge_places(previous, joined, acknowledged) if joined else previous


def _write_vault(
    vault: Path, join: SlideJoin, pseudonymiser: Pseudonymiser, provenance: Provenance, config: CohortConfig
) -> None:
    """Crosswalk and locations, before the manifest that needs them is put in place."""
    write_vault_table(vault, "crosswalk", pseudonymiser.crosswalk())
    located = [{"slide_key": pseudonymiser.key("slide", row["slide_id"]),
                "path": str((config.slide_folder / row["path"]).resolve())} for row in join.used.to_pylist()]  # fmt: skip
    write_table(vault, "locations", table_from_rows("locations", located), provenance)
