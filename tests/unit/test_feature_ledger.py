from pathlib import Path

import pytest

from evaluate.feature_ledger import Outcome, forget_part, merge_parts, write_part
from ingest.errors import GateError


def outcome(written: str = "", skipped: str = "", failed: dict[str, str] | None = None) -> Outcome:
    return Outcome(written=tuple(written), skipped=tuple(skipped), failed=failed or {})


def test_the_last_rank_puts_the_ledger_together(tmp_path: Path) -> None:
    write_part(tmp_path, outcome("ab", "c"), 0, 2)
    assert merge_parts(tmp_path, 5, 2, "digest") is None
    assert not (tmp_path / "ledger.json").exists()
    write_part(tmp_path, outcome("d", failed={"e": "cannot_open"}), 1, 2)
    whole = merge_parts(tmp_path, 5, 2, "digest")
    assert whole == outcome("abd", "c", {"e": "cannot_open"})
    assert whole.summary() == "3 written, 1 skipped (were finished), 1 failed: cannot_open 1"


def test_a_part_of_an_earlier_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write_part(tmp_path, outcome("ab"), 0, 2)
    write_part(tmp_path, outcome("cd"), 1, 2)
    forget_part(tmp_path, 1, 2)
    assert merge_parts(tmp_path, 4, 2, "digest") is None


@pytest.mark.parametrize(
    "parts",
    [
        [outcome("ab"), outcome("c")],  # d vanished
        [outcome("ab"), outcome("bc")],  # b twice, d vanished: four are told
        [outcome("abcd"), outcome(failed={"d": "cannot_open"})],
        [outcome("abc", "d"), outcome("e")],  # one was invented
    ],
)
def test_sums_that_do_not_add_up_are_an_error(tmp_path: Path, parts: list[Outcome]) -> None:
    for rank, part in enumerate(parts):
        write_part(tmp_path, part, rank, 2)
    with pytest.raises(GateError, match="does not add up"):
        merge_parts(tmp_path, 4, 2, "digest")
