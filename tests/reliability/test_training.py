"""Runs that are stopped, resumed, spread over ranks or meet a broken slide: the numbers stay the same, nothing is lost."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ingest.errors import ConfigError, InputError
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.loop import EXIT_STOPPED, train
from pretrain.ranks import run_ranks
from pretrain.record import read_metrics
from pretrain.start import open_run
from pretrain.state import Run
from tests.small_cohort import with_settings, write_small_cohort


def run_to_the_end(config: PretrainConfig, resume: bool = False) -> dict[str, torch.Tensor]:
    with open_run(config, resume) as run:
        train(run)
    return final_weights(config)


def final_weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(config.run.folder, "last")
    assert folder is not None
    parts = load_checkpoint(folder)
    return {**parts["encoder"], **parts["aggregator"]["aggregator"], **parts["aggregator"]["heads"]}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_the_same_seed_gives_the_same_weights_twice_and_another_seed_others(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    first = run_to_the_end(config)
    second = run_to_the_end(with_settings(config, run={"folder": tmp_path / "again"}))
    other = run_to_the_end(with_settings(config, run={"folder": tmp_path / "other", "seed": 4}))
    assert differing(first, second) == []
    assert differing(first, other) != []


@pytest.mark.parametrize("num_updates", [1, 3, 4, 6])
def test_a_run_stopped_by_a_signal_and_resumed_equals_the_unbroken_one_bit_for_bit(
    tmp_path: Path, num_updates: int
) -> None:
    config = write_small_cohort(tmp_path)
    unbroken = run_to_the_end(with_settings(config, run={"folder": tmp_path / "unbroken"}))
    with pytest.raises(SystemExit) as ended:
        run_until_stopped(config, num_updates)
    assert ended.value.code == EXIT_STOPPED
    resumed = run_to_the_end(config, resume=True)
    assert differing(unbroken, resumed) == []
    steps = [line["step"] for line in read_metrics(config.run.folder, "step")]
    assert steps == list(range(1, 9))


def run_until_stopped(config: PretrainConfig, num_updates: int) -> None:
    with open_run(config, resume=False) as run:
        count_down(run, num_updates)
        train(run)


def count_down(run: Run, num_updates: int) -> None:
    """Asks to stop in the given update, as the signal handler would."""
    record = run.record
    assert record is not None
    write = record.step

    def step(step: int, line: dict[str, Any]) -> None:
        write(step, line)
        run.stop.requested = step == num_updates - 1

    if num_updates == 1:
        run.stop.requested = True
    record.step = step  # type: ignore[method-assign]


def test_three_ranks_train_to_the_weights_of_one_process(tmp_path: Path) -> None:
    frozen = {"batch_norm": "frozen"}  # statistics of a chunk would depend on how the tiles are dealt
    config = with_settings(write_small_cohort(tmp_path), step=frozen, aggregator={"dropout": 0.0})
    run_to_the_end(config)
    spread = with_settings(config, run={"folder": tmp_path / "spread"}, step={**frozen, "layout": "dedicated"})
    run_ranks(3, run_on_rank, spread.model_dump_json())
    one, many = (read_metrics(each.run.folder, "step") for each in (config, spread))
    # Losses, not weights: AdamW turns a gradient that is zero but for rounding into a full step of random sign.
    assert [line["loss"] for line in many] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    norms = [line["encoder_gradient_norm"] for line in one]
    assert [line["encoder_gradient_norm"] for line in many] == pytest.approx(norms, rel=1e-3)


def run_on_rank(config_json: str) -> None:
    torch.set_num_threads(1)
    with open_run(PretrainConfig.model_validate_json(config_json), resume=False) as run:
        train(run)


@pytest.mark.parametrize("slides_per_update", [1, 2])
def test_a_slide_that_cannot_be_read_is_left_out_of_its_step_and_told(tmp_path: Path, slides_per_update: int) -> None:
    optim = {"slides_per_update": slides_per_update}
    config = with_settings(write_small_cohort(tmp_path), run={"num_epochs": 1}, optim=optim)
    (tmp_path / "files" / "slide1.svs").write_bytes(b"no slide any more")
    run_to_the_end(config)
    lines = read_metrics(config.run.folder, "step")
    assert [name for line in lines for name in line["unread_slides"]] == ["slide1"]
    assert sum(line["num_slides"] for line in lines) == 3


def test_an_epoch_without_any_readable_slide_ends_with_a_reason(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    for file in (tmp_path / "files").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="none of its slides could be read"):
        run_to_the_end(config)


def test_many_epochs_give_every_slot_back(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path), run={"num_epochs": 6})
    run_to_the_end(config)
    assert len(read_metrics(config.run.folder, "epoch")) == 6


def test_a_second_run_in_the_same_folder_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path), run={"num_epochs": 1})
    run_to_the_end(config)
    before = (config.run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="add --resume"), open_run(config, resume=False):
        pass
    assert (config.run.folder / "metrics.jsonl").read_bytes() == before


def test_resuming_with_another_encoder_is_refused(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path), run={"num_epochs": 1})
    run_to_the_end(config)
    other = with_settings(config, encoder={"name": "test_resnet", "drop_rate": 0.5})
    with pytest.raises(ConfigError, match=r"made with another \[encoder\]"), open_run(other, resume=True):
        pass


def test_a_real_signal_asks_to_stop_and_the_old_handler_comes_back(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with open_run(config, resume=False) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_folder_says_what_it_was_made_with(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path), run={"num_epochs": 1})
    run_to_the_end(config)
    environment = json.loads((config.run.folder / "environment.json").read_text())
    assert environment["num_ranks"] == 1
    assert "[pretrain.encoder]" in (config.run.folder / "config.toml").read_text()
    (epoch,) = read_metrics(config.run.folder, "epoch")
    assert epoch["num_tune_slides"] == 2
    assert set(epoch["tune_auc"]) == {"cancer"}
