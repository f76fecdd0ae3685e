"""From uint8 tiles to what the encoder sees: augmented on the device in batches, then normalised.

Every random number belongs to a tile, not to a batch: `draw` makes one row per tile of the slide from (seed, epoch,
slide), and a rank or chunk takes the rows of its tiles. So a recomputed chunk, another chunk size or another number
of ranks sees the same pixels. Shape suffixes: K tiles of a chunk, P random numbers per tile.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.config import AugmentConfig

NUM_DRAWS = (
    12  # P: symmetry, brightness, contrast, saturation, 3 stain gains, 3 stain shifts, blur chance, blur strength
)

# Optical density of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston 2001.
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64)
GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R BT.601
BLUR_KERNEL = (0.25, 0.5, 0.25)  # binomial, standard deviation 0.7 px


def draw(num_tiles: int, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """[T, P] numbers in [0, 1), one row per tile of the slide in grid order."""
    return np.random.default_rng(seed).random((num_tiles, NUM_DRAWS), dtype=np.float32)


def augment(tiles_K3HW: Tensor, draws_KP: Tensor, config: AugmentConfig) -> Tensor:
    """Flip, turn, jitter colour and stain, and blur square tiles with values in [0, 1]; strengths of 0 change nothing."""
    tiles = turn(tiles_K3HW, (draws_KP[:, 0] * 8).long()) if config.symmetry else tiles_K3HW
    if config.stain:
        tiles = _jitter_stain(tiles, draws_KP[:, 4:10] * 2 - 1, config.stain)
    if config.colour:
        tiles = _jitter_colour(tiles, (draws_KP[:, 1:4] * 2 - 1) * config.colour)
    if config.blur:
        tiles = _blur(tiles, torch.where(draws_KP[:, 10] < config.blur, draws_KP[:, 11], 0.0))
    return tiles.clamp(0, 1)


def normalise(tiles_K3HW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(tile - mean) / std with the encoder's own constants, tiles in [0, 1]."""
    shape = (1, 3, 1, 1)
    return (tiles_K3HW - tiles_K3HW.new_tensor(mean).view(shape)) / tiles_K3HW.new_tensor(std).view(shape)


def turn(tiles_K3HW: Tensor, symmetry_K: Tensor) -> Tensor:
    """Each tile under one of the 8 symmetries of the square: 0-3 quarter turns, 4-7 the same after a mirror."""
    turned = torch.empty_like(tiles_K3HW)
    for number in range(8):
        chosen = torch.nonzero(symmetry_K == number).squeeze(1)
        if chosen.numel():
            some = tiles_K3HW[chosen]
            some = some.flip(-1) if number >= 4 else some
            turned[chosen] = torch.rot90(some, number % 4, dims=(-2, -1))
    return turned


def _jitter_colour(tiles: Tensor, strength_K3: Tensor) -> Tensor:
    brightness, contrast, saturation = (strength_K3[:, index].view(-1, 1, 1, 1) for index in range(3))
    tiles = tiles * (1 + brightness)
    tiles = tiles + (tiles - tiles.mean(dim=(1, 2, 3), keepdim=True)) * contrast
    grey = (tiles * tiles.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return tiles + (tiles - grey) * saturation


def _jitter_stain(tiles: Tensor, draws_K6: Tensor, strength: float) -> Tensor:
    """Scale and shift the amounts of the three stains in optical density (Tellez et al. 2018)."""
    stains = STAINS.to(device=tiles.device)
    unmix = torch.linalg.inv(stains.double()).to(tiles.dtype)
    density = -torch.log(tiles.clamp(min=1 / 256))
    amounts = torch.einsum("kchw,cs->kshw", density, unmix)
    gain, shift = (draws_K6[:, part].view(-1, 3, 1, 1) * strength for part in (slice(0, 3), slice(3, 6)))
    # White glass holds no stain: the shift grows with the amount that is there, so that background stays white.
    presence = density.mean(dim=1, keepdim=True).clamp(max=1)
    amounts = amounts * (1 + gain) + shift * presence
    return torch.exp(-torch.einsum("kshw,sc->kchw", amounts, stains.to(tiles.dtype)))


def _blur(tiles: Tensor, strength_K: Tensor) -> Tensor:
    kernel = tiles.new_tensor(BLUR_KERNEL)
    weights = torch.outer(kernel, kernel).expand(3, 1, 3, 3)
    soft = functional.conv2d(functional.pad(tiles, (1, 1, 1, 1), mode="replicate"), weights, groups=3)
    return torch.lerp(tiles, soft, strength_K.view(-1, 1, 1, 1))
