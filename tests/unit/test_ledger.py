"""The ledger adds up, or nothing is published."""

import pytest

from ingest.errors import GateError
from ingest.ledger import Loss, balance, facts, quarantine_rows

LOSSES = (
    Loss("slide", "k2", "tiles", "failed", "unreadable_slide"),
    Loss("slide", "k1", "join", "excluded", "not_he"),
    Loss("slide", "k3", "join", "excluded", "not_he"),
    Loss("part", "k4", "label", "failed", "missing_diagnosis"),
)


def test_used_and_left_out_add_up_to_what_came_in() -> None:
    tally = balance("slide", 10, 7, LOSSES)
    assert tally.reasons() == {"join/not_he": 2, "tiles/unreadable_slide": 1}
    assert [loss.key for loss in tally.losses] == ["k1", "k2", "k3"]


@pytest.mark.parametrize(("num_in", "num_used"), [(10, 8), (10, 6), (9, 7), (0, 0)])
def test_a_vanished_or_invented_row_stops_the_run(num_in: int, num_used: int) -> None:
    with pytest.raises(GateError, match="does not add up"):
        balance("slide", num_in, num_used, LOSSES)


def test_a_loss_told_twice_stops_the_run_even_if_the_sum_fits() -> None:
    with pytest.raises(GateError, match="1 told twice"):
        balance("slide", 11, 7, [*LOSSES, LOSSES[0]])


def test_a_loss_can_stand_for_several_rows() -> None:
    tally = balance("row", 10, 6, [Loss("row", "k", "source", "excluded", "duplicate_row", count=4)])
    assert tally.reasons() == {"source/duplicate_row": 4}


def test_losses_of_other_entities_do_not_count() -> None:
    assert balance("part", 1, 0, LOSSES).reasons() == {"label/missing_diagnosis": 1}
    assert balance("case", 5, 5, LOSSES).losses == ()


def test_the_order_of_losses_does_not_matter() -> None:
    assert balance("slide", 10, 7, LOSSES) == balance("slide", 10, 7, reversed(LOSSES))


def test_rows_and_facts_tell_the_same_numbers() -> None:
    tallies = [balance("slide", 10, 7, LOSSES), balance("part", 4, 3, LOSSES)]
    assert facts(tallies) == {
        "slide": {"in": 10, "used": 7, "left_out": {"join/not_he": 2, "tiles/unreadable_slide": 1}},
        "part": {"in": 4, "used": 3, "left_out": {"label/missing_diagnosis": 1}},
    }
    rows = quarantine_rows(tallies)
    assert len(rows) == 4
    assert rows[0] == {
        "entity": "slide",
        "key": "k1",
        "stage": "join",
        "status": "excluded",
        "reason": "not_he",
        "count": 1,
    }
