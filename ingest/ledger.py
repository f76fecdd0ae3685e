"""The ledger: every row that came in ends as used, excluded (with a reason) or failed (with a reason), and the sums add up.

Excluded: a rule or policy decided (another stain, an indeterminate label). Failed: something is broken (cannot be read).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ingest.errors import GateError

Status = Literal["excluded", "failed"]


@dataclass(frozen=True, slots=True, order=True)
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
    """How many of one entity came in, and what became of them."""

    entity: str
    num_in: int
    num_used: int
    losses: tuple[Loss, ...]

    def reasons(self) -> dict[str, int]:
        """`stage/reason` -> count, most frequent first."""
        counts: Counter[str] = Counter()
        for loss in self.losses:
            counts[f"{loss.stage}/{loss.reason}"] += loss.count
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def balance(entity: str, num_in: int, num_used: int, losses: Iterable[Loss]) -> Tally:
    """The checked tally of one entity; losses of other entities are passed over.

    Raises:
        GateError: used + left out is not what came in, or a loss is told twice: rows vanished or were invented.
    """
    mine = tuple(sorted(loss for loss in losses if loss.entity == entity))
    num_lost = sum(loss.count for loss in mine)
    num_twice = len(mine) - len({(loss.key, loss.stage, loss.reason) for loss in mine})
    if num_twice or num_in != num_used + num_lost:
        raise GateError(
            f"ledger of {entity}s does not add up: {num_in} in, {num_used} used, {num_lost} left out, {num_twice} told "
            "twice; nothing was published; please report this as a defect"
        )
    return Tally(entity, num_in, num_used, mine)


def quarantine_rows(tallies: Iterable[Tally]) -> list[dict[str, Any]]:
    """Rows of `quarantine.parquet`."""
    return [asdict(loss) for tally in tallies for loss in tally.losses]


def facts(tallies: Iterable[Tally]) -> dict[str, Any]:
    """The ledger as it stands in `dataset.json`."""
    return {
        tally.entity: {"in": tally.num_in, "used": tally.num_used, "left_out": tally.reasons()} for tally in tallies
    }
