"""The door of the canonical tables: counts what comes in, keeps what is good, remembers what is not."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal, TypeAlias

from ingest.source.canonical import TableName
from ingest.source.cells import BadRow, Cells, RowFault, row_digest
from ingest.source.staging import Staging

Entity: TypeAlias = Literal["row", "message", "file"]
CHUNK_ROWS = 5000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Rejected:
    """Rows, messages or files that are not used.

    Attributes:
        digest: hexadecimal digest of the content. It derives from patient data: pseudonymise it under domain "row".
        status: failed (damaged) or excluded (meant to be left out: copies, cancelled results, other message types).
        count: how many with the same content and reason.
        location: file and row of one of them, for the vault only.
    """

    entity: Entity
    table: str
    reason: str
    digest: str = field(repr=False)
    status: Literal["failed", "excluded"]
    count: int
    location: str = field(repr=False, compare=False)


EXCLUDING_REASONS = frozenset({"duplicate_row", "not_a_report", "deleted_result", "no_result"})


class Intake:
    """Rows on their way into a staging; `num_rows` counts them per table, bad ones included."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.num_rows: Counter[str] = Counter()
        self._rejected: Counter[tuple[Entity, str, str, str]] = Counter()
        self._location: dict[tuple[Entity, str, str, str], str] = {}

    def clear(self) -> None:
        """Forget what a broken read brought; only SQL reads break, and they come first."""
        self.staging.clear()
        self.num_rows.clear()
        self._rejected.clear()
        self._location.clear()

    def reject(self, entity: Entity, table: str, reason: str, digest: bytes, location: str, count: int = 1) -> None:
        key = (entity, table, reason, digest.hex())
        self._rejected[key] += count
        self._location.setdefault(key, location)

    def add_rows(
        self,
        table: TableName,
        rows: Iterable[Sequence[Any] | BadRow],
        to_cells: Callable[[Sequence[Any]], Cells],
        where: str,
    ) -> None:
        numbered = enumerate(rows, start=1)
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            self.num_rows[table] += len(chunk)
            self.staging.add(table, self._good(table, chunk, to_cells, where))

    def _good(
        self,
        table: TableName,
        chunk: list[tuple[int, Sequence[Any] | BadRow]],
        to_cells: Callable[[Sequence[Any]], Cells],
        where: str,
    ) -> Iterator[Cells]:
        for number, row in chunk:
            if isinstance(row, BadRow):
                self.reject("row", table, row.reason, content_digest(row.raw), f"{where}:{number}")
                continue
            try:
                yield to_cells(row)
            except RowFault as fault:
                self.reject("row", table, fault.reason, row_digest(row), f"{where}:{number}")

    def rejected(self) -> tuple[Rejected, ...]:
        found = []
        for (entity, table, reason, digest), count in self._rejected.items():
            location = self._location[entity, table, reason, digest]
            status: Literal["failed", "excluded"] = "excluded" if reason in EXCLUDING_REASONS else "failed"
            found.append(
                Rejected(
                    entity=entity,
                    table=table,
                    reason=reason,
                    digest=digest,
                    status=status,
                    count=count,
                    location=location,
                )
            )
        return tuple(sorted(found))


def content_digest(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()
