"""Ranks of a team agree on which slides can be read, whatever their roles."""

from pathlib import Path

import pytest

from pretrain.config import Layout, PretrainConfig
from pretrain.loader import TileFeed, plan_all_tiles
from pretrain.start import open_cohort
from pretrain.team import make_team
from tests.distributed.ranks import run_ranks
from tests.small_cohort import write_small_cohort


def read_all(given: tuple[PretrainConfig, Layout]) -> list[tuple[bool, int]]:
    """For every slide whether it has a problem, and how many tiles this rank got."""
    config, layout = given
    team = make_team(layout, timeout_seconds=60, device="cpu")
    cohort = open_cohort(config)
    with TileFeed(config.data, cohort, team, 60) as feed:
        return [
            (bool(share.problem), 0 if share.tiles_K3HW is None else len(share.tiles_K3HW))
            for share in feed.read(plan_all_tiles(slide, team) for slide in cohort.slides[:3])
        ]


@pytest.mark.parametrize(("layout", "num_ranks"), [("dedicated", 2), ("dedicated", 3), ("shared", 2)])
def test_a_slide_that_one_rank_cannot_read_is_left_out_by_all(tmp_path: Path, layout: Layout, num_ranks: int) -> None:
    config = write_small_cohort(tmp_path)
    (tmp_path / "files" / "slide1.svs").unlink()
    found = run_ranks(num_ranks, read_all, (config, layout))
    assert [[problem for problem, _ in rank] for rank in found] == [[False, True, False]] * num_ranks
    assert [sum(rank[slide][1] for rank in found) for slide in (0, 2)] == [11, 13]
