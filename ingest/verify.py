"""Can this manifest be trusted? Schema, digests, keys, ledger, splits and leaks, all findings at once.

Reads only the manifest, so that anyone who gets one can check it. Nothing is repaired.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.errors import GateError, ManifestError
from ingest.leakage import Finding, Severity, find_leaks
from ingest.manifest import SCHEMA_VERSION, TABLES, TARGET_PREFIX, content_digest, read_footer
from ingest.split import LABELS_WORST_FIRST, PARTS

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("slides", "specimens", "splits", "quarantine")
OPTIONAL = ("tiles", "conflicts", "evidence", "split_changes")  # an imported cohort has none of them
COMPLETE_SCHEMES = ("holdout", "kfold", "mccv", "site")  # ours place every patient; "paper" and external ones need not
LINKS = (
    "patient_key",
    "case_key",
    "specimen_key",
    "slide_key",
    "content_hash",
    "duplicate_of",
    "split",
    "exclude_reason",
)
VAULT_FILES = ("crosswalk.parquet", "locations.parquet")

Tables = dict[str, pa.Table]


def verify(folder: Path, splits_path: Path | None = None) -> list[Finding]:
    """Everything that is wrong with a manifest, errors first; empty when it is sound.

    Args:
        splits_path: a split table of someone else to check for leaks against the slides of this manifest.
    """
    findings: list[Finding] = []
    tables = _read(folder, findings)
    facts = _read_facts(folder, findings)
    findings += _digests(folder, tables, facts)
    findings += _identity(folder, tables)
    findings += _values(tables)
    findings += _keys(tables)
    findings += _tiles(tables)
    findings += _ledger(tables, facts)
    if {"slides", "splits"} <= tables.keys():
        columns = [name for name in LINKS if name in tables["slides"].column_names]
        links = tables["slides"].select(columns).to_pandas()
        splits = tables["splits"].to_pandas()
        findings += _places(links, splits)
        findings += find_leaks(splits, links)
        findings += _classes(tables["slides"], splits)
        if splits_path is not None:
            from ingest.split_table import verify_split_table

            findings += verify_split_table(splits_path, links)
    return sorted(set(findings))


def require_sound(findings: list[Finding]) -> None:
    """Raises:
    GateError: at least one finding is an error; exit code 4.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
        raise GateError(f"verify: {errors[0].check}: {errors[0].message}{more}")


def _read(folder: Path, findings: list[Finding]) -> Tables:
    tables: Tables = {}
    for name in (*REQUIRED, *OPTIONAL):
        path = folder / f"{name}.parquet"
        if not path.exists():
            if name in REQUIRED:
                findings.append(
                    _error("table", f"{path.name} is missing; build the manifest with `python -m ingest run`")
                )
            continue
        try:
            table = pq.read_table(path)
            table.validate(full=True)
            findings += _schema(name, table)
        except (pa.ArrowException, OSError, ValueError) as error:  # a flipped byte may also spoil the UTF-8 of a name
            findings.append(
                _error("table", f"{path.name} cannot be read ({type(error).__name__}); restore or rebuild it")
            )
            continue
        tables[name] = table
    return {name: table for name, table in tables.items() if _is_whole(name, table)}


def _is_whole(name: str, table: pa.Table) -> bool:
    """Further checks only look at tables that have their columns; the fault is told already."""
    return set(TABLES[name].names) <= set(table.column_names)


def _schema(name: str, table: pa.Table) -> list[Finding]:
    findings = []
    for field in TABLES[name]:
        if field.name not in table.column_names:
            findings.append(_error("schema", f"{name}.parquet lacks the column {field.name}; rebuild it"))
            continue
        column = table.column(field.name)
        if not column.type.equals(field.type):
            findings.append(
                _error("schema", f"{name}.parquet: {field.name} is {column.type}, not {field.type}; rebuild it")
            )
        if column.null_count and not field.nullable:
            findings.append(
                _error(
                    "schema",
                    f"{name}.parquet: {field.name} is empty in {column.null_count} of "
                    f"{table.num_rows} rows; rebuild it",
                )
            )
    return findings


