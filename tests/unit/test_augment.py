import numpy as np
import pytest
import torch

from pretrain.augment import NUM_DRAWS, augment, draw, normalise, turn
from pretrain.config import AugmentConfig


def some_tiles(count: int = 6, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def draws_for(count: int) -> torch.Tensor:
    return torch.from_numpy(draw(count, (1, 2))).double()


def test_a_tile_gets_the_same_pixels_in_any_chunk() -> None:
    tiles, draws, config = some_tiles(), draws_for(6), AugmentConfig(symmetry=True, colour=0.2, stain=0.1, blur=0.5)
    whole = augment(tiles, draws, config)
    chunks = torch.cat([augment(tiles[start : start + 2], draws[start : start + 2], config) for start in (0, 2, 4)])
    assert torch.equal(whole, chunks)


def test_strengths_of_zero_change_nothing() -> None:
    tiles = some_tiles()
    off = AugmentConfig(symmetry=False, colour=0.0, stain=0.0, blur=0.0)
    assert torch.equal(augment(tiles, draws_for(6), off), tiles)


@pytest.mark.parametrize("name", ["symmetry", "colour", "stain", "blur"])
def test_each_strength_changes_something(name: str) -> None:
    values = {"symmetry": False, "colour": 0.0, "stain": 0.0, "blur": 0.0, name: True if name == "symmetry" else 0.5}
    tiles = some_tiles()
    assert not torch.equal(augment(tiles, draws_for(6), AugmentConfig.model_validate(values)), tiles)


def test_the_eight_symmetries_of_a_tile_are_eight_different_tiles() -> None:
    tile = torch.arange(12.0).reshape(1, 3, 2, 2)
    turned = turn(tile.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    assert torch.equal(turned[0], tile[0])
    assert turned[1, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]  # a quarter turn against the clock
    assert turned[4, 0].tolist() == [[1.0, 0.0], [3.0, 2.0]]  # mirrored


def test_white_glass_stays_white_under_stain_jitter() -> None:
    white = torch.ones(5, 3, 4, 4, dtype=torch.float64)
    config = AugmentConfig(symmetry=False, colour=0.0, stain=0.3, blur=0.0)
    assert torch.allclose(augment(white, draws_for(5), config), white)


def test_numbers_are_a_function_of_the_seed() -> None:
    assert np.array_equal(draw(4, (1, 2)), draw(4, (1, 2)))
    assert not np.array_equal(draw(4, (1, 2)), draw(4, (1, 3)))
    assert draw(4, (1, 2)).shape == (4, NUM_DRAWS)


def test_normalise_takes_mean_and_deviation_away() -> None:
    tile = torch.full((1, 3, 2, 2), 0.7)
    assert normalise(tile, (0.5, 0.6, 0.7), (0.1, 0.1, 0.2))[0, :, 0, 0].tolist() == pytest.approx(
        [2.0, 1.0, 0.0], abs=1e-5
    )
