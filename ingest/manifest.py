"""The manifest on disk: Parquet tables whose footers say what made them, checked on write and on read.

Same rows, configuration and key give the same bytes: rows are sorted by their keys, nothing in a footer is a clock time
of the run. `manifests/README.md` explains every column.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.atomic import atomic_file
from ingest.errors import ManifestError

SCHEMA_VERSION = "1.0"  # readers refuse another major number; a minor number adds nullable columns
ROW_GROUP_SIZE = 128 * 1024
TARGET_PREFIX = "y_"  # a target column; null means not known and is masked in the loss, never "negative"

_WORD = pa.dictionary(pa.int32(), pa.string())


def _key(name: str) -> pa.Field:
    return pa.field(name, pa.string(), nullable=False)


def _words(*names: str) -> list[pa.Field]:
    return [pa.field(name, _WORD) for name in names]


def _required_words(*names: str) -> list[pa.Field]:
    return [pa.field(name, _WORD, nullable=False) for name in names]


TABLES: dict[str, pa.Schema] = {
    "slides": pa.schema(
        [
            *(_key(name) for name in ("patient_key", "case_key", "specimen_key", "slide_key")),
            pa.field("block_key", pa.string()),
            *_required_words("label"),
            *_words("finding", "label_scope", "evidence_source", "rule_id", "exclude_reason"),
            *_words("site", "laterality", "procedure", "stain", "scanner", "centre"),
            pa.field("year", pa.int16()),
            pa.field("num_slides_in_part", pa.int32()),
            pa.field("width_px", pa.int64()),
            pa.field("height_px", pa.int64()),
            pa.field("mpp", pa.float64()),
            pa.field("num_tiles", pa.int32()),
            pa.field("tissue_mm2", pa.float32()),
            pa.field("content_hash", pa.string()),
            pa.field("duplicate_of", pa.string()),
            *_words("split"),
            pa.field("weight", pa.float32(), nullable=False),
        ]
    ),
    "tiles": pa.schema(
        [
            _key("slide_key"),
            pa.field("width_px", pa.int64(), nullable=False),
            pa.field("height_px", pa.int64(), nullable=False),
            pa.field("slide_mpp", pa.float64(), nullable=False),
            pa.field("tile_size_px", pa.int32(), nullable=False),
            pa.field("tile_mpp", pa.float64(), nullable=False),
            pa.field("num_columns", pa.int32(), nullable=False),
            pa.field("num_rows", pa.int32(), nullable=False),
            pa.field("mask", pa.binary(), nullable=False),
            pa.field("num_tiles", pa.int32(), nullable=False),
            pa.field("tissue_mm2", pa.float32(), nullable=False),
            *_required_words("reader"),
        ]
    ),
    "specimens": pa.schema(
        [
            *(_key(name) for name in ("patient_key", "case_key", "specimen_key")),
            *_required_words("label"),
            *_words("finding", "evidence_source", "rule_id", "exclude_reason"),
            *_words("site", "laterality", "procedure"),
            pa.field("atypia", pa.bool_(), nullable=False),
            pa.field("num_slides", pa.int32(), nullable=False),
        ]
    ),
    "splits": pa.schema(
        [
            _key("patient_key"),
            *_required_words("scheme"),
            pa.field("fold", pa.int16(), nullable=False),
            *_required_words("split"),
        ]
    ),
    "quarantine": pa.schema(
        [
            *_required_words("entity"),
            _key("key"),
            *_required_words("stage", "status", "reason"),
            pa.field("count", pa.int64(), nullable=False),
        ]
    ),
    "conflicts": pa.schema(
        [
            _key("specimen_key"),
            *_required_words("source_a", "label_a", "source_b", "label_b", "resolution"),
        ]
    ),
    "evidence": pa.schema(
        [
            _key("specimen_key"),
            *_required_words("rule_id", "term", "section", "context"),
            pa.field("version", pa.int32(), nullable=False),
            pa.field("start", pa.int32(), nullable=False),
            pa.field("end", pa.int32(), nullable=False),
        ]
    ),
    "split_changes": pa.schema(
        [
            _key("patient_key"),
            *_required_words("old_split"),
            _key("merged_into_key"),
            *_words("new_split"),
        ]
    ),
    # In the vault, never in the manifest:
    "locations": pa.schema([_key("slide_key"), _key("path")]),
}
EXTENSIBLE = frozenset({"slides", "specimens"})  # may carry target columns and columns of a later minor version


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made a manifest; goes into the footer of each of its files.

    Attributes:
        config_digest, rules_digest, policy_digest: SHA-256 of the resolved configuration, rule file and label policy.
        key_fingerprint: short digest of the pseudonym key: manifests made with different keys must not be joined.
        snapshot_at: when the source was read or last changed, ISO date-time; of the database, not of the run.
    """

    config_digest: str
    rules_digest: str
    policy_digest: str
    key_fingerprint: str
    snapshot_at: str


