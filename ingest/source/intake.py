"""The door of the canonical tables: counts what comes in, keeps what is good, remembers what is not."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal, TypeAlias, cast

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
    """

    entity: Entity
    table: str
    reason: str
    digest: str = field(repr=False)
    status: Literal["failed", "excluded"]
    count: int


EXCLUDING_REASONS = frozenset({"duplicate_row", "not_a_report", "deleted_result", "no_result"})


class Intake:
    """Rows on their way into a staging.

    Attributes:
        num_rows: rows per table, and messages, bad ones included.
        num_messages_kept: messages of which something was kept.
    """

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.num_rows: Counter[str] = Counter()
        self.num_messages_kept = 0

    def clear(self) -> None:
        """Forget what a broken read brought; only SQL reads break, and they come first."""
        self.staging.clear()
        self.num_rows.clear()

    def reject(self, entity: Entity, table: str, reason: str, digest: bytes, count: int = 1) -> None:
        self.staging.reject(entity, table, reason, digest, count)

    def add_rows(
        self,
        table: TableName,
        rows: Iterable[Sequence[Any] | BadRow],
        to_cells: Callable[[Sequence[Any]], Cells],
    ) -> None:
        iterator = iter(rows)
        while chunk := list(islice(iterator, CHUNK_ROWS)):
            self.num_rows[table] += len(chunk)
            good, bad = [], []
            for row in chunk:
                if isinstance(row, BadRow):
                    bad.append((row.reason, content_digest(row.raw)))
                    continue
                try:
                    good.append(to_cells(row))
                except RowFault as fault:
                    bad.append((fault.reason, row_digest(row)))
            self.staging.add(table, good)
            for reason, digest in bad:
                self.reject("row", table, reason, digest)


def rejected(staging: Staging) -> Iterator[Rejected]:
    """Everything that a staging was given and has in no table, sorted."""
    for entity, table, reason, digest, count in staging.rejected():
        status: Literal["failed", "excluded"] = "excluded" if reason in EXCLUDING_REASONS else "failed"
        yield Rejected(
            entity=cast("Entity", entity), table=table, reason=reason, digest=digest, status=status, count=count
        )


def content_digest(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()
