"""When something goes wrong, every rank stops, soon, and says which rank or slide it was."""

import os
import time

import pytest
import torch

from ingest.errors import ConfigError, InputError
from pretrain.config import BatchNormPolicy, Layout, StepConfig
from pretrain.step import slide_forward, slide_step
from pretrain.team import make_team, team_roles
from pretrain.update import StepError, reduce_gradients
from tests.distributed.ranks import networks, of_rank, rank_outcomes, slide

TIMEOUT_SECONDS = 3.0


def one_step(
    layout: Layout, num_teams: int, counts: tuple[int, ...], trouble: str | None, troubled_rank: int,
    batch_norm: BatchNormPolicy = "frozen", resident_tiles: int = 100,
) -> tuple[str, str, float]:  # fmt: skip
    """One update; `troubled_rank` does something wrong. Returns what a rank that lived on said, and how long it took."""
    team = make_team(layout, num_teams, timeout_seconds=TIMEOUT_SECONDS, device="cpu")
    config = StepConfig(layout=layout, num_teams=num_teams, batch_norm=batch_norm, resident_tiles=resident_tiles)
    models = of_rank(*networks(), team, config)
    started_at = time.monotonic()
    troubled = team.rank == troubled_rank
    if troubled and trouble == "silent":
        time.sleep(2.5 * TIMEOUT_SECONDS)
    if troubled and trouble == "dies":
        os._exit(7)
    tiles, targets = slide(0, sum(counts))
    own = None if team.share_index is None else torch.split(tiles, list(counts))[team.share_index]
    if troubled and trouble == "nan" and own is not None:
        own = own * float("nan")
    try:
        result = slide_step(
            models, own, counts, targets, team, config, seed=5 + (troubled and trouble == "other slide"),
            slide=f"S-{team.index}",
        )  # fmt: skip
        if troubled and trouble == "dies late":
            os._exit(7)
        reduce_gradients(models, team, config, [result], step=41)
    except (StepError, InputError, ConfigError, ValueError) as error:
        return type(error).__name__, str(error), time.monotonic() - started_at
    return "fine", "", time.monotonic() - started_at


@pytest.mark.parametrize(
    ("layout", "num_teams", "num_ranks", "counts"),
    [("dedicated", 1, 3, (4, 3)), ("shared", 2, 4, (4, 3)), ("single", 1, 1, (7,))],
)
def test_loss_that_is_not_a_number_stops_every_rank_and_names_slide_and_step(
    layout: Layout, num_teams: int, num_ranks: int, counts: tuple[int, ...]
) -> None:
    outcomes = rank_outcomes(num_ranks, one_step, layout, num_teams, counts, "nan", num_ranks - 1)
    for outcome in outcomes:
        name, message, _ = outcome.result
        assert name == "StepError"
        assert message.startswith(f"step 41: the loss of slide S-{num_teams - 1} is not finite")


@pytest.mark.parametrize("trouble", ["dies", "dies late"])
def test_a_rank_that_dies_ends_the_others_within_the_timeout_and_is_named(trouble: str) -> None:
    outcomes = rank_outcomes(3, one_step, "dedicated", 1, (4, 3), trouble, 2)
    assert outcomes[2].error == "ended with exit code 7"
    for rank in (0, 1):
        name, message, seconds = outcomes[rank].result
        assert name == "TeamError"
        assert seconds < TIMEOUT_SECONDS + 1
        assert f"rank {2 if rank == 0 else 0} ended or was silent" in message
    assert "slide S-0" in outcomes[0].result[1] or "step 41" in outcomes[0].result[1]


def test_a_silent_rank_is_named_when_the_time_is_up() -> None:
    outcomes = rank_outcomes(3, one_step, "shared", 1, (4, 0, 3), "silent", 2)
    name, message, seconds = outcomes[0].result
    assert name == "TeamError"
    assert "rank 2 ended or was silent for 3 s while waiting for features of slide S-0" in message
    assert TIMEOUT_SECONDS - 0.5 < seconds < TIMEOUT_SECONDS + 2
    assert outcomes[1].result[0] == "TeamError"


def test_ranks_that_work_on_different_slides_are_an_error_not_a_wrong_gradient() -> None:
    outcomes = rank_outcomes(2, one_step, "shared", 1, (4, 3), "other slide", 1)
    assert "rank 1 sends another slide than S-0" in outcomes[0].result[1]


def test_a_slide_without_tiles_is_refused_on_every_rank() -> None:
    for outcome in rank_outcomes(2, one_step, "shared", 1, (0, 0), None, -1):
        assert outcome.result[:2] == ("InputError", "slide S-0: 0 tiles; leave it out of training")


def test_synchronised_batch_norm_with_recomputed_tiles_is_refused_with_the_reason() -> None:
    for outcome in rank_outcomes(2, one_step, "shared", 1, (4, 3), None, -1, "synchronised", 3):
        name, message, _ = outcome.result
        assert name == "ConfigError"
        assert "share of 4 tiles and step.resident_tiles = 3" in message
        assert "would wait for the other ranks a second time" in message


def test_a_share_of_another_size_than_announced_is_refused() -> None:
    team, config = make_team("single", device="cpu"), StepConfig()
    with pytest.raises(InputError, match=r"^slide S-9: rank 0 was given 2 tiles, its share is 3$"):
        slide_forward(of_rank(*networks(), team, config), slide(0, 2)[0], (3,), team, config, slide="S-9")


@pytest.mark.parametrize(
    ("layout", "num_ranks", "num_teams", "message"),
    [
        ("single", 2, 1, "step.layout = single: a team has 1 rank, here 2"),
        ("dedicated", 3, 3, "step.layout = dedicated: a team needs at least 2 ranks, here 1"),
        ("shared", 3, 2, "step.num_teams = 2: 3 ranks do not divide into so many equal teams"),
    ],
)
def test_ranks_that_do_not_fit_the_layout_are_refused(
    layout: Layout, num_ranks: int, num_teams: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        team_roles(layout, num_ranks, num_teams, 0)


def test_roles_of_two_dedicated_teams_of_three() -> None:
    assert team_roles("dedicated", 6, 2, 0) == (0, (1, 2))
    assert team_roles("dedicated", 6, 2, 1) == (3, (4, 5))