def package_version() -> str:
    try:
        return version("fullslide")
    except PackageNotFoundError:
        return "source"


def table_from_rows(
    name: str, rows: Iterable[Mapping[str, Any]], extra: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """A table of the schema `name` from rows as mappings; columns that a row does not name become null."""
    fields = [*TABLES[name], *(pa.field(column, kind) for column, kind in (extra or {}).items())]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields))


class TableBuilder:
    """Rows on their way into a table, kept as Arrow in pieces: as Python mappings a million of them would take gigabytes."""

    def __init__(self, name: str, extra: Mapping[str, pa.DataType] | None = None, piece_rows: int = 20_000) -> None:
        self._name, self._extra, self._piece_rows = name, extra, piece_rows
        self._rows: list[Mapping[str, Any]] = []
        self._pieces: list[pa.Table] = [table_from_rows(name, [], extra)]

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= self._piece_rows:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self._pieces)

    def _flush(self) -> None:
        if self._rows:
            self._pieces.append(table_from_rows(self._name, self._rows, self._extra))
            self._rows = []


def write_table(folder: Path, name: str, table: pa.Table, provenance: Provenance) -> str:
    """Check, sort and write `folder/name.parquet` atomically; returns the content digest.

    Raises:
        ManifestError: a column is missing, of another type, null where it must not be, or not part of the schema.
    """
    table = sorted_by_keys(name, conform(name, table))
    digest = content_digest(table)
    footer = {
        "schema_version": SCHEMA_VERSION,
        "code_version": package_version(),
        **asdict(provenance),
        "num_rows": str(table.num_rows),
        "content_digest": digest,
    }
    table = table.replace_schema_metadata({f"fullslide.{key}": value for key, value in footer.items()})
    with atomic_file(folder / f"{name}.parquet") as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            row_group_size=ROW_GROUP_SIZE,
            use_dictionary=[field.name for field in table.schema if pa.types.is_dictionary(field.type)],
        )
    return digest


