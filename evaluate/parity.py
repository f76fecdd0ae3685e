"""Does the exported encoder, loaded by plain timm, give the features of the training code? Bit for bit, on the CPU.

Both sides go their own way from the same uint8 tiles: ours through the share of a step (`pretrain.share`), theirs through
PIL and the transform that timm builds from the exported config.json, so that mean, deviation, size, crop and
interpolation are compared with the weights. Batch and memory order are the same on both sides: convolution kernels for
another order round otherwise, and what that amounts to is measured and stated.
Shape suffixes: K tiles, F feature width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ingest.errors import InputError
from ingest.slide import open_slide
from pretrain.cohort import Cohort, CohortSlide
from pretrain.config import StepConfig
from pretrain.share import Prepare, cut_share, encode_share
from pretrain.team import make_team

NUM_SLIDES, TILES_PER_SLIDE = 4, 4
NUM_INVENTED = 16
INVENTED_SEED = 20240303


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityTiles:
    """Tiles to compare on.

    Attributes:
        tiles_KHW3: uint8 RGB.
        num_slides: of the manifest that they come from; 0: no slide could be read and the tiles are invented.
        num_unread: slides that were tried and could not be read.
    """

    tiles_KHW3: NDArray[np.uint8]
    num_slides: int
    num_unread: int

    @property
    def source(self) -> str:
        num = len(self.tiles_KHW3)
        if self.num_slides:
            return f"{num} real tiles of {self.num_slides} of the manifest's slides"
        return f"{num} invented tiles, because none of the manifest's {self.num_unread} slides could be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The outcome of the comparison with plain timm.

    Attributes:
        source: which tiles. num_slides: as in ParityTiles.
        largest_feature: largest absolute value among the features, for scale.
        default_order_difference: largest difference when timm keeps its default memory order; 0 if that was compared.
    """

    source: str
    num_slides: int
    largest_feature: float
    default_order_difference: float

    @property
    def sentence(self) -> str:
        if not self.default_order_difference:
            return f"{self.source}: features through plain timm are equal bit for bit on the CPU"
        return (
            f"{self.source}: features through plain timm are equal bit for bit on the CPU in the memory order of training "
            f"(channels_last); in timm's default order they differ by at most {self.default_order_difference:.1e}, "
            f"the largest feature is {self.largest_feature:.3g}"
        )


def parity_tiles(cohort: Cohort) -> ParityTiles:
    """Some tiles of the first few slides that can be read; noise only if none can."""
    found: list[NDArray[np.uint8]] = []
    num_unread = 0
    for slide in cohort.slides:
        if len(found) == NUM_SLIDES:
            break
        tiles = _slide_tiles(slide)
        if tiles is None:
            num_unread += 1
        else:
            found.append(tiles)
    tiles_KHW3 = np.concatenate(found) if found else invented_tiles(NUM_INVENTED, cohort.tile_size_px)
    return ParityTiles(tiles_KHW3=tiles_KHW3, num_slides=len(found), num_unread=num_unread)


def invented_tiles(num_tiles: int, size_px: int) -> NDArray[np.uint8]:
    """[K, S, S, 3] noise: what may travel with the weights, where a patient's tissue may not."""
    return np.random.default_rng(INVENTED_SEED).integers(0, 256, (num_tiles, size_px, size_px, 3), dtype=np.uint8)


def training_features(
    encoder: nn.Module, tiles_KHW3: NDArray[np.uint8], prepare: Prepare, *, channels_last: bool
) -> Tensor:
    """[K, F] float32: the encoder in evaluation mode through the code that trains and predicts, in one chunk."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    encoder = encoder.cpu().float().to(memory_format=order).eval()
    step = StepConfig(chunk_tiles=len(tiles_KHW3), channels_last=channels_last)
    tiles_K3HW = torch.from_numpy(np.ascontiguousarray(tiles_KHW3)).permute(0, 3, 1, 2).contiguous()
    team = make_team("single", device="cpu")
    with torch.no_grad():
        share = cut_share(encoder, tiles_K3HW, [len(tiles_K3HW)], team, step, 0, prepare, None, training=False)
        encode_share(share)
    assert share.features_KF is not None, "there is at least one tile"
    return share.features_KF


def timm_features(folder: Path, tiles_KHW3: NDArray[np.uint8], *, channels_last: bool) -> Tensor:
    """[K, F]: the folder as any user of timm loads and applies it."""
    model = load_exported(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    tiles_K3HW = torch.stack([transform(Image.fromarray(tile)) for tile in tiles_KHW3])
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        tiles_K3HW = tiles_K3HW.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        features: Tensor = model(tiles_K3HW)
    return features


def load_exported(folder: Path) -> nn.Module:
    """The encoder as any user of timm gets it."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model


def check_parity(features_KF: Tensor, folder: Path, tiles: ParityTiles, *, channels_last: bool) -> Parity:
    """Compare the training code's features of `tiles` with what plain timm gets from the folder.

    Raises:
        InputError: they are not the same bits.
    """
    theirs_KF = timm_features(folder, tiles.tiles_KHW3, channels_last=channels_last)
    if theirs_KF.shape != features_KF.shape or not torch.equal(theirs_KF, features_KF):
        raise InputError(
            f"export: features from plain timm {describe_difference(theirs_KF, features_KF)} from the training code's on "
            f"{tiles.source}; nothing was written; the encoder has parts that timm does not build from its name and "
            "model_args, or another normalisation"
        )
    plain_KF = timm_features(folder, tiles.tiles_KHW3, channels_last=False) if channels_last else theirs_KF
    return Parity(
        source=tiles.source,
        num_slides=tiles.num_slides,
        largest_feature=features_KF.abs().max().item(),
        default_order_difference=(plain_KF - features_KF).abs().max().item(),
    )


def describe_difference(theirs_KF: Tensor, ours_KF: Tensor) -> str:
    if theirs_KF.shape != ours_KF.shape:
        return f"have the shape {tuple(theirs_KF.shape)}, different from {tuple(ours_KF.shape)}"
    return f"differ by up to {(theirs_KF - ours_KF).abs().max().item():.3g}"


def _slide_tiles(slide: CohortSlide) -> NDArray[np.uint8] | None:
    """Tiles from the middle of a slide; None if it cannot be read or they are damaged."""
    indices = slide.tile_indices()
    middle = max(0, (len(indices) - TILES_PER_SLIDE) // 2)
    indices = indices[middle : middle + TILES_PER_SLIDE]
    size = slide.grid.tile_size_px
    tiles = np.empty((len(indices), size, size, 3), np.uint8)
    try:
        with open_slide(slide.path, mpp_override=slide.grid.slide_mpp) as opened:
            report = opened.read_tiles(slide.grid, indices, tiles)
    except ValueError:  # a SlideError, or another scan stands where the manifest's was
        return None
    return None if report.bad else tiles
