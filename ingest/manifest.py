"""The manifest on disk: Parquet tables whose footers say what made them, checked on write and on read.

Same rows, configuration and key give the same bytes: rows are sorted by their keys, nothing in a footer is a clock time
of the run. `manifests/README.md` explains every column.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
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
PIECE_ROWS = 8192  # as Python values at a time: a million mappings take gigabytes
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
    return rows_to_table(rows, pa.schema(fields))


def rows_to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table from mappings, of which only some thousands are in memory if they come from an iterator."""
    pieces = [schema.empty_table()]
    waiting = iter(rows)
    while piece := list(islice(waiting, PIECE_ROWS)):
        pieces.append(pa.Table.from_pylist(piece, schema=schema))
    return pa.concat_tables(pieces)


def table_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as mappings, some thousands at a time."""
    return (row for batch in table.to_batches(max_chunksize=PIECE_ROWS) for row in batch.to_pylist())


def write_table(folder: Path, name: str, table: pa.Table, provenance: Provenance) -> str:
    """Check, sort and write `folder/name.parquet` atomically; returns the content digest.

    Raises:
        ManifestError: a column is missing, of another type, null where it must not be, or not part of the schema.
    """
    table = sorted_by_keys(name, conform(name, table))
    digest = content_digest(table)
    _write_parquet(folder, name, table.schema, [table], provenance, table.num_rows, digest)
    return digest


def write_sorted(
    folder: Path, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], provenance: Provenance
) -> str:
    """`write_table` for rows that come in `key_order`, a few at a time, and may be more than fit in memory.

    Rows wait in a file without a name beside the table, because the footer, which comes first, holds their digest.

    Args:
        schema: as of `plain_schema`; the batches have it.
    Raises:
        ManifestError: a column is null where it must not be.
    """
    words: dict[str, set[str]] = {field.name: set() for field in TABLES[name] if pa.types.is_dictionary(field.type)}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as spill:
        with pa.ipc.new_file(pa.PythonFile(spill, "w"), schema) as writer:
            for group in _row_groups(batches, schema):
                for field in TABLES[name]:
                    _require_filled(name, field, group.column(field.name))
                for column, known in words.items():
                    known.update(group.column(column).unique().drop_null().to_pylist())
                writer.write_table(group, max_chunksize=ROW_GROUP_SIZE)

        def chunks(columns: list[str]) -> Iterator[pa.RecordBatch]:
            options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(column) for column in columns])
            reader = pa.ipc.open_file(pa.PythonFile(spill, "r"), options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

        num_rows = sum(batch.num_rows for batch in chunks([schema.names[0]]))
        digest = _digest(schema, num_rows, lambda column: (batch.column(0) for batch in chunks([column])))
        dictionaries = {column: pa.array(sorted(known), pa.string()) for column, known in words.items()}
        final = pa.schema([*TABLES[name], *list(schema)[len(TABLES[name]) :]])
        groups = (pa.Table.from_arrays([_coded(batch.column(column), dictionaries.get(column)) for column in schema.names],
                                       schema=final) for batch in chunks(schema.names))  # fmt: skip
        _write_parquet(folder, name, final, groups if num_rows else [final.empty_table()], provenance, num_rows, digest)
    return digest


def _write_parquet(
    folder: Path, name: str, schema: pa.Schema, tables: Iterable[pa.Table], provenance: Provenance, num_rows: int,
    digest: str,
) -> None:  # fmt: skip
    footer = {
        "schema_version": SCHEMA_VERSION,
        "code_version": package_version(),
        **asdict(provenance),
        "num_rows": str(num_rows),
        "content_digest": digest,
    }
    schema = schema.with_metadata({f"fullslide.{key}": value for key, value in footer.items()})
    words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    with (
        atomic_file(folder / f"{name}.parquet") as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=words) as writer,
    ):
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_SIZE)


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP_SIZE, the last one shorter."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while waiting.num_rows >= ROW_GROUP_SIZE:
            yield waiting.slice(0, ROW_GROUP_SIZE).combine_chunks()
            waiting = waiting.slice(ROW_GROUP_SIZE)
    if waiting.num_rows:
        yield waiting.combine_chunks()


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
        _require_filled(name, field, column)
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


def plain_schema(name: str, extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """The schema of the table `name` with words as plain strings and all columns nullable, then `extra` by name."""
    fields = [pa.field(field.name, _plain_type(field.type)) for field in TABLES[name]]
    return pa.schema([*fields, *(pa.field(column, kind) for column, kind in sorted((extra or {}).items()))])


def key_order(name: str) -> list[str]:
    """The columns by which the rows of the table `name` are sorted: keys and numbers that are never null, then words."""
    fields = [field for field in TABLES[name] if not field.nullable and not pa.types.is_binary(field.type)]
    return [field.name for field in sorted(fields, key=lambda field: pa.types.is_dictionary(field.type))]


def sorted_by_keys(name: str, table: pa.Table) -> pa.Table:
    order = key_order(name)
    plain = pa.table({column: _plain(table.column(column)) for column in order})
    indices = pc.sort_indices(plain, sort_keys=[(column, "ascending") for column in order])
    return table.combine_chunks().take(indices)


def content_digest(table: pa.Table) -> str:
    """SHA-256 of the values in row order: equal for equal content however it is chunked or dictionary-coded."""
    schema = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in table.schema])
    return _digest(schema, table.num_rows, lambda name: [_whole(_plain(table.column(name)))])


def _digest(schema: pa.Schema, num_rows: int, chunks: Callable[[str], Iterable[pa.Array]]) -> str:
    """Column after column: which values are null, then lengths of texts, then the values; `chunks` gives a column of
    the table in pieces, all but the last a multiple of 8 rows."""
    digest = hashlib.sha256()
    for field in schema:
        digest.update(f"{field.name}:{field.type}:{num_rows};".encode())
        for array in chunks(field.name):
            digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            for array in chunks(field.name):
                lengths = pc.binary_length(array.cast(pa.binary()).fill_null(b""))
                digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            for array in chunks(field.name):
                array = array.cast(pa.binary()).fill_null(b"")
                offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[
                    array.offset : array.offset + len(array) + 1
                ]
                if array.buffers()[2] is not None and len(array):
                    digest.update(memoryview(array.buffers()[2])[offsets[0] : offsets[-1]])
        else:
            assert pa.types.is_primitive(field.type), f"no digest for {field.name}: {field.type}"  # objects: addresses
            zero = False if pa.types.is_boolean(field.type) else 0
            for array in chunks(field.name):
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
    return _coded(array, pc.unique(array.drop_null()).sort())


def _coded(array: pa.Array, words: pa.Array | None) -> pa.Array:
    """`array` as positions in `words`; None leaves it as it is."""
    if words is None:
        return array
    return pa.DictionaryArray.from_arrays(pc.index_in(array, value_set=words).cast(pa.int32()), words)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _require_filled(name: str, field: pa.Field, column: pa.ChunkedArray) -> None:
    if column.null_count and not field.nullable:
        raise ManifestError(
            f"table {name}: column {field.name} has {column.null_count} empty values of "
            f"{len(column)}; it must be filled in every row"
        )
