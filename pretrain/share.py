"""A rank's share of a slide: encoded in chunks, of which some keep their graph and the others are encoded twice.

Shape suffixes: K tiles on this rank or in this chunk, F feature width.
Memory is a knob: of its share a rank keeps the graph of at most `resident_tiles`; the rest is encoded without a graph
first, and again with one when the gradient is there (cached gradients). Both passes over a chunk see the same dropout,
augmentation and BatchNorm statistics.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pretrain.batchnorm import statistics_held
from pretrain.config import Precision, StepConfig
from pretrain.sample import Positions, chunk_positions, derive_seed
from pretrain.team import Team

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# (tiles of a chunk on the device: uint8 or float [K, 3, H, W]; their ids, int64 [K] on the CPU; a generator on the device)
# -> float [K, 3, H, W]. The generator is seeded by the chunk, so both passes over a recomputed chunk are the same.
Prepare = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(slots=True, kw_only=True)
class Share:
    """The tiles of one rank, cut into chunks; `graphs` holds the features with graph of resident chunks."""

    encoder: nn.Module
    tiles_K3HW: Tensor
    tile_ids: Tensor
    chunks: list[Positions]
    first_resident: int
    seed: int
    prepare: Prepare
    precision: Precision
    channels_last: bool
    device: torch.device
    wants_gradient: bool
    features_KF: Tensor | None = None
    graphs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def num_tiles(self) -> int:
        return len(self.tiles_K3HW)


def cut_share(
    encoder: nn.Module, tiles_K3HW: Tensor, counts: Sequence[int], team: Team, config: StepConfig, seed: int,
    prepare: Prepare | None, tile_ids: Tensor | None, training: bool = True,
) -> Share:  # fmt: skip
    assert team.share_index is not None, "only encoder ranks have a share"
    start = sum(counts[: team.share_index])
    share_seed = derive_seed(seed, "share", start)  # not the rank: one rank or many, the first share is the same
    synchronised = training and config.batch_norm == "synchronised"
    num_chunks = math.ceil((max(counts) if synchronised else len(tiles_K3HW)) / config.chunk_tiles)
    chunks = chunk_positions(len(tiles_K3HW), num_chunks, share_seed if training else None)
    wants_gradient = training and is_trained(encoder)
    return Share(
        encoder=encoder, tiles_K3HW=tiles_K3HW,
        tile_ids=torch.arange(start, start + len(tiles_K3HW)) if tile_ids is None else tile_ids,
        chunks=chunks, first_resident=first_resident_chunk(chunks, config.resident_tiles if wants_gradient else -1),
        seed=share_seed, prepare=prepare or normalise, precision=config.precision, channels_last=config.channels_last,
        device=team.device, wants_gradient=wants_gradient,
    )  # fmt: skip


def first_resident_chunk(chunks: Sequence[Positions], resident_tiles: int) -> int:
    """Chunks from this one on keep their graph. The last ones: graphs are not yet held while the others are encoded."""
    first, num_tiles = len(chunks), 0
    while first > 0 and num_tiles + len(chunks[first - 1]) <= resident_tiles:
        first -= 1
        num_tiles += len(chunks[first])
    return first


def encode_share(share: Share) -> None:
    """Fill `features_KF` (slide order, no graph) and keep the graphs of resident chunks."""
    for index, positions in enumerate(share.chunks):
        resident = index >= share.first_resident
        with torch.set_grad_enabled(resident):
            chunk_KF = encode_chunk(share, index)
        if share.features_KF is None:
            wide = torch.float64 if chunk_KF.dtype == torch.float64 else torch.float32
            share.features_KF = torch.empty(share.num_tiles, chunk_KF.shape[1], dtype=wide, device=share.device)
        share.features_KF[torch.from_numpy(positions).to(share.device)] = chunk_KF.detach().to(share.features_KF.dtype)
        if resident:
            share.graphs[index] = chunk_KF


def backward_share(share: Share, grad_KF: Tensor) -> None:
    """Resume the graphs with the gradient of their features: the kept ones, then the others, encoded once more."""
    share.features_KF = None
    for index in range(share.first_resident, len(share.chunks)):
        _resume(share.graphs.pop(index), grad_KF, share.chunks[index])
    with statistics_held(share.encoder):
        for index in range(share.first_resident):
            _resume(encode_chunk(share, index), grad_KF, share.chunks[index])


def _resume(chunk_KF: Tensor, grad_KF: Tensor, positions: Positions) -> None:
    chunk_grad_KF = grad_KF[torch.from_numpy(positions).to(grad_KF.device)]
    chunk_KF.backward(chunk_grad_KF.to(chunk_KF.device, chunk_KF.dtype))  # type: ignore[no-untyped-call]


def encode_chunk(share: Share, index: int) -> Tensor:
    """Features of one chunk, a pure function of weights, tiles and the chunk's seed: both passes are the same."""
    positions = torch.from_numpy(share.chunks[index])
    tiles_K3HW = _on_device(share.tiles_K3HW, positions, share.device)
    chunk_seed = derive_seed(share.seed, "chunk", index)
    generator = torch.Generator(share.device).manual_seed(chunk_seed)
    with seeded(chunk_seed, share.device):
        prepared_K3HW = share.prepare(tiles_K3HW, share.tile_ids[positions], generator)
        prepared_K3HW = prepared_K3HW.to(next(share.encoder.parameters()).dtype)
        if share.channels_last and prepared_K3HW.dim() == 4:
            prepared_K3HW = prepared_K3HW.contiguous(memory_format=torch.channels_last)
        with autocast(share.device, share.precision):
            features_KF: Tensor = share.encoder(prepared_K3HW)
    return features_KF


def _on_device(tiles_K3HW: Tensor, positions: Tensor, device: torch.device) -> Tensor:
    """The tiles of a chunk. On their way from the reader's slot to a GPU they are gathered in page-locked memory.

    So the copy does not hold up the next chunk's; torch keeps such a buffer until the copy out of it has ended.
    """
    if device.type != "cuda" or tiles_K3HW.device.type != "cpu":
        return tiles_K3HW[positions.to(tiles_K3HW.device)].to(device)
    tiles_KHW3 = tiles_K3HW.permute(0, 2, 3, 1)  # how a slot lies in memory: whole tiles are copied
    shape = (len(positions), *tiles_KHW3.shape[1:])
    gathered_KHW3 = torch.empty(shape, dtype=tiles_K3HW.dtype, pin_memory=True)
    torch.index_select(tiles_KHW3, 0, positions, out=gathered_KHW3)
    return gathered_KHW3.to(device, non_blocking=True).permute(0, 3, 1, 2)


def normalise(tiles_K3HW: Tensor, tile_ids: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 RGB to float32 with ImageNet mean and deviation; float tiles pass as they are."""
    if tiles_K3HW.dtype != torch.uint8:
        return tiles_K3HW
    mean = torch.tensor(IMAGENET_MEAN, device=tiles_K3HW.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=tiles_K3HW.device).view(3, 1, 1) * 255
    return tiles_K3HW.to(torch.float32).sub_(mean).div_(std)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The default generators of CPU and device start from `seed` in the block and are put back after it (dropout)."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision != "float32")


def is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
