"""Which tiles, on which rank, in which chunk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ConfigError, InputError
from pretrain.config import SampleConfig
from pretrain.sample import Positions, chunk_positions, derive_seed, sample_tiles, share_counts, share_slice

TILES = np.arange(100, 200)  # indices in a grid of 10 columns: rows 10 to 19


def sample(mode: Any, num_tiles: int, seed: int = 0, tiles: Positions = TILES) -> Positions:
    return sample_tiles(tiles, SampleConfig(mode=mode, num_tiles=num_tiles), seed, num_columns=10)


def test_all_takes_every_tile_once() -> None:
    assert sample_tiles(TILES, SampleConfig(), seed=3).tolist() == list(range(100))


@pytest.mark.parametrize("mode", ["random", "paper", "grid"])
def test_k_of_many_tiles_are_distinct_rising_and_depend_on_the_seed_alone(mode: str) -> None:
    first = sample(mode, 30, seed=1)
    assert len(set(first.tolist())) == 30
    assert first.tolist() == sorted(first.tolist())
    assert first.tolist() == sample(mode, 30, seed=1).tolist()
    assert first.tolist() != sample(mode, 30, seed=2).tolist()


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_a_slide_with_fewer_tiles_gives_all_of_them_once(mode: str) -> None:
    assert sample(mode, 150).tolist() == list(range(100))


def test_paper_mode_repeats_tiles_only_when_the_slide_has_fewer() -> None:
    few = sample("paper", 150)
    assert len(few) == 150
    assert len(set(few.tolist())) < 100
    assert few.tolist() == sorted(few.tolist())
    assert sample("paper", 100).tolist() == list(range(100))


def test_random_tiles_are_equally_likely() -> None:
    hits = np.bincount(np.concatenate([sample("random", 10, seed) for seed in range(2000)]), minlength=100)
    assert hits.min() > 140  # 200 expected, deviation 13.4
    assert hits.max() < 260


def test_grid_takes_tiles_from_everywhere() -> None:
    positions = sample("grid", 25, seed=4)
    rows, columns = np.divmod(positions, 10)
    for corner_rows in (rows < 5, rows >= 5):
        for corner_columns in (columns < 5, columns >= 5):
            assert 5 <= int((corner_rows & corner_columns).sum()) <= 8  # 6.25 of 25 in each quarter


def test_cluster_gives_rare_tissue_as_many_tiles_as_common_tissue() -> None:
    clusters = np.zeros(100, dtype=np.uint8)
    clusters[95:] = 7  # five tiles of something else

    def take(num_tiles: int, seed: int = 0) -> Positions:
        config = SampleConfig(mode="cluster", num_tiles=num_tiles, clusters=Path("clusters.parquet"))
        return sample_tiles(TILES, config, seed, clusters_T=clusters)

    assert int((take(8) >= 95).sum()) == 4
    assert int((take(40) >= 95).sum()) == 5  # all there are; common tissue fills up
    assert len(set(take(40).tolist())) == 40
    assert take(8).tolist() != take(8, seed=1).tolist()


def test_what_a_mode_needs_is_asked_for() -> None:
    config = SampleConfig(mode="cluster", num_tiles=5, clusters=Path("clusters.parquet"))
    with pytest.raises(ConfigError, match="clusters of the slide's tiles were not given"):
        sample_tiles(TILES, config, 0)
    with pytest.raises(ValueError, match="clusters is given exactly with mode = cluster"):
        SampleConfig(mode="cluster", num_tiles=5)
    with pytest.raises(ConfigError, match="grid columns"):
        sample_tiles(TILES, SampleConfig(mode="grid", num_tiles=5), 0)
    with pytest.raises(InputError, match="0 tissue tiles"):
        sample("random", 5, tiles=TILES[:0])
    with pytest.raises(ValueError, match="num_tiles is given exactly when mode is not all"):
        SampleConfig(mode="random")


@given(st.integers(0, 5000), st.integers(1, 40))
def test_shares_are_contiguous_runs_that_differ_by_one_tile_at_most(num_tiles: int, num_ranks: int) -> None:
    counts = share_counts(num_tiles, num_ranks)
    assert max(counts) - min(counts) <= 1
    covered = [position for index in range(num_ranks) for position in range(num_tiles)[share_slice(counts, index)]]
    assert covered == list(range(num_tiles))


def test_shares_of_seven_tiles_on_three_ranks() -> None:
    assert share_counts(7, 3) == (3, 2, 2)
    assert share_counts(2, 3) == (1, 1, 0)
    assert share_slice((3, 2, 2), 1) == slice(3, 5)


@given(st.integers(0, 300), st.integers(0, 20), st.one_of(st.none(), st.integers(0, 5)))
def test_chunks_hold_every_tile_of_the_share_once_in_even_sizes(
    num_tiles: int, num_chunks: int, seed: int | None
) -> None:
    if num_tiles and not num_chunks:
        num_chunks = 1
    chunks = chunk_positions(num_tiles, num_chunks, seed)
    assert sorted(position for chunk in chunks for position in chunk.tolist()) == list(range(num_tiles))
    if chunks:
        assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


def test_chunks_mix_the_share_by_the_seed_and_keep_slide_order_without_one() -> None:
    assert [chunk.tolist() for chunk in chunk_positions(5, 2, None)] == [[0, 1, 2], [3, 4]]
    first, other = chunk_positions(64, 4, 7), chunk_positions(64, 4, 8)
    assert first[0].tolist() != other[0].tolist()
    assert max(first[0]) - min(first[0]) > 16  # not a run of 16 neighbours


def test_seeds_for_different_purposes_differ_and_stay_the_same() -> None:
    assert derive_seed(1, "chunk", 2) == derive_seed(1, "chunk", 2) == 2878412359548887928
    assert len({derive_seed(seed, *parts) for seed in (0, 1) for parts in (("a",), ("b",), ("a", 1), ("a", 11))}) == 8
    assert 0 <= derive_seed(2**62, "x") < 2**63
