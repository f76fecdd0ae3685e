from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ingest.geometry import TileGrid
from pretrain.augment import NUM_DRAWS, augment, draw, normalise, turn
from pretrain.cohort import CohortSlide
from pretrain.config import AugmentConfig, PretrainConfig, StepConfig
from pretrain.encoder import preprocessing
from pretrain.loader import SharePlan, SlideTiles
from pretrain.loop import training_view
from pretrain.sample import derive_seed
from pretrain.share import cut_share, encode_share
from pretrain.team import make_team


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


@pytest.mark.parametrize(("counts", "chunk_tiles"), [((17,), 64), ((17,), 3), ((6, 6, 5), 4), ((9, 8), 1)])
def test_a_tile_is_augmented_alike_for_any_number_of_ranks_and_any_chunk_size(
    counts: tuple[int, ...], chunk_tiles: int
) -> None:
    """The pixels that the encoder sees, put together from all ranks, against one call over the whole slide."""
    config = PretrainConfig(augment=AugmentConfig(colour=0.2, stain=0.1, blur=0.5))
    tiles = torch.randint(0, 256, (17, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    seed = 123
    seen = []
    for index, own in enumerate(torch.split(tiles, list(counts))):
        team = replace(make_team("single", device="cpu"), rank=index, encoder_ranks=tuple(range(len(counts))))
        plan = SharePlan(slide=slide_of_17_tiles(), seed=seed, counts=counts, tile_indices=np.arange(len(own)),
                         first=sum(counts[:index]))  # fmt: skip
        prepare = training_view(config, SlideTiles(plan=plan, tiles_K3HW=own))
        share = cut_share(
            PixelsAsFeatures(), own, counts, team, StepConfig(chunk_tiles=chunk_tiles), seed, prepare, None
        )
        encode_share(share)
        assert share.features_KF is not None
        seen.append(share.features_KF)
    mean, std = preprocessing(config.encoder)
    draws = torch.from_numpy(draw(17, (derive_seed(seed, "augment"),)))
    whole = normalise(augment(tiles.float() / 255, draws, config.augment), mean, std)
    assert torch.allclose(torch.cat(seen), whole.flatten(1), atol=1e-5)
    assert mean == (0.485, 0.456, 0.406)  # timm's constants of resnet18


class PixelsAsFeatures(nn.Module):
    """An encoder whose features are the pixels it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.flatten(1) * self.one


def slide_of_17_tiles() -> CohortSlide:
    grid = TileGrid(width_px=17 * 8, height_px=8, slide_mpp=0.5, tile_size_px=8, tile_mpp=0.5)
    return CohortSlide(slide_key="S-1", specimen_key="", case_key="", patient_key="", path=Path("none"), grid=grid, mask=b"",
                       num_tiles=17, split="train", weight=1.0, targets=(1.0,))  # fmt: skip