def _read_facts(folder: Path, findings: list[Finding]) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        return facts
    except (OSError, ValueError) as error:
        findings.append(_error("table", f"dataset.json cannot be read ({type(error).__name__}); restore or rebuild it"))
        return {}


def _digests(folder: Path, tables: Tables, facts: dict[str, Any]) -> list[Finding]:
    findings = []
    footers = {}
    for name, table in tables.items():
        try:
            footers[name] = footer = read_footer(folder, name)
        except (ManifestError, UnicodeDecodeError) as error:
            findings.append(
                _error("footer", f"{name}.parquet has no readable footer ({type(error).__name__}); rebuild it")
            )
            continue
        if footer["schema_version"].split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            findings.append(
                _error(
                    "schema",
                    f"{name}.parquet has schema {footer['schema_version']}, this code reads "
                    f"{SCHEMA_VERSION}; rebuild it",
                )
            )
        digest = content_digest(table)
        if footer.get("content_digest") != digest or footer.get("num_rows") != str(table.num_rows):
            findings.append(_error("digest", f"{name}.parquet was changed after it was written; restore or rebuild it"))
        if facts and facts.get("content_digests", {}).get(name) != digest:
            findings.append(_error("digest", f"{name}.parquet is not the one that dataset.json describes; rebuild"))
    for key in ("key_fingerprint", "config_digest", "rules_digest", "policy_digest"):
        if len({footer.get(key) for footer in footers.values()}) > 1:
            findings.append(
                _error("provenance", f"the tables differ in {key}; they are not of one run: rebuild them together")
            )
    return findings


def _identity(folder: Path, tables: Tables) -> list[Finding]:
    return [
        _error("privacy", f"{name} lies in the manifest; it belongs in the vault: move it away before sharing")
        for name in VAULT_FILES
        if (folder / name).exists()
    ]


def _values(tables: Tables) -> list[Finding]:
    findings = []
    for name in ("slides", "specimens"):
        if name in tables:
            unknown = set(pc.unique(_words(tables[name], "label")).to_pylist()) - set(LABELS_WORST_FIRST)
            if unknown:
                findings.append(
                    _error(
                        "value",
                        f"{name}.parquet has {len(unknown)} labels that are not among {', '.join(LABELS_WORST_FIRST)}",
                    )
                )
    if "slides" in tables:
        weights = tables["slides"].column("weight").to_numpy()
        if not (np.isfinite(weights) & (weights >= 0)).all():
            findings.append(_error("value", "slides.parquet: weights must be 0 or above"))
        split = set(pc.unique(_words(tables["slides"], "split")).to_pylist()) - {None, *PARTS}
        if split:
            findings.append(_error("value", f"slides.parquet: split must be one of {', '.join(PARTS)}"))
    if "splits" in tables and set(pc.unique(_words(tables["splits"], "split")).to_pylist()) - set(PARTS):
        findings.append(_error("value", f"splits.parquet: split must be one of {', '.join(PARTS)}"))
    return findings


def _keys(tables: Tables) -> list[Finding]:
    findings = []
    for name, key in (("slides", "slide_key"), ("specimens", "specimen_key"), ("tiles", "slide_key")):
        if name in tables and (num_extra := tables[name].num_rows - _num_distinct(tables[name], key)):
            findings.append(_error("key", f"{name}.parquet: {num_extra} rows repeat a {key}"))
    for name in ("slides", "specimens"):
        for child, parent in (("specimen_key", "case_key"), ("case_key", "patient_key")):
            if name in tables and (
                num_torn := _num_distinct(tables[name], child, parent) - _num_distinct(tables[name], child)
            ):
                findings.append(_error("key", f"{name}.parquet: {num_torn} times a {child} belongs to two of {parent}"))
    if {"slides", "specimens"} <= tables.keys():
        columns = ["specimen_key", "case_key", "patient_key"]
        known = _num_distinct(tables["specimens"], *columns)
        both = pa.concat_tables([tables[name].select(columns) for name in ("specimens", "slides")])
        if num_unknown := _num_distinct(both, *columns) - known:
            findings.append(_error("key", f"{num_unknown} specimens of slides.parquet are not so in specimens.parquet"))
    return findings