def read_table(folder: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table `name` of a manifest, its schema checked.

    Raises:
        ManifestError: the file is missing or damaged, has another major version, or lacks a column.
    """
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise ManifestError(f"manifest {folder.name}: {path.name} is missing; run `python -m ingest run` to build it")
    try:
        found = read_footer(folder, name)["schema_version"]
        if found.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise ManifestError(
                f"manifest {folder.name}: {path.name} has schema {found}, this code reads {SCHEMA_VERSION}; "
                "rebuild the manifest or use the version of fullslide that wrote it"
            )
        table = pq.read_table(path, columns=columns)
        table.validate(full=True)  # 0.05 s for 1 M slides; finds text that a damaged page left undecodable
        names = table.column_names
    except ManifestError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # a flipped byte may also spoil the UTF-8 of a name
        raise ManifestError(
            f"manifest {folder.name}: {path.name} cannot be read as Parquet; restore or rebuild it "
            f"({type(error).__name__})"
        ) from None
    if columns is None:
        missing = [column for column in TABLES[name].names if column not in names]
        if missing:
            raise ManifestError(
                f"manifest {folder.name}: {path.name} lacks the columns {', '.join(missing)}; rebuild it"
            )
    return table


def read_footer(folder: Path, name: str) -> dict[str, str]:
    """What the footer of `folder/name.parquet` says: schema version, digests, number of rows.

    Raises:
        ManifestError: the file is not one of ours.
    """
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise ManifestError(f"{folder.name}: {path.name} is missing; run `python -m ingest run` to build it")
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(
            f"{folder.name}: {path.name} cannot be read as Parquet; restore or rebuild it ({type(error).__name__})"
        ) from None
    footer = {
        key.decode().removeprefix("fullslide."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"fullslide.")
    }
    if "schema_version" not in footer:
        raise ManifestError(
            f"manifest {folder.name}: {name}.parquet has no fullslide footer; it was not written by "
            "`python -m ingest`, or another tool rewrote it and dropped the footer"
        )
    return footer


def conform(name: str, table: pa.Table) -> pa.Table:
    """`table` with the columns of the schema in order, cast to its types, then any further columns by name.

    Raises:
        ManifestError: as `write_table`.
    """
    schema = TABLES[name]
    missing = [column for column in schema.names if column not in table.column_names]
    further = sorted(set(table.column_names) - set(schema.names))
    if missing or (further and name not in EXTENSIBLE):
        raise ManifestError(f"table {name}: missing columns {missing or 'none'}, unknown columns {further or 'none'}")
    arrays = []
    for field in schema:
        column = table.column(field.name)
        try:
            column = _plain(column).cast(_plain_type(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise ManifestError(f"table {name}: column {field.name} is {column.type}, expected {field.type}") from None
        if column.null_count and not field.nullable:
            raise ManifestError(
                f"table {name}: column {field.name} has {column.null_count} empty values of "
                f"{table.num_rows}; it must be filled in every row"
            )
        # A dictionary in sorted order makes the bytes independent of the order in which values were met.
        arrays.append(_sorted_dictionary(column) if pa.types.is_dictionary(field.type) else column)
    fields = list(schema)
    for column in further:
        array = _plain(table.column(column))
        if pa.types.is_large_string(array.type):  # what pandas makes of text
            array = array.cast(pa.string())
        arrays.append(array)
        fields.append(pa.field(column, array.type))
    return pa.table(arrays, schema=pa.schema([field.remove_metadata() for field in fields]))


def sorted_by_keys(name: str, table: pa.Table) -> pa.Table:
    order = [
        (field.name, "ascending")
        for field in TABLES[name]
        if not field.nullable and not pa.types.is_binary(field.type) and not pa.types.is_dictionary(field.type)
    ]
    words = [field.name for field in TABLES[name] if pa.types.is_dictionary(field.type) and not field.nullable]
    if not words:
        return table.sort_by(order).combine_chunks()
    plain = pa.table({column: _plain(table.column(column)) for column in [*(key for key, _ in order), *words]})
    indices = pc.sort_indices(plain, sort_keys=[*order, *((word, "ascending") for word in words)])
    return table.combine_chunks().take(indices)


def content_digest(table: pa.Table) -> str:
    """SHA-256 of the values in row order: equal for equal content however it is chunked or dictionary-coded."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = _plain(table.column(name))
        kind = column.type
        digest.update(f"{name}:{kind}:{len(column)};".encode())
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        valid = array.is_valid()
        digest.update(np.packbits(valid.to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            array = array.cast(pa.binary()).fill_null(b"")
            digest.update(pc.binary_length(array).to_numpy(zero_copy_only=False).tobytes())
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
            if array.buffers()[2] is not None and len(array):
                digest.update(memoryview(array.buffers()[2])[offsets[0] : offsets[-1]])
        else:
            assert pa.types.is_primitive(kind), f"no digest for {name}: {kind}"  # objects would digest as addresses
            zero = False if pa.types.is_boolean(kind) else 0
            digest.update(np.ascontiguousarray(array.fill_null(zero).to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()


def read_dataset_card(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a manifest.

    Raises:
        ManifestError: it is missing or no JSON.
    """
    try:
        document: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ManifestError(
            f"manifest {folder.name}: dataset.json is missing or damaged; build it with `python -m ingest run`"
        ) from None
    return document


def write_dataset_card(
    folder: Path, provenance: Provenance, digests: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """`dataset.json`: the footer once more for people and tools without Parquet, with counts, ledger and gates."""
    card = {
        "schema_version": SCHEMA_VERSION,
        "code_version": package_version(),
        **asdict(provenance),
        "content_digests": dict(digests),
        **facts,
    }
    with atomic_file(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _sorted_dictionary(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    words = pc.unique(array.drop_null()).sort()
    return pa.DictionaryArray.from_arrays(pc.index_in(array, value_set=words).cast(pa.int32()), words)
