"""Features of every slide of a manifest, for other people's tools: `python -m evaluate features`.

Resumable: what is finished is skipped. Under torchrun the ranks share the slides and need not talk to each other. A slide
that cannot be used never stops the others; the ledger tells its reason.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from evaluate.feature_layout import (
    Dtype,
    FeatureStore,
    geometry_folder,
    is_current,
    is_finished,
    is_stamp_link,
    write_bag,
    write_bags_config,
    write_features,
    write_stamp,
)
from evaluate.feature_ledger import Outcome, forget_part, merge_parts, write_part
from evaluate.frozen import FrozenEncoder, open_encoder, require_geometry
from evaluate.tile_blocks import Scan, num_blocks, plan_blocks, read_blocks, read_scans
from ingest.config import Section
from ingest.errors import ConfigError, InputError, SlideError
from ingest.progress import track
from ingest.read_plan import check_damage
from pretrain.augment import normalise
from pretrain.config import Precision
from pretrain.share import autocast
from pretrain.team import pick_device


class FeaturesConfig(Section):
    """How features are read, computed and stored."""

    dtype: Dtype = "float16"  # of the stored features; float32 for CLAM's h5 reader
    also: tuple[Literal["bags", "stamp"], ...] = ()  # further forms beside TRIDENT's, made from its files
    stamp_link: bool = True  # STAMP's files link to the features; false: they hold a copy
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")  # of the encoder in folders; none: model and digest
    precision: Precision = "float32"  # of the encoder
    channels_last: bool = True  # memory order of convolutions; same numbers
    chunk_tiles: int = Field(default=64, ge=1)  # tiles per forward pass
    block_tiles: int = Field(default=1024, ge=1)  # tiles per request to the reader; three blocks of 224 px are 462 MB
    reader: Literal["auto", "tiff", "openslide", "cucim"] = "auto"
    reader_threads: int = Field(default=1, ge=1)
    timeout_seconds: float = Field(default=600.0, gt=0)  # how long to wait for a block before the slide is given up
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """Where the features are, and what became of the slides: of all ranks for the last one to end, else of this one."""

    store: FeatureStore
    outcome: Outcome


def feature_store(encoder: FrozenEncoder, scans: Sequence[Scan], out: Path, config: FeaturesConfig) -> FeatureStore:
    """Where the features of these slides go.

    Raises:
        ManifestError: the encoder was trained on tiles of another size or resolution.
    """
    grid = scans[0].grid
    require_geometry(encoder, grid.tile_size_px, grid.tile_mpp)
    return FeatureStore(
        folder=geometry_folder(out, grid.tile_size_px, grid.tile_mpp),
        name=config.name or f"{encoder.name}_{encoder.digest[:8]}", encoder_sha256=encoder.digest,
        num_features=encoder.num_features, dtype=config.dtype, precision=config.precision,
    )  # fmt: skip


def extract(encoder: FrozenEncoder, scans: Sequence[Scan], out: Path, config: FeaturesConfig) -> Extracted:
    """Write what is missing of this rank's slides.

    Raises:
        ManifestError, ConfigError: the encoder was trained on other tiles, or does not take tiles of this size.
        SlideError: the reader process fails on slide after slide. InputError: no slide of this rank could be used.
    """
    store = feature_store(encoder, scans, out, config)
    folder = store.features_path("").parent
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    forget_part(folder, rank, num_ranks)
    mine = rank_scans(scans, rank, num_ranks)
    todo = [scan for scan in mine if not is_finished(store, scan)]
    failed = _extract_all(encoder, todo, store, config) if todo else {}
    fresh = {scan.slide_key for scan in todo}
    outcome = Outcome(
        written=tuple(sorted(fresh - failed.keys())),
        skipped=tuple(sorted(scan.slide_key for scan in mine if scan.slide_key not in fresh)),
        failed=failed,
    )
    if "bags" in config.also:
        write_bags_config(store, scans[0].grid.tile_size_px, scans[0].grid.tile_mpp)
    for scan in mine:
        if scan.slide_key not in failed:
            _write_other_forms(store, scan, config)
    write_part(folder, outcome, rank, num_ranks)
    whole = merge_parts(folder, len(scans), num_ranks, encoder.digest)
    if mine and len(failed) == len(mine):
        first, reason = next(iter(failed.items()))
        raise InputError(f"features: none of {len(mine)} slides could be used; the first, {first}: {reason}")
    return Extracted(store=store, outcome=whole or outcome)


def features_run(
    source: str, checkpoint: str, manifest: Path | None, vault: Path | None, out: Path, config: FeaturesConfig,
    dry_run: bool,
) -> None:  # fmt: skip
    """What the command does: says what it will do, does it unless `dry_run`, and says what to open.

    Args:
        manifest, vault: None takes those that the run `source` was trained on.
    """
    encoder = open_encoder(source, checkpoint)
    if encoder.trained is not None:
        data = encoder.trained.config.data
        manifest, vault = manifest or data.manifest, vault or data.vault
    if manifest is None or vault is None:
        raise ConfigError("features: an encoder folder does not say of which slides; give --manifest and --vault")
    scans = read_scans(manifest, vault)
    store = feature_store(encoder, scans, out, config)
    num_finished = sum(is_finished(store, scan) for scan in scans)
    num_tiles = sum(scan.num_tiles for scan in scans)
    num_bytes = num_tiles * encoder.num_features * (2 if config.dtype == "float16" else 4)
    print(f"encoder {encoder.name}, {encoder.num_features} features, digest {encoder.digest[:16]}"
          + ("" if encoder.tile_mpp else "; it does not say for which tiles it was made"))  # fmt: skip
    print(f"{len(scans):,} slides, {num_tiles:,} tiles of {scans[0].grid.tile_size_px} px at {scans[0].grid.tile_mpp:g} mpp; "
          f"{num_finished:,} slides are finished; {num_bytes / 1e9:.2f} GB in all as {config.dtype}")  # fmt: skip
    folder = store.features_path("").parent
    if dry_run:
        print(f"would write {folder}")
        return
    extracted = extract(encoder, scans, out, config)
    print(extracted.outcome.summary())
    print(f"open {folder} (what became of each slide: ledger.json)")


def rank_scans(scans: Sequence[Scan], rank: int, num_ranks: int) -> list[Scan]:
    """The slides of a rank: dealt out from the largest to the smallest, so that the ranks end together."""
    return sorted(scans, key=lambda scan: (-scan.num_tiles, scan.slide_key))[rank::num_ranks]


def prepare_encoder(encoder: FrozenEncoder, config: FeaturesConfig, tile_size_px: int) -> torch.device:
    """Move the encoder to its device, and see that it takes such tiles.

    Raises:
        ConfigError: it does not.
    """
    device = torch.device("cpu") if config.device == "cpu" else pick_device()
    if config.device == "cuda" and device.type != "cuda":
        raise ConfigError("features.device = cuda: torch sees no CUDA device; look at nvidia-smi, or set device = cpu")
    encoder.module.to(device)
    if config.channels_last:
        encoder.module.to(memory_format=torch.channels_last)
    blank = np.full((1, tile_size_px, tile_size_px, 3), 255, np.uint8)
    try:
        shape = tuple(encode_tiles(encoder, blank, device, config).shape)
    except (AssertionError, RuntimeError) as error:  # timm asserts the size that a ViT was built for
        raise ConfigError(
            f"encoder {encoder.name}: does not take tiles of {tile_size_px} px: {str(error).splitlines()[0]}; count the "
            "tiles with the size of the encoder"
        ) from error
    if shape != (1, encoder.num_features):
        raise ConfigError(f"encoder {encoder.name}: gives {shape} for one tile, not (1, {encoder.num_features})")
    return device


def encode_tiles(
    encoder: FrozenEncoder, tiles_KHW3: NDArray[np.uint8], device: torch.device, config: FeaturesConfig
) -> Tensor:
    """[K, F] float32 on the CPU, in chunks; normalised as in training's validation."""
    features_KF = torch.empty(len(tiles_KHW3), encoder.num_features, device=device)
    with torch.inference_mode():
        for first in range(0, len(tiles_KHW3), config.chunk_tiles):
            # [K, S, S, 3] seen as [K, 3, S, S] is in channels_last order already
            tiles = torch.from_numpy(tiles_KHW3[first : first + config.chunk_tiles]).permute(0, 3, 1, 2).to(device)
            prepared = normalise(tiles.float().div_(255), encoder.mean, encoder.std)
            if not config.channels_last:
                prepared = prepared.contiguous()
            with autocast(device, config.precision):
                features_KF[first : first + len(tiles)] = encoder.module(prepared)
    return features_KF.cpu()


