"""What became of every slide of a manifest: `features_NAME/ledger.json`; written + skipped + failed = slides that came in.

Each rank leaves a part; whoever comes last puts the parts together, so that no rank waits hours for another.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.atomic import atomic_file
from ingest.errors import GateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The slides of one rank; `failed` maps slide keys to reason codes."""

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]

    def summary(self) -> str:
        """`7 written, 1 skipped (were finished), 2 failed: cannot_open 2`."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(self.failed.values()).most_common())
        return (
            f"{len(self.written):,} written, {len(self.skipped):,} skipped (were finished), {len(self.failed):,} failed"
            + (f": {reasons}" if reasons else "")
        )


def forget_part(folder: Path, rank: int, num_ranks: int) -> None:
    """Take away the part of an earlier run, before this one begins."""
    _part_path(folder, rank, num_ranks).unlink(missing_ok=True)


def write_part(folder: Path, outcome: Outcome, rank: int, num_ranks: int) -> None:
    text = json.dumps({"written": outcome.written, "skipped": outcome.skipped, "failed": dict(outcome.failed)})
    with atomic_file(_part_path(folder, rank, num_ranks)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def merge_parts(folder: Path, num_slides: int, num_ranks: int, encoder_sha256: str) -> Outcome | None:
    """Write `ledger.json` and give the outcome of all ranks, once the last of them has ended; None before.

    Raises:
        GateError: the slides of the ranks do not add up to `num_slides`, or one is told twice.
    """
    try:
        parts = [json.loads(_part_path(folder, rank, num_ranks).read_text()) for rank in range(num_ranks)]
    except FileNotFoundError:
        return None
    told = [(key, status) for part in parts for status in ("written", "skipped") for key in part[status]]
    failed = [item for part in parts for item in part["failed"].items()]
    if len({key for key, _ in told + failed}) != len(told + failed):
        raise GateError("ledger of features does not add up: a slide is told twice; please report this as a defect")
    if len(told) + len(failed) != num_slides:
        raise GateError(
            f"ledger of features does not add up: {num_slides} slides in, {len(told)} written or skipped, {len(failed)} failed; "
            "please report this as a defect"
        )
    outcome = Outcome(
        written=tuple(sorted(key for key, status in told if status == "written")),
        skipped=tuple(sorted(key for key, status in told if status == "skipped")),
        failed=dict(sorted(failed)),
    )
    document = {
        "encoder_sha256": encoder_sha256, "in": num_slides, "written": len(outcome.written),
        "skipped": len(outcome.skipped), "failed": len(outcome.failed), "reasons": dict(Counter(outcome.failed.values())),
        "slides": dict(sorted({**dict(told), **{key: f"failed: {reason}" for key, reason in failed}}.items())),
    }  # fmt: skip
    with atomic_file(folder / "ledger.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return outcome


def _part_path(folder: Path, rank: int, num_ranks: int) -> Path:
    return folder / f".ledger_rank{rank}of{num_ranks}.json"
