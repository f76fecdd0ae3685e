"""The planner against the figures of Campanella et al. 2024 and against arithmetic by hand."""

from pathlib import Path

import pandas as pd
import pytest

from ingest.errors import ConfigError
from pretrain.config import EncoderConfig, Precision
from pretrain.plan import (
    GIB,
    Footprint,
    describe,
    devices_for,
    footprint,
    manifest_tile_counts,
    plan,
    recomputed_share,
    slide_sizes,
    tiles_per_device,
)
from tests.invented_cohort import invented_slides, write_manifest

RESNET18 = EncoderConfig(name="resnet18")
SMALL = Footprint(tile_bytes=GIB // 100, fixed_bytes=0, weight_bytes=0)


@pytest.mark.parametrize(
    ("name", "precision", "paper"),
    [
        ("resnet50", "float32", 840),
        ("resnet50", "float16", 1848),
        ("vit_base_patch16_224", "float32", 528),
        ("vit_base_patch16_224", "float16", 728),
    ],
)
def test_tiles_on_an_80_gb_device_are_within_8_percent_of_the_paper(
    name: str, precision: Precision, paper: int
) -> None:
    memory = footprint(EncoderConfig(name=name), 224, precision, attention="plain")
    assert tiles_per_device(memory, 80) == pytest.approx(paper, rel=0.08)


@pytest.mark.parametrize(("num_tiles", "paper"), [(50_578, 70), (27_219, 38), (18_766, 26)])
def test_devices_for_the_paper_s_slides_at_728_tiles_each(num_tiles: int, paper: int) -> None:
    assert devices_for(num_tiles, 728) == paper


def test_breast_slides_of_45056_tiles_need_11_devices_of_4096() -> None:
    assert devices_for(45_056, 4096) == 11
    assert devices_for(45_057, 4096) == 12
    assert recomputed_share(45_056, 11, 4096) == 0
    assert recomputed_share(45_056, 1, 4096) == pytest.approx(10 / 11)


def test_saved_bytes_of_a_convolution_are_its_input_by_hand() -> None:
    memory = footprint(RESNET18, 64)
    larger = footprint(RESNET18, 128)
    assert memory.weight_bytes == 4 * 11_176_512  # ResNet18 without its classifier
    assert larger.tile_bytes == pytest.approx(4 * memory.tile_bytes, rel=0.01)  # all its layers scale with the area
    stem_bytes = 4 * (
        3 * 64 * 64 + 64 * 32 * 32 + 64 * 32 * 32
    )  # image, and input and output of the first BatchNorm + ReLU
    assert memory.tile_bytes > stem_bytes
    indices_bytes = 64 * 16 * 16 * 8  # of the maxima, int64 in either precision
    half = footprint(RESNET18, 64, "bfloat16").tile_bytes
    assert half - indices_bytes == (memory.tile_bytes - indices_bytes) // 2


def test_fused_attention_needs_less_memory_than_plain() -> None:
    config = EncoderConfig(name="vit_tiny_patch16_224")
    plain, fused = (footprint(config, 224, "float32", attention) for attention in ("plain", "fused"))
    matrices = 12 * 3 * 197 * 197 * 4  # layers x heads x tokens x tokens in float32
    assert plain.tile_bytes - fused.tile_bytes == pytest.approx(matrices, rel=0.05)


def test_sizes_of_a_hundred_slides() -> None:
    assert slide_sizes(range(1, 101)) == {"max": 100, "99 %": 99, "90 %": 90}
    with pytest.raises(ConfigError, match="tile counts must be given"):
        slide_sizes([])


def test_tile_counts_come_from_the_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest", invented_slides(num_patients=12))
    written = pd.read_parquet(tmp_path / "manifest" / "slides.parquet")["num_tiles"]
    assert len(written) > 12
    assert manifest_tile_counts(tmp_path / "manifest") == written.tolist()


def test_step_time_hours_and_recomputation_by_hand() -> None:
    made = plan(
        RESNET18, [200, 100], tile_size_px=224, precision="float32", device_gib=1, num_encoders=1, num_steps=3600,
        encode_tiles_per_second=100, decode_tiles_per_second=1000, memory=SMALL,
    )  # fmt: skip
    assert made.tiles_per_device == 88  # 0.88 GiB of 0.01 GiB each
    largest = made.slides[0]
    assert (largest.num_tiles, largest.num_devices) == (200, 3)
    assert largest.recomputed_share == pytest.approx(112 / 200)
    assert largest.seconds == pytest.approx({"encode": 2.0, "backward": 2 * 2.56, "decode": 0.2})
    assert made.recomputed_share == pytest.approx((112 + 12) / 300)
    assert made.training_hours == pytest.approx((7.12 + 1 + 2.12) / 2)
    assert "88 tiles" in describe(made)


def test_decoding_that_is_slower_than_the_network_sets_the_pace() -> None:
    made = plan(
        RESNET18, [80], tile_size_px=224, precision="float32", device_gib=1, num_encoders=1, num_steps=1,
        encode_tiles_per_second=100, decode_tiles_per_second=10, memory=SMALL,
    )  # fmt: skip
    assert made.slides[0].step_seconds == 8.0


def test_a_device_that_holds_no_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no tile"):
        tiles_per_device(SMALL, 0.001)