def _extract_all(
    encoder: FrozenEncoder, scans: Sequence[Scan], store: FeatureStore, config: FeaturesConfig
) -> dict[str, str]:
    """Write the features of every slide that can be used; the reasons of the others."""
    size_px = scans[0].grid.tile_size_px
    device = prepare_encoder(encoder, config, size_px)
    block_tiles = min(config.block_tiles, max(scan.num_tiles for scan in scans))
    blocks = read_blocks(
        plan_blocks(scans, block_tiles), block_tiles=block_tiles, tile_size_px=size_px, reader=config.reader,
        num_threads=config.reader_threads, timeout_seconds=config.timeout_seconds,
    )  # fmt: skip
    failed: dict[str, str] = {}
    features_TF, num_damaged = np.empty((0, 0), np.float32), 0
    for block in track(blocks, num_blocks(scans, block_tiles), f"features, blocks of {block_tiles:,} tiles"):
        scan, end = block.scan, block.first + len(block.tile_indices)
        if block.first == 0:
            features_TF, num_damaged = np.empty((scan.num_tiles, encoder.num_features), np.float32), 0
        if block.tiles_KHW3 is None:
            failed[scan.slide_key] = block.problem
        if block.tiles_KHW3 is None or scan.slide_key in failed:
            continue
        features_TF[block.first : end] = encode_tiles(encoder, block.tiles_KHW3, device, config).numpy()
        num_damaged += block.num_damaged
        if end == scan.num_tiles:
            try:
                check_damage(num_damaged, scan.num_tiles)
                write_features(store, scan, features_TF, num_damaged)
            except SlideError as error:
                failed[scan.slide_key] = error.reason
    return failed


def _write_other_forms(store: FeatureStore, scan: Scan, config: FeaturesConfig) -> None:
    """The bag and STAMP's file of a finished slide, where missing or older than its features."""
    source, bag, stamp = (
        path(scan.slide_key) for path in (store.features_path, store.bag_path, store.stamp_path)
    )  # fmt: skip
    if "bags" in config.also and not is_current(bag, source):
        write_bag(store, scan.slide_key)
    if "stamp" in config.also and not (is_current(stamp, source) and is_stamp_link(stamp) == config.stamp_link):
        write_stamp(store, scan, config.stamp_link)
