"""Rows of one manifest table that wait on disk and come back in the order in which the table is written.

As Python mappings a million of them would take gigabytes, and as Arrow still hundreds of megabytes once they are sorted.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from ingest.manifest import PIECE_ROWS, key_order, plain_schema


class RowStore:
    """Rows of the table `name`; null where a row does not name a column.

    Attributes:
        schema: `manifest.plain_schema`: words as strings, then further columns by name.
    """

    def __init__(self, scratch: sqlite3.Connection, name: str, extra: Mapping[str, pa.DataType] | None = None) -> None:
        self.name = name
        self.schema = plain_schema(name, extra)
        self._scratch = scratch
        self._table = f"rows_{name}"
        columns = ", ".join(f'"{column}"' for column in self.schema.names)
        scratch.execute(f"CREATE TABLE {self._table} ({columns})")  # no types: values come back as they went in
        self._insert = f"INSERT INTO {self._table} VALUES ({', '.join('?' * len(self.schema))})"

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        names = self.schema.names
        self._scratch.executemany(self._insert, ([row.get(name) for name in names] for row in rows))

    @property
    def num_rows(self) -> int:
        return int(self._scratch.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows by `manifest.key_order`, some thousands at a time."""
        order = ", ".join(f'"{column}"' for column in key_order(self.name))
        cursor = self._scratch.execute(f"SELECT * FROM {self._table} ORDER BY {order}")
        while rows := cursor.fetchmany(PIECE_ROWS):
            arrays = [
                _array(column, field.type) for column, field in zip(zip(*rows, strict=True), self.schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches(), schema=self.schema)


def _array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    if pa.types.is_boolean(kind):  # SQLite keeps true and false as 1 and 0
        return pa.array(values, pa.int8()).cast(kind)
    return pa.array(values, kind)
