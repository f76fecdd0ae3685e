import pytest

from pretrain import exit_codes, team
from pretrain.exit_codes import combined
from pretrain.launch.__main__ import shell_code


@pytest.mark.parametrize(
    ("codes", "signalled", "common"),
    [
        ([], False, 0),
        ([0, 0, 0], True, 0),
        ([75, 75, 75], False, 75),
        ([75, 0, 75], True, 75),
        ([75, 130], False, 130),
        ([6, 2, 6], False, 2),  # the rank that knows why, not those that missed it
        ([6, 6], False, 6),
        ([6, -9, 6], True, -9),  # killed while it should stop: nothing was saved
        ([75, 3], True, 3),
        ([75, 6], False, 6),
        ([75, 6], True, 75),
        ([-15, 75], True, 75),  # was still starting
        ([-15], False, -15),
        ([-10, -10], True, 75),
    ],
)
def test_several_exit_codes_become_one(codes: list[int], signalled: bool, common: int) -> None:
    assert combined(codes, signalled) == common


def test_a_signal_s_exit_code_is_that_of_a_shell() -> None:
    assert (shell_code(-9), shell_code(75), shell_code(0)) == (137, 75, 0)


def test_a_lost_rank_has_the_number_of_its_error() -> None:
    assert team.TeamError.exit_code == exit_codes.EXIT_RANK_LOST
