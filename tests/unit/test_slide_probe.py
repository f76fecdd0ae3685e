"""Gated attention on made-up features whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluate.probe_config import SlideProbeConfig
from evaluate.roc import auroc
from evaluate.slide_probe import feature_statistics, probe_slides
from ingest.errors import InputError
from ingest.geometry import TileGrid
from pretrain.cohort import CohortSlide

GRID = TileGrid(width_px=100, height_px=100, slide_mpp=0.5, tile_size_px=10, tile_mpp=0.5)
FAST = SlideProbeConfig(
    num_epochs=12, slides_per_epoch=1.0, learning_rate=1e-2, hidden_size=16, gate_size=8, dropout=0.0
)


def slide(number: int, split: str) -> CohortSlide:
    return CohortSlide(
        slide_key=f"s{number}", specimen_key=f"q{number}", case_key=f"c{number}", patient_key=f"p{number}",
        path=Path("none"), grid=GRID, mask=b"", num_tiles=12, split=split, weight=1.0, targets=(float(number % 2),),
    )  # fmt: skip


TRAIN, TUNE, TEST = (
    [slide(number, split) for number in numbers]
    for split, numbers in (("train", range(24)), ("tune", range(24, 36)), ("test", range(36, 60)))
)


def features(slide_key: str, signal: float = 4.0) -> NDArray[np.float32]:
    """12 tiles of 6 features; in positive slides 4 tiles have a larger second feature, on a background of other scales."""
    number = int(slide_key[1:])
    generator = np.random.default_rng(number)
    tiles = generator.normal(size=(12, 6))
    tiles[:4, 1] += signal * (number % 2)
    return (tiles * [1e3, 1e-3, 1, 1, 1, 1] + 5).astype(np.float32)


def test_attention_finds_the_few_tiles_that_matter_on_slides_it_never_saw() -> None:
    found = probe_slides(TRAIN, TUNE, TEST, "cancer", features, FAST, seed=0, title="test")
    frame = found.predictions
    assert list(frame["slide_key"]) == [item.slide_key for item in TEST]
    assert set(frame["split"]) == {"test"}
    assert auroc(frame["label"], frame["score"]) > 0.9
    assert found.selected_on == "tune"
    assert found.tune_auroc is not None
    assert 1 <= found.chosen_epoch <= 12


def test_without_signal_it_finds_none() -> None:
    found = probe_slides(TRAIN, TUNE, TEST, "cancer", lambda key: features(key, 0.0), FAST, seed=0, title="test")
    assert 0.2 < auroc(found.predictions["label"], found.predictions["score"]) < 0.8


def test_labels_of_the_test_part_change_no_score() -> None:
    from dataclasses import replace

    turned = [replace(item, targets=(1 - item.targets[0],)) for item in TEST]
    config = FAST.model_copy(update={"num_epochs": 3})
    one, other = (probe_slides(TRAIN, TUNE, part, "cancer", features, config, 0, "test") for part in (TEST, turned))
    assert list(one.predictions["score"]) == list(other.predictions["score"])
    assert one.chosen_epoch == other.chosen_epoch


def test_the_last_epoch_is_taken_when_nothing_may_or_can_select() -> None:
    config = FAST.model_copy(update={"num_epochs": 2})
    last = probe_slides(
        TRAIN, TUNE, TEST, "cancer", features, config.model_copy(update={"select_by": "last"}), 0, "test"
    )
    assert (last.chosen_epoch, last.selected_on) == (2, "last epoch (nothing selected)")
    positives = [item for item in TUNE if item.targets == (1.0,)]
    undefined = probe_slides(TRAIN, positives, TEST, "cancer", features, config, 0, "test")
    assert (undefined.chosen_epoch, undefined.tune_auroc) == (2, None)
    assert undefined.selected_on == "last epoch (nothing selected)"
    assert list(undefined.predictions["score"]) == list(last.predictions["score"])


def test_seed_and_settings_decide_the_numbers() -> None:
    config = FAST.model_copy(update={"num_epochs": 2, "select_by": "last", "dropout": 0.25})

    def scores(changes: dict[str, float | int], seed: int = 0) -> list[float]:
        changed = config.model_copy(update=changes)
        return list(probe_slides(TRAIN, TUNE, TEST, "cancer", features, changed, seed, "test").predictions["score"])

    plain = scores({})
    assert scores({}) == plain
    assert scores({}, seed=1) != plain
    others: list[dict[str, float | int]] = [
        {"learning_rate": 1e-3}, {"num_epochs": 3}, {"hidden_size": 12}, {"gate_size": 6}, {"dropout": 0.5},
        {"weight_decay": 0.5}, {"warmup_epochs": 2.0}, {"slides_per_epoch": 0.5},
    ]  # fmt: skip
    for changes in others:
        assert scores(changes) != plain, changes


def test_statistics_are_those_over_all_tiles_and_a_constant_feature_stays_finite() -> None:
    bags = [np.random.default_rng(seed).normal(3, 2, (5 + seed, 4)).astype(np.float32) for seed in range(3)]
    for bag in bags:
        bag[:, 2] = 7.0
    mean, std = feature_statistics(bags)
    joined = np.concatenate(bags).astype(np.float64)
    assert mean.numpy() == pytest.approx(joined.mean(0))
    expected = joined.std(0)
    expected[2] = 1.0
    assert std.numpy() == pytest.approx(expected)


def test_a_train_part_of_one_class_is_refused() -> None:
    negatives = [item for item in TRAIN if item.targets == (0.0,)]
    with pytest.raises(InputError, match="12 slides to train on, 24 to test on; both classes"):
        probe_slides(negatives, TUNE, TEST, "cancer", features, FAST, 0, "test")
