"""Where canonical rows wait between reading and use, on disk.

A source of a million reports does not fit in memory and does not come in order. Rows are written here as they come,
indexed once, and read back case by case. What comes out depends on the content of the rows only, not on their order:
that is what makes the manifest the same bytes for any export order and any number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from ingest.scratch import open_scratch
from ingest.source.canonical import COLUMNS, SCHEMAS, TABLE_NAMES, TableName
from ingest.source.cells import Cells, row_digest

BATCH_ROWS = 8192  # as Python values at a time


class Staging:
    """Canonical rows on disk. Write with `add`, call `seal` once, then read; close to give the disk space back."""

    def __init__(self, folder: Path | None) -> None:
        self._connection = open_scratch(folder)
        self.clear()

    def clear(self) -> None:
        """Forget every row; a read that broke off starts again."""
        for table in TABLE_NAMES:
            columns = ", ".join(f'"{column}" TEXT' for column in COLUMNS[table])
            self._connection.execute(f"DROP TABLE IF EXISTS {table}")
            self._connection.execute(f"CREATE TABLE {table} ({columns}, row_digest BLOB NOT NULL)")
        key = "entity, origin, reason, digest"
        self._connection.execute("DROP TABLE IF EXISTS rejected")
        self._connection.execute(
            f"CREATE TABLE rejected (entity, origin, reason, digest, num, PRIMARY KEY ({key})) WITHOUT ROWID"
        )

    def add(self, table: TableName, rows: Iterable[Cells]) -> None:
        marks = ", ".join("?" * (len(COLUMNS[table]) + 1))
        self._connection.executemany(
            f"INSERT INTO {table} VALUES ({marks})", ((*cells, row_digest(cells)) for cells in rows)
        )

    def reject(self, entity: str, origin: str, reason: str, digest: bytes, count: int) -> None:
        """Remember `count` rows that are in no table, with others of the same content and reason."""
        self._connection.execute(
            "INSERT INTO rejected VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET num = num + excluded.num",
            (entity, origin, reason, digest.hex(), count),
        )

    def rejected(self) -> Iterator[tuple[str, str, str, str, int]]:
        """entity, origin, reason, hexadecimal digest and count of everything that was rejected, sorted."""
        yield from self._connection.execute("SELECT * FROM rejected ORDER BY entity, origin, reason, digest")

    def seal(self) -> None:
        """Index every table by its leading key and the content of the row."""
        for table in TABLE_NAMES:
            self._connection.execute(f"CREATE INDEX {table}_order ON {table} ({_leading(table)}, row_digest)")

    def duplicates(self, table: TableName) -> Iterator[tuple[bytes, int]]:
        """Digest and number of surplus copies of every row that came more than once."""
        yield from self._connection.execute(
            f"SELECT row_digest, count(*) - 1 FROM {table} GROUP BY {_leading(table)}, row_digest HAVING count(*) > 1"
        )

    def num_stored(self, table: TableName) -> int:
        """Rows with their copies."""
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def num_rows(self, table: TableName) -> int:
        """Rows without their copies."""
        query = f"SELECT count(*) FROM (SELECT 1 FROM {table} GROUP BY {_leading(table)}, row_digest)"
        return int(self._connection.execute(query).fetchone()[0])

    def rows(self, table: TableName, accessions: Iterable[str] | None = None) -> Iterator[Cells]:
        """Each different row once, by leading key (null first), then by its cells.

        Args:
            accessions: only rows of these cases.
        """
        cursor = self._connection.cursor()
        columns = ", ".join(f'"{column}"' for column in COLUMNS[table])
        where = ""
        if accessions is not None:
            self._connection.execute("DROP TABLE IF EXISTS wanted")
            self._connection.execute("CREATE TABLE wanted (accession PRIMARY KEY) WITHOUT ROWID")
            self._connection.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ([name] for name in accessions))
            where = "WHERE accession IN (SELECT accession FROM wanted)"
        cursor.execute(f"SELECT {columns} FROM {table} {where} ORDER BY {_leading(table)}")
        key_at = COLUMNS[table].index(_leading(table))
        for _, same_key in groupby(cursor, itemgetter(key_at)):
            yield from sorted(set(same_key), key=_null_first)

    def batches(
        self, table: TableName, accessions: Iterable[str] | None = None, num_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        rows = self.rows(table, accessions)
        while chunk := list(islice(rows, num_rows)):
            arrays = [pa.array(column, pa.string()) for column in zip(*chunk, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS[table])

    def table(self, table: TableName, accessions: Iterable[str] | None = None) -> pa.Table:
        return pa.Table.from_batches(self.batches(table, accessions), schema=SCHEMAS[table])

    def by_accession(self, tables: Sequence[TableName]) -> Iterator[tuple[str, dict[TableName, list[Cells]]]]:
        """Each accession that any of `tables` names, in order, with its rows; one case in memory at a time."""
        streams = {table: _groups(self.rows(table), COLUMNS[table].index("accession")) for table in tables}
        heads = {table: next(stream, None) for table, stream in streams.items()}
        while keys := [head[0] for head in heads.values() if head is not None]:
            accession = min(keys)
            found: dict[TableName, list[Cells]] = {table: [] for table in tables}
            for table, head in heads.items():
                if head is not None and head[0] == accession:
                    found[table] = head[1]
                    heads[table] = next(streams[table], None)
            yield accession, found

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Staging":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _groups(rows: Iterator[Cells], accession_at: int) -> Iterator[tuple[str, list[Cells]]]:
    for accession, same_case in groupby(rows, itemgetter(accession_at)):
        if accession is not None:  # only slides may lack one
            yield accession, list(same_case)


def _leading(table: TableName) -> str:
    return "mrn" if table == "patients" else "accession"


def _null_first(cells: Cells) -> tuple[tuple[bool, str], ...]:
    return tuple((cell is not None, cell or "") for cell in cells)
