"""Runs that are stopped, resumed, spread over ranks or meet a broken slide: the numbers stay the same, nothing is lost."""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ingest.errors import ConfigError, InputError
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.exit_codes import EXIT_STOPPED
from pretrain.loader import SharePlan
from pretrain.loop import train
from pretrain.ranks import run_ranks
from pretrain.record import read_metrics
from pretrain.start import build_models, open_run
from pretrain.state import FREE_FIELDS, Run
from pretrain.team import make_team
from pretrain.trained import open_trained
from tests.small_cohort import with_settings, write_small_cohort


def run_to_the_end(config: PretrainConfig, resume: bool = False) -> dict[str, torch.Tensor]:
    with open_run(config, resume) as run:
        train(run)
    return final_weights(config)


def final_weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(config.run.folder, "last")
    assert folder is not None
    parts = load_checkpoint(folder)
    weights = {**parts["encoder"], **parts["aggregator"]["aggregator"], **parts["aggregator"]["heads"]}
    if config.optim.ema_decay is not None:
        averages = {**parts["encoder_average"], **parts["aggregator_average"]["aggregator"],
                    **parts["aggregator_average"]["heads"]}  # fmt: skip
        weights |= {f"average.{name}": value for name, value in averages.items()}
    return weights


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
    digests = [result_of(tmp_path / name)["last_weights_sha256"] for name in ("run", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.parametrize(("num_updates", "ema_decay"), [(1, None), (3, None), (4, 0.7), (6, 0.7)])
def test_a_run_stopped_by_a_signal_and_resumed_equals_the_unbroken_one_bit_for_bit(
    tmp_path: Path, num_updates: int, ema_decay: float | None
) -> None:
    config = with_settings(write_small_cohort(tmp_path), optim={"ema_decay": ema_decay})
    unbroken = run_to_the_end(with_settings(config, run={"folder": tmp_path / "unbroken"}))
    with pytest.raises(SystemExit) as ended:
        run_until_stopped(config, num_updates)
    assert ended.value.code == EXIT_STOPPED
    resumed = run_to_the_end(config, resume=True)
    assert differing(unbroken, resumed) == []
    steps = [line["step"] for line in read_metrics(config.run.folder, "step")]
    assert steps == list(range(1, 9))
    assert [line["epoch"] for line in read_metrics(config.run.folder, "epoch")] == [0, 1]


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


def test_three_ranks_train_to_the_weights_of_one_process_also_when_they_take_over_in_the_middle(tmp_path: Path) -> None:
    frozen = {"batch_norm": "frozen"}  # statistics of a chunk would depend on how the tiles are dealt
    config = with_settings(
        write_small_cohort(tmp_path), step=frozen, aggregator={"dropout": 0.0}, optim={"ema_decay": 0.5}
    )
    run_to_the_end(config)
    spread = with_settings(config, run={"folder": tmp_path / "spread"}, step={**frozen, "layout": "dedicated"})
    run_ranks(3, run_on_rank, spread.model_dump_json(), False)
    taken_over = with_settings(config, run={"folder": tmp_path / "taken_over"})
    with pytest.raises(SystemExit):
        run_until_stopped(taken_over, 3)  # by one encoder rank, and resumed by two
    run_ranks(3, run_on_rank, with_settings(taken_over, step={**frozen, "layout": "dedicated"}).model_dump_json(), True)
    one, *others = (read_metrics(each.run.folder, "step") for each in (config, spread, taken_over))
    tuned, *others_tuned = (read_metrics(each.run.folder, "epoch") for each in (config, spread, taken_over))
    for many, many_tuned in zip(others, others_tuned, strict=True):
        # Losses, not weights: AdamW turns a gradient that is zero but for rounding into a full step of random sign.
        assert [line["loss"] for line in many] == pytest.approx([line["loss"] for line in one], rel=1e-6)
        norms = [line["encoder_gradient_norm"] for line in one]
        assert [line["encoder_gradient_norm"] for line in many] == pytest.approx(norms, rel=1e-4)
        # Validated with the averaged weights, which one rank keeps and hands to the others.
        tune_losses = [line["tune_loss"] for line in tuned]
        assert [line["tune_loss"] for line in many_tuned] == pytest.approx(tune_losses, rel=1e-6)


def run_on_rank(config_json: str, resume: bool) -> None:
    torch.set_num_threads(1)
    with open_run(PretrainConfig.model_validate_json(config_json), resume) as run:
        train(run)


def test_the_average_follows_the_saved_weights_and_is_what_others_get(tmp_path: Path) -> None:
    every_step = {"save_every_steps": 1, "keep_checkpoints": 100}
    config = with_settings(write_small_cohort(tmp_path), run=every_step, optim={"ema_decay": 0.3})
    plain = with_settings(config, run={**every_step, "folder": tmp_path / "plain"}, optim={"ema_decay": None})
    run_to_the_end(config)
    run_to_the_end(plain)
    start = build_models(config, make_team("single", device="cpu")).encoder
    assert start is not None
    expected = {name: value.double() for name, value in start.state_dict().items()}
    for step in range(8):
        trained, without = (saved_after(step + 1, each)["encoder"] for each in (config, plain))
        average = saved_after(step + 1, config)["encoder_average"]
        assert differing(trained, without) == []  # an average changes nothing in what is trained
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in trained.items():
            kept = decay * expected[name] + (1 - decay) * value.double()
            expected[name] = kept if value.is_floating_point() else value.double()
            assert torch.allclose(average[name].double(), expected[name], rtol=1e-5, atol=1e-7), name
    found = open_trained(config.run.folder, "best").parts["encoder"]
    assert differing(found, average) == []
    assert differing(found, trained) != []
    averaged, trained_only = (read_metrics(each.run.folder, "epoch") for each in (config, plain))
    assert averaged[-1]["tune_loss"] != trained_only[-1]["tune_loss"]  # it is also what was validated
    assert result_of(config.run.folder)["judged_weights"] == "moving average, decay 0.3"


def saved_after(step: int, config: PretrainConfig) -> dict[str, Any]:
    return load_checkpoint(max((config.run.folder / "checkpoints").glob(f"step_{step:08d}*")))


def test_tiles_from_the_cache_train_to_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_small_cohort(tmp_path)
    plain = run_to_the_end(config)
    cached = with_settings(config, run={"folder": tmp_path / "cached"}, data={"cache": tmp_path / "cache"})
    assert differing(run_to_the_end(cached), plain) == []
    for each, wanted in ((config, 0), (cached, 1)):
        first, second = ([line for line in read_metrics(each.run.folder, "step") if line["epoch"] == e] for e in (0, 1))
        assert sum(line["num_cached_tiles"] for line in first) == 0
        assert sum(line["num_cached_tiles"] for line in second) == wanted * sum(line["num_tiles"] for line in second)
    assert "100% of the tiles from the cache at" in capsys.readouterr().out
    # Tiles that are drawn anew in every epoch are not worth a place.
    drawn = with_settings(config, run={"folder": tmp_path / "drawn", "num_epochs": 1}, data={"cache": tmp_path / "other"},
                          sample={"mode": "random", "num_tiles": 5})  # fmt: skip
    run_to_the_end(drawn)
    assert len(list((tmp_path / "other").glob("*.tiles"))) == 2  # of the tune slides, read whole every time


def test_a_cache_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.cache .*: not a folder to write to"):
        run_to_the_end(with_settings(config, data={"cache": tmp_path / "file"}))


def test_training_never_asks_for_a_slide_of_the_test_part(tmp_path: Path) -> None:
    config = write_small_cohort(tmp_path)
    weights = run_to_the_end(config)
    for number in (6, 7):
        (tmp_path / "files" / f"slide{number}.svs").unlink()
    asked: list[str] = []
    again = with_settings(config, run={"folder": tmp_path / "again"})
    with open_run(again, resume=False) as run:
        read = run.feed.read
        run.feed.read = lambda plans: read(noted(plans, asked))  # type: ignore[method-assign]
        train(run)
    assert {split: asked.count(split) for split in set(asked)} == {"train": 8, "tune": 4}
    assert differing(weights, final_weights(again)) == []


def noted(plans: Iterable[SharePlan], asked: list[str]) -> Iterator[SharePlan]:
    for plan in plans:
        asked.append(plan.slide.split)
        yield plan


def test_training_stops_early_and_says_by_which_rule_it_chose(tmp_path: Path) -> None:
    # The two tune slides give an AUC of 0, 0.5 or 1; at a rate near zero the weights, and so the AUC, stay as they are.
    config = with_settings(
        write_small_cohort(tmp_path), run={"num_epochs": 9, "select_by": "tune_auc", "stop_after_epochs": 2},
        optim={"learning_rate": 1e-12}, step={"batch_norm": "frozen"},
    )  # fmt: skip
    run_to_the_end(config)
    epochs = read_metrics(config.run.folder, "epoch")
    assert [line["is_best"] for line in epochs] == [True, False, False]
    result = result_of(config.run.folder)
    assert result["ended"] == "after 3 epochs: the last 2 brought no better tune AUC"
    assert (result["num_candidates"], result["best_epoch"]) == (3, 1)
    assert result["best_tune_auc"] == epochs[0]["tune_auc"]["cancer"]
    assert "tune part" in result["selection_rule"]
    best = find_checkpoint(config.run.folder, "best")
    assert best is not None
    assert load_checkpoint(best)["training"]["position"]["epoch"] == 1


def test_a_tune_part_that_cannot_choose_is_refused_before_training(tmp_path: Path) -> None:
    config = with_settings(write_small_cohort(tmp_path, tune_labels=(1, 1)), run={"select_by": "tune_auc"})
    with pytest.raises(ConfigError, match=r"tune part \(2 slides\) does not hold both classes"):
        run_to_the_end(config)
    assert read_metrics(config.run.folder, "step") == []


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
    with pytest.raises(ConfigError, match=r"made with another encoder.drop_rate"), open_run(other, resume=True):
        pass


@pytest.mark.parametrize(
    ("section", "values"),
    [("step", {"batch_norm": "frozen"}), ("data", {"slides_per_epoch": 0.5}), ("optim", {"ema_decay": 0.9}), ("run", {"seed": 5})],
)  # fmt: skip
def test_resuming_with_what_would_change_the_numbers_is_refused_by_name(
    tmp_path: Path, finished: PretrainConfig, section: str, values: dict[str, object]
) -> None:
    (name,) = values
    other = with_settings(finished, **{section: values})
    with pytest.raises(ConfigError, match=rf"made with another {section}\.{name};"), open_run(other, resume=True):
        pass


def test_resuming_with_more_threads_more_slots_and_a_cache_is_allowed(tmp_path: Path, finished: PretrainConfig) -> None:
    reading = {"reader_threads": 2, "slides_ahead": 1, "cache": tmp_path / "cache", "ahead_gib": 1.0}
    with open_run(with_settings(finished, data=reading, step={"resident_tiles": 3}), resume=True) as run:
        assert run.at.epoch == 1


def test_every_field_that_may_differ_on_resume_exists() -> None:
    config = PretrainConfig()
    for section, names in FREE_FIELDS.items():
        assert names <= set(type(getattr(config, section)).model_fields), section


def test_resuming_on_another_manifest_is_refused(tmp_path: Path, finished: PretrainConfig) -> None:
    other = write_small_cohort(tmp_path, tune_labels=(1, 1))
    moved = with_settings(finished, data={"manifest": other.data.manifest, "vault": other.data.vault})
    with pytest.raises(ConfigError, match=r"data\.manifest manifest: not the one"), open_run(moved, resume=True):
        pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A run of one epoch, for tests that only read it."""
    config = with_settings(write_small_cohort(tmp_path_factory.mktemp("finished")), run={"num_epochs": 1})
    run_to_the_end(config)
    return config


def test_slides_ahead_that_do_not_fit_are_refused_with_what_would(finished: PretrainConfig) -> None:
    slot_gib = 18 * (3 * 32 * 32 + 8) / 2**30  # the largest slide: 18 tiles of 32 px and their indices
    tight = with_settings(finished, data={"slides_ahead": 5, "ahead_gib": 3.5 * slot_gib})
    with pytest.raises(
        ConfigError, match=r"6 slots of 18 tiles of 32 px .*data\.ahead_gib = .*set data\.slides_ahead = 2"
    ):
        run_to_the_end(tight, resume=True)
    with pytest.raises(ConfigError, match="start more encoder ranks"):
        run_to_the_end(with_settings(finished, data={"ahead_gib": 1.5 * slot_gib}), resume=True)
    with pytest.raises(ConfigError, match=r"GiB are free here for 1 ranks; set data\.slides_ahead"):
        run_to_the_end(with_settings(finished, data={"slides_ahead": 10**8}), resume=True)


def test_tensorboard_shows_curves_roc_tile_counts_and_hyperparameters(finished: PretrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    assert {"step/loss", "step/learning_rate", "step/num_tiles", "step/encoder_gradient_norm", "step/peak_memory_bytes",
            "epoch/tune_auc_cancer", "epoch/wait_share"} <= scalars  # fmt: skip
    phases = ("wait", "decode", "cache", "encode", "exchange", "aggregate", "backward", "optimiser", "step")
    assert {f"seconds/{phase}" for phase in phases} <= scalars
    steps = read_metrics(finished.run.folder, "step")
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx([line["loss"] for line in steps])
    assert "roc/cancer" in tags["images"]
    assert sum(events.Histograms("tiles_per_slide/train")[0].histogram_value.bucket) == 4
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.learning_rate" in plugin
    assert str(finished.data.vault).encode() not in plugin


def test_a_step_line_tells_time_speed_and_memory(finished: PretrainConfig) -> None:
    for line in read_metrics(finished.run.folder, "step"):
        assert set(line["seconds"]) == {
            "wait",
            "decode",
            "cache",
            "encode",
            "exchange",
            "aggregate",
            "backward",
            "optimiser",
            "step",
        }
        assert line["tiles_per_second"] == pytest.approx(line["num_tiles"] / line["seconds"]["step"], rel=1e-3)
        assert 2**26 < line["peak_memory_bytes"] < 2**40


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