def _tiles(tables: Tables) -> list[Finding]:
    if "slides" not in tables or "tiles" not in tables:
        return []
    findings = []
    tiles, slides = tables["tiles"], tables["slides"]
    masks = tiles.column("mask").combine_chunks()
    num_cells = tiles.column("num_columns").to_numpy().astype(np.int64) * tiles.column("num_rows").to_numpy()
    lengths = pc.binary_length(masks).to_numpy(zero_copy_only=False).astype(np.int64)
    if (lengths != -(-num_cells // 8)).any():
        findings.append(_error("tiles", f"{int((lengths != -(-num_cells // 8)).sum())} masks do not fit their grid"))
    num_tiles = tiles.column("num_tiles").to_numpy()
    if num_wrong := int((_num_set_bits(masks, lengths) != num_tiles).sum()):
        findings.append(_error("tiles", f"{num_wrong} slides have another num_tiles than their mask has tiles"))
    stride = (
        tiles.column("tile_size_px").to_numpy()
        * tiles.column("tile_mpp").to_numpy()
        / tiles.column("slide_mpp").to_numpy()
    )
    for side, count in (("width_px", "num_columns"), ("height_px", "num_rows")):
        fitting = np.floor(tiles.column(side).to_numpy() / stride + 1e-9)  # as TileGrid counts
        if num_wrong := int((fitting != tiles.column(count).to_numpy()).sum()):
            findings.append(_error("tiles", f"{num_wrong} slides have another {count} than their size gives"))
    position = pc.index_in(slides.column("slide_key"), value_set=tiles.column("slide_key").combine_chunks())
    counted = position.is_valid().combine_chunks().to_numpy(zero_copy_only=False)
    if (num_strangers := tiles.num_rows - int(counted.sum())) > 0:
        findings.append(_error("tiles", f"{num_strangers} rows of tiles.parquet are of no slide in slides.parquet"))
    stated = slides.column("num_tiles").fill_null(-1).to_numpy()
    actual = np.full(slides.num_rows, -1, dtype=np.int64)
    actual[counted] = num_tiles[position.drop_null().to_numpy()]
    if num_wrong := int((stated != actual).sum()):
        findings.append(
            _error("tiles", f"{num_wrong} slides have another num_tiles in slides.parquet than in tiles.parquet")
        )
    return findings


def _num_set_bits(masks: pa.Array, lengths: "np.ndarray[Any, np.dtype[np.int64]]") -> Any:
    if not len(masks) or masks.buffers()[2] is None:
        return np.zeros(len(masks), dtype=np.int64)
    offsets = np.frombuffer(masks.buffers()[1], dtype=np.int32)[masks.offset : masks.offset + len(masks) + 1].astype(
        np.int64
    )
    bits = np.bitwise_count(np.frombuffer(masks.buffers()[2], dtype=np.uint8)[: offsets[-1]])
    sums = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)])
    return sums[offsets[1:]] - sums[offsets[:-1]]


def _ledger(tables: Tables, facts: dict[str, Any]) -> list[Finding]:
    if not facts:
        return []
    if "ledger" not in facts:
        return [_error("ledger", "dataset.json has no ledger; rebuild the manifest")]
    findings = []
    for entity, row in facts["ledger"].items():
        left_out = sum(row["left_out"].values())
        if row["in"] != row["used"] + left_out:
            findings.append(
                _error(
                    "ledger",
                    f"{entity}: {row['in']} in, {row['used']} used, {left_out} left out; the sums "
                    "do not add up: rebuild the manifest",
                )
            )
        if "quarantine" in tables and (counted := _num_lost(tables["quarantine"], entity)) != row["left_out"]:
            findings.append(
                _error(
                    "ledger",
                    f"{entity}: quarantine.parquet lists {sum(counted.values())} left out, "
                    f"dataset.json {left_out}, or for other reasons; rebuild the manifest",
                )
            )
    used = facts["ledger"].get("slide", {}).get("used")
    if "slides" in tables and used is not None:
        num_slides = tables["slides"].num_rows
        num_with_target = tables["slides"].column("exclude_reason").null_count
        if used not in (num_slides, num_with_target):
            findings.append(
                _error("ledger", f"slide: {used} used, but slides.parquet has {num_slides} rows; rebuild it")
            )
    failed = [
        name for name, gate in facts.get("gates", {}).items() if isinstance(gate, dict) and not gate.get("passed", True)
    ]
    findings += [_error("gate", f"{name} did not hold when the manifest was built") for name in failed]
    return findings


