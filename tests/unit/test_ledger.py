"""The ledger adds up, or nothing is published."""

import pytest

from ingest.errors import GateError
from ingest.ledger import Ledger, Loss, Status, facts

LOSSES = (
    Loss("slide", "k2", "tiles", "failed", "unreadable_slide"),
    Loss("slide", "k1", "join", "excluded", "not_he"),
    Loss("slide", "k3", "join", "excluded", "not_he"),
    Loss("part", "k4", "label", "failed", "missing_diagnosis"),
)


def test_used_and_left_out_add_up_to_what_came_in() -> None:
    tally = Ledger(LOSSES).balance("slide", 10, 7)
    assert list(tally.left_out.items()) == [("join/not_he", 2), ("tiles/unreadable_slide", 1)]


@pytest.mark.parametrize(("num_in", "num_used"), [(10, 8), (10, 6), (9, 7), (0, 0)])
def test_a_vanished_or_invented_row_stops_the_run(num_in: int, num_used: int) -> None:
    with pytest.raises(GateError, match="does not add up"):
        Ledger(LOSSES).balance("slide", num_in, num_used)


def test_a_loss_told_twice_stops_the_run_even_if_the_sum_fits() -> None:
    with pytest.raises(GateError, match="1 told twice"):
        Ledger([*LOSSES, LOSSES[0]]).balance("slide", 11, 7)


def test_a_loss_can_stand_for_several_rows() -> None:
    tally = Ledger([Loss("row", "k", "source", "excluded", "duplicate_row", count=4)]).balance("row", 10, 6)
    assert tally.left_out == {"source/duplicate_row": 4}


def test_losses_of_other_entities_do_not_count() -> None:
    ledger = Ledger(LOSSES)
    assert ledger.balance("part", 1, 0).left_out == {"label/missing_diagnosis": 1}
    assert ledger.balance("case", 5, 5).left_out == {}


@pytest.mark.parametrize(
    ("stage", "status", "num"),
    [(None, None, 3), ("join", None, 2), (None, "failed", 1), ("tiles", "failed", 1), ("tiles", "excluded", 0)],
)
def test_losses_are_counted_by_stage_and_status(stage: str | None, status: Status | None, num: int) -> None:
    assert Ledger(LOSSES).num_lost("slide", stage=stage, status=status) == num


def test_losses_are_counted_by_reason() -> None:
    assert Ledger(LOSSES).num_lost("slide", reasons=("not_he", "missing_diagnosis")) == 2


def test_the_order_of_losses_does_not_matter() -> None:
    one, other = Ledger(LOSSES), Ledger(reversed(LOSSES))
    assert one.balance("slide", 10, 7) == other.balance("slide", 10, 7)
    assert one.rows.table() == other.rows.table()


def test_the_reasons_that_cost_most_are_told_first() -> None:
    assert Ledger(LOSSES).most_frequent(2) == "slide not_he 2, part missing_diagnosis 1"
    assert Ledger().most_frequent() == "nothing was left out"


def test_rows_and_facts_tell_the_same_numbers() -> None:
    ledger = Ledger(LOSSES)
    assert facts([ledger.balance("slide", 10, 7), ledger.balance("part", 4, 3)]) == {
        "slide": {"in": 10, "used": 7, "left_out": {"join/not_he": 2, "tiles/unreadable_slide": 1}},
        "part": {"in": 4, "used": 3, "left_out": {"label/missing_diagnosis": 1}},
    }
    rows = ledger.rows.table().to_pylist()
    assert len(rows) == 4
    assert rows[0] == {
        "entity": "slide",
        "key": "k1",
        "stage": "join",
        "status": "excluded",
        "reason": "not_he",
        "count": 1,
    }
