"""The ledger: every row that came in ends as used, excluded (with a reason) or failed (with a reason), and the sums add up.

Excluded: a rule or policy decided (another stain, an indeterminate label). Failed: something is broken (cannot be read).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingest.errors import GateError

Status = Literal["excluded", "failed"]


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """One row that is not used: `key` is a pseudonym or a running number, never an identifier of the source."""

    entity: str  # slide, part, case, row, file
    key: str
    stage: str  # source, identity, report, label, join, tiles, policy
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of one entity came in, and what became of them."""

    entity: str
    num_in: int
    num_used: int
    losses: tuple[Loss, ...]

    def reasons(self) -> dict[str, int]:
        """`stage/reason` -> count, most frequent first."""
        counts = Counter(f"{loss.stage}/{loss.reason}" for loss in self.losses)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def balance(entity: str, num_in: int, num_used: int, losses: Iterable[Loss]) -> Tally:
    """The checked tally of one entity.

    Raises:
        GateError: used + excluded + failed is not what came in, or a key is lost twice: rows vanished or were invented.
    """
    mine = tuple(sorted(loss for loss in losses if loss.entity == entity))
    repeated = [key for key, count in Counter(loss.key for loss in mine).items() if count > 1]
    if repeated or num_in != num_used + len(mine):
        raise GateError(f"ledger of {entity}s does not add up: {num_in} in, {num_used} used, {len(mine)} left out, "
                        f"{len(repeated)} keys left out twice; nothing was published; please report this as a defect")
    return Tally(entity, num_in, num_used, mine)


def quarantine_rows(tallies: Iterable[Tally]) -> list[dict[str, str]]:
    """Rows of `quarantine.parquet`."""
    return [{"entity": loss.entity, "key": loss.key, "stage": loss.stage, "status": loss.status, "reason": loss.reason}
            for tally in tallies for loss in tally.losses]


def facts(tallies: Iterable[Tally]) -> Mapping[str, Any]:
    """The ledger as it stands in `dataset.json`."""
    return {tally.entity: {"in": tally.num_in, "used": tally.num_used, "left_out": tally.reasons()} for tally in tallies}
