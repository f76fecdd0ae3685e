"""Will it fit, on how many devices, and how long will it take? Counted on a CPU, without a GPU.

What fills a device in training is what autograd keeps for the backward pass. It is counted exactly, tile by tile, with
`saved_tensors_hooks`; one reserve factor stands for everything else (CUDA context, workspaces, fragmentation, gradients in
flight). The factor is one for all models, fitted to the four figures of Campanella et al. 2024 for an 80 GB H100: 840 and 1,848
tiles with ResNet50, 528 and 728 with ViT-base (float32, mixed precision).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ingest.errors import ConfigError
from ingest.manifest import read_table
from pretrain.config import EncoderConfig, Precision, SampleConfig
from pretrain.encoder import build_encoder

RESERVE = 0.88  # part of the device's memory that saved activations can take
GIB = 2**30
TRAINING_COPIES = 4  # float32 weights, gradients, and two moments of AdamW
CHECKPOINT_COPIES = 3  # weights and two moments

# Autocast on CUDA computes these in float32; on CPU it leaves them in half precision and would be counted too small.
FLOAT32_ON_CUDA = frozenset({
    Tensor.softmax, torch.softmax, functional.softmax, Tensor.log_softmax, torch.log_softmax, functional.log_softmax,
    functional.layer_norm, torch.layer_norm, functional.group_norm, torch.group_norm,
    Tensor.norm, torch.norm, Tensor.cumsum, torch.cumsum, Tensor.exp, torch.exp, Tensor.log, torch.log, Tensor.pow, torch.pow,
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of one encoder in training.

    Attributes:
        tile_bytes: saved for the backward pass, per tile.
        fixed_bytes: saved once per pass: half-precision copies of the weights.
        weight_bytes: the float32 weights.
    """

    tile_bytes: int
    fixed_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """One slide size.

    Attributes:
        num_devices: encoder devices that hold the whole slide resident (the aggregator's own device not counted).
        recomputed_share: part of the tiles that run twice on the devices that there are, 0 .. 1.
        seconds: of one step on them: encode, backward (with recomputation), decode; decode overlaps with the other two.
    """

    name: str
    num_tiles: int
    num_devices: int
    recomputed_share: float
    seconds: dict[str, float]

    @property
    def step_seconds(self) -> float:
        return max(self.seconds["encode"] + self.seconds["backward"], self.seconds["decode"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of `plan`; hours and bytes are for the whole training."""

    encoder: str
    precision: Precision
    tile_size_px: int
    device_gib: float
    footprint: Footprint
    tiles_per_device: int
    num_encoders: int
    slides: tuple[SlidePlan, ...]
    recomputed_share: float
    training_hours: float
    disk_bytes: int


def footprint(
    config: EncoderConfig, tile_size_px: int = 224, precision: Precision = "float32",
    attention: Literal["plain", "fused"] = "fused",
) -> Footprint:  # fmt: skip
    """Count what one forward pass keeps, from 2 and from 3 tiles; a few seconds on one core for ViT-base.

    Args:
        attention: plain keeps the attention matrices of a ViT, as older code does (the paper's figures fit it).
    """
    encoder = build_encoder(config).train()
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = attention == "fused"  # type: ignore[assignment]  # timm's switch
    # From 2 tiles on: BatchNorm refuses a single one where its last feature map is one pixel.
    two, three = (_saved_bytes(encoder, num_tiles, tile_size_px, precision) for num_tiles in (2, 3))
    tile_bytes = three - two
    weight_bytes = sum(parameter.numel() * 4 for parameter in encoder.parameters())
    return Footprint(tile_bytes=tile_bytes, fixed_bytes=max(two - 2 * tile_bytes, 0), weight_bytes=weight_bytes)


def tiles_per_device(memory: Footprint, device_gib: float, reserve: float = RESERVE, training_copies: int = 1) -> int:
    """Tiles whose graph fits: the paper's K, our `resident_tiles`.

    Args:
        training_copies: float32 copies of the weights on the device; 1 as in the paper's dummy-loss measurement (the
            gradients come as activations go), 4 to leave room for gradients and AdamW.
    Raises:
        ConfigError: not one tile fits.
    """
    free_bytes = device_gib * GIB * reserve - memory.fixed_bytes - training_copies * memory.weight_bytes
    tiles = int(free_bytes // memory.tile_bytes)
    if tiles < 1:
        raise ConfigError(
            f"plan: a device of {device_gib:g} GiB holds no tile ({memory.tile_bytes / GIB:.2f} GiB each, "
            f"{(training_copies * memory.weight_bytes + memory.fixed_bytes) / GIB:.1f} GiB of weights); take a larger "
            "device, smaller tiles or a smaller encoder"
        )
    return tiles


def devices_for(num_tiles: int, tiles_on_each: int) -> int:
    """Devices that hold a slide of `num_tiles` at once."""
    return math.ceil(num_tiles / tiles_on_each)


def recomputed_share(num_tiles: int, num_encoders: int, resident_tiles: int) -> float:
    """Part of a slide's tiles that runs twice when `num_encoders` devices keep `resident_tiles` each."""
    return max(0, num_tiles - num_encoders * resident_tiles) / num_tiles


def manifest_tile_counts(manifest: Path) -> list[int]:
    """`num_tiles` of every slide of a manifest that has tiles.

    Raises:
        ManifestError: no manifest there, or a damaged one.
    """
    counts: list[int | None] = read_table(manifest, "slides", ["num_tiles"]).column("num_tiles").to_pylist()
    return [count for count in counts if count]


def sampled_counts(tile_counts: Sequence[int], sample: SampleConfig) -> list[int]:
    """Tiles of each slide that take part in a step; K of a smaller slide, too, where `paper` draws with replacement."""
    if sample.num_tiles is None:
        return list(tile_counts)
    if sample.mode == "paper":
        return [sample.num_tiles] * len(tile_counts)
    return [min(count, sample.num_tiles) for count in tile_counts]


def slide_sizes(tile_counts: Sequence[int]) -> dict[str, int]:
    """The largest slide, and the sizes that 99 % and 90 % of slides do not exceed; from `num_tiles` of a manifest."""
    counts = sorted(tile_counts)
    if not counts or counts[0] < 1:
        raise ConfigError(
            "plan: tile counts must be given and be at least 1; count tiles with `python -m ingest` first"
        )
    return {
        "max": counts[-1],
        "99 %": counts[math.ceil(0.99 * len(counts)) - 1],
        "90 %": counts[math.ceil(0.90 * len(counts)) - 1],
    }


def plan(
    config: EncoderConfig,
    tile_counts: Sequence[int],
    *,
    tile_size_px: int,
    precision: Precision,
    device_gib: float,
    num_encoders: int,
    num_steps: int,
    encode_tiles_per_second: float,
    decode_tiles_per_second: float,
    num_checkpoints: int = 3,
    attention: Literal["plain", "fused"] = "fused",
    memory: Footprint | None = None,
) -> Plan:
    """What training needs.

    Args:
        tile_counts: tiles of every slide, `num_tiles` of slides.parquet; or a few numbers such as (50578, 27219).
        device_gib: memory of one device in GiB; an H100 80GB has 80.
        num_encoders: encoder devices per slide that there are.
        num_steps: optimiser steps (slides) of the whole training.
        encode_tiles_per_second: forward pass only, one device; `measure_encode_speed` gives it for this machine.
        decode_tiles_per_second: reading, per encoder rank; `python -m ingest` reports it while counting tiles.
    """
    memory = memory or footprint(config, tile_size_px, precision, attention)
    resident = tiles_per_device(memory, device_gib, training_copies=TRAINING_COPIES)
    slides = tuple(
        SlidePlan(
            name=name, num_tiles=num_tiles, num_devices=devices_for(num_tiles, resident),
            recomputed_share=recomputed_share(num_tiles, num_encoders, resident),
            seconds=_step_seconds(num_tiles, num_encoders, resident, encode_tiles_per_second, decode_tiles_per_second),
        )
        for name, num_tiles in slide_sizes(tile_counts).items()
    )  # fmt: skip
    per_slide = [
        _step_seconds(num_tiles, num_encoders, resident, encode_tiles_per_second, decode_tiles_per_second)
        for num_tiles in tile_counts
    ]
    step_seconds = [max(seconds["encode"] + seconds["backward"], seconds["decode"]) for seconds in per_slide]
    twice = sum(recomputed_share(num_tiles, num_encoders, resident) * num_tiles for num_tiles in tile_counts)
    return Plan(
        encoder=config.name, precision=precision, tile_size_px=tile_size_px, device_gib=device_gib, footprint=memory,
        tiles_per_device=resident, num_encoders=num_encoders, slides=slides, recomputed_share=twice / sum(tile_counts),
        training_hours=num_steps * sum(step_seconds) / len(step_seconds) / 3600,
        disk_bytes=(num_checkpoints + 1) * CHECKPOINT_COPIES * memory.weight_bytes,  # one more while a new one is written
    )  # fmt: skip


def measure_encode_speed(config: EncoderConfig, tile_size_px: int, num_tiles: int = 8) -> float:
    """Tiles per second of a forward pass in float32 on this machine, best of three."""
    encoder = build_encoder(config).eval()
    tiles_K3HW = torch.rand(num_tiles, 3, tile_size_px, tile_size_px)
    best = math.inf
    with torch.no_grad():
        for _ in range(3):
            started_at = time.perf_counter()
            encoder(tiles_K3HW)
            best = min(best, time.perf_counter() - started_at)
    return num_tiles / best


def describe(made: Plan) -> str:
    """The plan as text for people."""
    memory = made.footprint
    lines = [
        f"{made.encoder}, {made.precision}, {made.tile_size_px} px: {memory.tile_bytes / 2**20:.1f} MiB per tile; a device of "
        f"{made.device_gib:g} GiB keeps {made.tiles_per_device:,} tiles (step.resident_tiles = {made.tiles_per_device})",
        f"{'slide':>6} {'tiles':>8} {'devices to keep all':>20} {'run twice on ' + str(made.num_encoders):>16} "
        f"{'encode s':>9} {'backward s':>11} {'decode s':>9} {'step s':>8}",
    ]
    lines += [
        f"{slide.name:>6} {slide.num_tiles:>8,} {slide.num_devices:>20,} {slide.recomputed_share:>16.0%} "
        f"{slide.seconds['encode']:>9.1f} {slide.seconds['backward']:>11.1f} {slide.seconds['decode']:>9.1f} "
        f"{slide.step_seconds:>8.1f}"
        for slide in made.slides
    ]
    lines.append(
        f"all slides: {made.recomputed_share:.0%} of tiles run twice; {made.training_hours:,.1f} hours; "
        f"{made.disk_bytes / GIB:.1f} GiB of checkpoints"
    )
    return "\n".join(lines)


def _step_seconds(
    num_tiles: int, num_encoders: int, resident_tiles: int, encode_speed: float, decode_speed: float
) -> dict[str, float]:
    """Forward once for all; backward costs two forwards, and one more for tiles that run twice."""
    forward = num_tiles / num_encoders / encode_speed
    again = recomputed_share(num_tiles, num_encoders, resident_tiles)
    return {
        "encode": forward,
        "backward": (2 + again) * forward,
        "decode": num_tiles / num_encoders / decode_speed,
    }


class _CudaAutocast(TorchFunctionMode):
    """Applies the float32 list of CUDA's autocast while counting on a CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in FLOAT32_ON_CUDA:
            args, kwargs = tree_map(_widen, (args, kwargs))
        return function(*args, **kwargs)


def _widen(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _saved_bytes(encoder: nn.Module, num_tiles: int, tile_size_px: int, precision: Precision) -> int:
    """Bytes of distinct storages that autograd keeps of one forward pass, weights not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # holds the storages: a freed address could come back

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    tiles_K3HW = torch.zeros(num_tiles, 3, tile_size_px, tile_size_px)
    half = precision != "float32"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),  # float16 has the same size and is slow on CPUs
    ):
        if half:
            with _CudaAutocast():
                encoder(tiles_K3HW)
        else:
            encoder(tiles_K3HW)
    return sum(storage.nbytes() for storage in saved.values())
