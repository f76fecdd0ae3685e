"""The ledger: every row that came in ends as used, excluded (with a reason) or failed (with a reason), and the sums add up.

Excluded: a rule or policy decided (another stain, an indeterminate label). Failed: something is broken (cannot be read).
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ingest.errors import GateError
from ingest.row_store import RowStore
from ingest.scratch import open_scratch

Status = Literal["excluded", "failed"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Rows that are not used: `key` is a pseudonym, never an identifier of the source; `count` rows share key and reason."""

    entity: str  # slide, part, case, row, file
    key: str
    stage: str  # source, identity, report, label, join, tiles, policy
    status: Status
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of one entity came in, and what became of them; `left_out`: `stage/reason` -> count, most frequent first."""

    entity: str
    num_in: int
    num_used: int
    left_out: Mapping[str, int]


class Ledger:
    """All losses of a run, on disk: a source may have a million of them.

    Attributes:
        rows: the rows of quarantine.parquet.
    """

    def __init__(self, losses: Iterable[Loss] = (), scratch: sqlite3.Connection | None = None) -> None:
        self._scratch = scratch if scratch is not None else open_scratch()
        self.rows = RowStore(self._scratch, "quarantine")
        self.add(losses)

    def add(self, losses: Iterable[Loss]) -> None:
        self.rows.add(asdict(loss) for loss in losses)

    def num_lost(
        self, entity: str, *, stage: str | None = None, status: Status | None = None, reasons: Sequence[str] = ()
    ) -> int:
        """Rows of one entity that were lost; at one stage, with one status, for one of some reasons."""
        query = (
            "SELECT coalesce(sum(count), 0) FROM rows_quarantine WHERE entity = ? AND stage = coalesce(?, stage) "
            "AND status = coalesce(?, status)"
        )
        if reasons:
            query += f" AND reason IN ({', '.join('?' * len(reasons))})"
        return int(self._scratch.execute(query, (entity, stage, status, *reasons)).fetchone()[0])

    def balance(self, entity: str, num_in: int, num_used: int) -> Tally:
        """The checked tally of one entity.

        Raises:
            GateError: used + left out is not what came in, or a loss is told twice: rows vanished or were invented.
        """
        num_lost = self.num_lost(entity)
        copies = "SELECT count(*) - 1 AS extra FROM rows_quarantine WHERE entity = ? GROUP BY key, stage, reason"
        num_twice = self._scratch.execute(f"SELECT coalesce(sum(extra), 0) FROM ({copies})", [entity]).fetchone()[0]
        if num_twice or num_in != num_used + num_lost:
            raise GateError(
                f"ledger of {entity}s does not add up: {num_in} in, {num_used} used, {num_lost} left out, {num_twice} told "
                "twice; nothing was published; please report this as a defect"
            )
        left_out = self._scratch.execute(
            "SELECT stage || '/' || reason AS name, sum(count) FROM rows_quarantine WHERE entity = ? GROUP BY name "
            "ORDER BY 2 DESC, 1", [entity]
        )  # fmt: skip
        return Tally(entity, num_in, num_used, dict(left_out))

    def most_frequent(self, num: int = 4) -> str:
        """The reasons that cost most, for people: `slide not_he 12, part label_indeterminate 3`."""
        rows = self._scratch.execute(
            "SELECT entity, reason, sum(count) FROM rows_quarantine GROUP BY entity, reason ORDER BY 3 DESC, 1, 2 LIMIT ?",
            [num],
        )
        return ", ".join(f"{entity} {reason} {count}" for entity, reason, count in rows) or "nothing was left out"


def facts(tallies: Iterable[Tally]) -> dict[str, Any]:
    """The ledger as it stands in `dataset.json`."""
    return {
        tally.entity: {"in": tally.num_in, "used": tally.num_used, "left_out": dict(tally.left_out)}
        for tally in tallies
    }
