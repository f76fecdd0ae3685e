"""The two experiments of Campanella et al. 2024 as configurations: every number of the paper, and commands that resolve."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ingest.balance import BalanceConfig
from ingest.cohort import CohortConfig
from ingest.config import load_config
from pretrain.config import EncoderConfig, PretrainConfig, SampleConfig
from pretrain.plan import Footprint, footprint, plan, recomputed_share, sampled_counts

ROOT = Path(__file__).parents[2]
BREAST, EGFR = ROOT / "manifests" / "breast.toml", ROOT / "manifests" / "egfr.toml"
NUM_TILES = (50, 100, 350, 700, 2100, 4900)  # K of Fig. 4 and Table 1
H100_GIB = 80

# Sentences of the paper's sections "Lung Adenocarcinoma EGFR Mutation Prediction" and "Breast Cancer Detection".
PAPER: list[tuple[Path, str, Any]] = [
    (BREAST, "encoder.name", "resnet18"),  # "we parallelized encoding with a ResNet18 network"
    (BREAST, "aggregator.name", "gma"),  # "We trained the encoder and a GMA aggregator jointly"
    (BREAST, "sample.mode", "all"),  # "full slide analysis"
    (BREAST, "step.layout", "dedicated"),  # "on 11 GPUs ... on 12 H100 80GB GPUs": the twelfth aggregates
    (BREAST, "step.resident_tiles", 4096),  # "K=4,096 tiles per GPU"
    (BREAST, "data.slides_per_epoch", 0.5),  # "At each epoch, 50% of the slides were sampled for training"
    (BREAST, "optim.learning_rate", 0.00005),  # "a peak learning rate of 0.00005"
    (BREAST, "optim.slides_per_update", 1),  # "in each optimization step a single slide is considered"
    (EGFR, "encoder.name", "resnet50"),  # "We trained a ResNet50 model"
    (EGFR, "aggregator.name", "gma"),  # "we focus on the popular architecture gated MIL attention"
    (EGFR, "data.scheme", "mccv20"),  # "20 randomly generated splits"
    (EGFR, "data.slides_per_epoch", 0.5),  # "At each epoch, 50% of the slides were selected"
    (EGFR, "sample.mode", "paper"),  # "If a slide contained less than K tiles, sampling with replacement was performed"
    (EGFR, "sample.num_tiles", 700),  # the K that was run on one GPU and on several
    (EGFR, "optim.slides_per_update", 1),
]
HEADERS: list[tuple[Path, list[str]]] = [
    (BREAST, ["77,768", "67,654", "10,114", "16,302", "13,050", "3,252", "224 px", "20x", "45,056", "11 encoders x 4,096",
              "12 H100 of 80 GB", "5e-5", "0.968", "(30)"]),
    (EGFR, ["2,449", "2,056", "1,951", "498", "20 Monte Carlo", "{50, 100, 350, 700, 2100, 4900}", "up to 8", "K=50 74.4 (2.9)",
            "K=100 75.9 (2.5)", "K=350 76.5 (1.7)", "K=700 77.5 (2.0)", "76.9 (2.9)", "77.3 (1.7)", "K=2100 77.4 (1.5)",
            "K=4900 78.3 (1.9)"]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "key", "value"), PAPER, ids=lambda item: str(getattr(item, "stem", item)))
def test_a_setting_is_the_paper_s(path: Path, key: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config(PretrainConfig, "pretrain", path), section), name) == value


@pytest.mark.parametrize(("path", "facts"), HEADERS, ids=lambda item: getattr(item, "stem", ""))
def test_the_header_tells_the_paper_s_numbers(path: Path, facts: list[str]) -> None:
    text = " ".join(line.lstrip("# ") for line in header(path))
    assert [fact for fact in facts if fact not in text] == []


def test_tiles_and_splits_are_the_paper_s() -> None:
    breast, egfr = (load_config(CohortConfig, "ingest", path) for path in (BREAST, EGFR))
    assert (breast.tiles.size_px, breast.tiles.mpp) == (224, 0.5)
    assert (egfr.split.schemes, egfr.split.num_repeats, egfr.balance.mode) == (("mccv",), 20, "none")
    assert egfr.split.test == pytest.approx(498 / 2449, abs=0.01)
    paper = BalanceConfig(mode="paper")
    assert 2 * paper.paper_slides_per_class == 16_302 == 13_050 + 3_252
    assert 67_654 + 10_114 == 77_768
    assert paper.paper_validation_share == pytest.approx(3_252 / 16_302)


def test_45056_tiles_fit_on_the_paper_s_11_devices_in_half_precision_and_not_in_float32() -> None:
    config = load_config(PretrainConfig, "pretrain", BREAST)
    made = planned(config, footprint(config.encoder, 224, config.step.precision), [45_056], 11)
    assert made.tiles_per_device >= config.step.resident_tiles
    assert (made.slides[0].num_devices <= 11, made.recomputed_share) == (True, 0)
    assert recomputed_share(45_056, 11, config.step.resident_tiles) == 0
    assert planned(config, footprint(config.encoder, 224), [45_056], 11).tiles_per_device < 4096


def test_every_k_of_the_paper_fits_on_8_devices_and_700_on_one() -> None:
    config = load_config(PretrainConfig, "pretrain", EGFR)
    memory = footprint(EncoderConfig(name="resnet50"), 224)
    for num_tiles in NUM_TILES:
        num_devices = 1 if num_tiles <= 700 else 8
        assert planned(config, memory, [num_tiles], num_devices).recomputed_share == 0, num_tiles
        assert recomputed_share(num_tiles, num_devices, config.step.resident_tiles) == 0, num_tiles
    assert planned(config, memory, [4900], 1).recomputed_share > 0.8


def planned(config: PretrainConfig, memory: Footprint, tile_counts: list[int], num_devices: int) -> Any:
    return plan(
        config.encoder, tile_counts, tile_size_px=224, precision=config.step.precision, device_gib=H100_GIB,
        num_encoders=num_devices, num_steps=1, encode_tiles_per_second=1000, decode_tiles_per_second=2000, memory=memory,
    )  # fmt: skip


def test_a_plan_counts_the_tiles_that_are_sampled() -> None:
    assert sampled_counts([100, 9000], SampleConfig()) == [100, 9000]
    assert sampled_counts([100, 9000], SampleConfig(mode="paper", num_tiles=700)) == [700, 700]
    assert sampled_counts([100, 9000], SampleConfig(mode="grid", num_tiles=700)) == [100, 700]


def test_the_loop_of_the_header_starts_every_k_with_all_its_repeats(tmp_path: Path) -> None:
    """The header's own shell lines, with `python` as a function that writes its arguments down."""
    script = "\n".join(line[4:] for line in header(EGFR) if line.startswith("#   "))
    done = subprocess.run(["bash", "-euc", f"python() {{ echo \"$@\" >> started; }}\n{script}"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    started = [shlex.split(line) for line in (tmp_path / "started").read_text().splitlines()]
    trainings = [words for words in started if "train" in words]
    found = {}
    for words in trainings:
        assert words[words.index("--scheme") + 1] == "mccv20"
        overrides = [value for option, value in pairwise(words) if option == "--set"]
        config = load_config(PretrainConfig, "pretrain", ROOT / words[words.index("-c") + 1], overrides)
        found[config.sample.num_tiles] = str(config.run.folder)
    assert tuple(found) == NUM_TILES
    assert started[-1] == ["-m", "evaluate", "mccv", *found.values()]


@pytest.mark.parametrize("path", [BREAST, EGFR], ids=lambda path: path.stem)
def test_the_files_and_options_that_a_header_names_exist(path: Path) -> None:
    text = "\n".join(header(path))
    for name in re.findall(r"(?:pretrain/launch|manifests)/[\w.]+\.\w+", text):
        assert (ROOT / name).exists(), name
    assert f"manifests/{path.name}" in text


def header(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: lines.index("")]