def _num_lost(quarantine: pa.Table, entity: str) -> dict[str, int]:
    rows = quarantine.filter(pc.equal(_words(quarantine, "entity"), entity))
    reasons = pc.binary_join_element_wise(_words(rows, "stage"), _words(rows, "reason"), "/")
    sums = pa.table({"reason": reasons, "count": rows.column("count")}).group_by("reason").aggregate([("count", "sum")])
    return dict(zip(sums.column("reason").to_pylist(), sums.column("count_sum").to_pylist(), strict=True))


def _places(slides: "pd.DataFrame", splits: "pd.DataFrame") -> list[Finding]:
    from ingest.split import default_split

    findings = []
    slides = slides[slides["exclude_reason"].isna()]  # an excluded slide needs no place, nor does its patient
    patients = slides["patient_key"].drop_duplicates()
    is_known = splits["patient_key"].isin(patients)
    if num_strangers := splits["patient_key"][~is_known].nunique():
        findings.append(Finding("warning", "split", f"splits.parquet places {num_strangers} patients without slides"))
    placed = splits[is_known].drop_duplicates(["scheme", "fold", "patient_key"])
    counts = placed.groupby(["scheme", "fold"], observed=True).size().rename("num_placed").reset_index()
    for row in counts.itertuples(index=False):
        if row.num_placed != len(patients):
            severity: Severity = "error" if str(row.scheme).startswith(COMPLETE_SCHEMES) else "warning"
            findings.append(
                Finding(
                    severity,
                    "split",
                    f"split {row.scheme} fold {row.fold} places {row.num_placed} of {len(patients)} patients",
                )
            )
    if len(splits) and not splits.duplicated(["scheme", "fold", "patient_key"]).any():
        expected = default_split(slides, splits)
        stated = slides["split"].astype("object")
        if num_wrong := int((stated.fillna("") != expected.fillna("")).sum()):
            findings.append(
                _error("split", f"{num_wrong} slides have another split in slides.parquet than in splits.parquet")
            )
    return findings


def _classes(slides: pa.Table, splits: "pd.DataFrame") -> list[Finding]:
    """A part without one of the classes: AUROC cannot be computed there."""
    findings = []
    for target in (name for name in slides.column_names if name.startswith(TARGET_PREFIX)):
        if not pa.types.is_integer(slides.column(target).type):
            continue
        labelled = slides.select(["patient_key", target]).to_pandas().dropna().drop_duplicates()
        classes = labelled[target].unique()
        seen = (
            splits.merge(labelled, on="patient_key")
            .groupby(["scheme", "fold", "split"], observed=True)[target]
            .nunique()
        )
        for (scheme, fold, part), num_classes in seen.items():
            if num_classes < len(classes):
                findings.append(
                    Finding(
                        "warning",
                        "class",
                        f"split {scheme} fold {fold}: {part} lacks "
                        f"{len(classes) - num_classes} of {len(classes)} classes of {target}",
                    )
                )
    return findings


def _num_distinct(table: pa.Table, *columns: str) -> int:
    return int(table.select(list(columns)).group_by(list(columns)).aggregate([]).num_rows)


def _words(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table.column(name).cast(pa.string())


def _error(check: str, message: str) -> Finding:
    return Finding("error", check, message)
