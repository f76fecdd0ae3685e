"""`evaluate features` and `evaluate probe` on a trained run, its export and labelled tiles: one small cohort, one process."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evaluate.__main__ import app
from evaluate.features import FeaturesConfig, features_run
from evaluate.frozen import open_encoder
from evaluate.predictions import read_predictions
from evaluate.probe import open_encoders, probe_run, seen_patients
from evaluate.probe_config import ProbeConfig, SlideProbeConfig
from evaluate.tile_blocks import read_scans
from evaluate.tile_probe import colour_features
from ingest.errors import ConfigError, GateError, InputError
from pretrain.config import PretrainConfig
from pretrain.loop import train
from pretrain.start import open_run
from tests.small_cohort import with_settings, write_small_cohort

ROOT = Path(__file__).parents[2]
PATCHES = ROOT.parent / "shared" / "data" / "tiles" / "idc_breast_patches.parquet"
FEATURES = FeaturesConfig(dtype="float32", device="cpu")
FAST = ProbeConfig(
    num_folds=2, num_inner_folds=2, costs=(0.01,), num_neighbours=3, num_resamples=100,
    slides=SlideProbeConfig(num_epochs=2, slides_per_epoch=1.0, hidden_size=8, gate_size=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    config = with_settings(write_small_cohort(tmp_path_factory.mktemp("trained")), run={"num_epochs": 1})
    with open_run(config, resume=False) as run:
        train(run)
    return config


@pytest.fixture(scope="module")
def exported(trained: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "mine"
    command = ["export", str(trained.run.folder), str(folder), "--license", "cc0-1.0"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


def labels_of_all_slides(config: PretrainConfig, path: Path) -> Path:
    """The upper left corner of every tissue tile; its label is that of its slide."""
    rows = [
        {"slide_key": scan.slide_key, "x": x, "y": y, "label": int(scan.slide_key[-1]) % 2}
        for scan in read_scans(config.data.manifest, config.data.vault)
        for x, y, _, _ in scan.grid.boxes(scan.tile_indices())
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_run_and_its_export_have_one_digest_and_so_share_their_features(
    trained: PretrainConfig, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_encoder(str(trained.run.folder)).digest == open_encoder(str(exported)).digest
    assert open_encoder(str(exported)).digest != open_encoder("test_resnet:random").digest
    features_run(str(trained.run.folder), "best", None, None, tmp_path, FEATURES, dry_run=False)
    assert "8 written, 0 skipped" in capsys.readouterr().out
    features_run(str(exported), "best", trained.data.manifest, trained.data.vault, tmp_path, FEATURES, dry_run=False)
    assert "0 written, 8 skipped (were finished), 0 failed" in capsys.readouterr().out


def test_one_command_compares_end_to_end_with_frozen_encoders_on_the_test_slides(
    trained: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe_run([f"ours={trained.run.folder}", "folder=test_efficientnet:random"], None, None, None, tmp_path, "best", FAST,
              FEATURES, dry_run=False)  # fmt: skip
    document = json.loads((tmp_path / "probe.json").read_text())
    rows = [(row["level"], row["method"], row["encoder"]) for row in document["rows"]]
    assert rows == [
        ("slide", "end_to_end", "ours"), ("slide", "frozen", "ours"), ("slide", "frozen", "folder"), ("slide", "frozen", "random"),
    ]  # fmt: skip
    assert all(row["num_units"] == 2 for row in document["rows"])
    reference = {item["second"] for item in document["comparisons"]}
    assert reference == {"ours, end to end"}
    assert len(document["comparisons"]) == 3
    frozen, end_to_end = (
        read_predictions(tmp_path / "predictions" / f"slide_{method}_ours.parquet")
        for method in ("frozen", "end_to_end")
    )
    assert set(frozen["slide_key"]) == set(end_to_end["slide_key"]) == {"slide6", "slide7"}
    run_scores = read_predictions(trained.run.folder / "predictions.parquet").set_index("slide_key")["score"]
    assert list(end_to_end["score"]) == list(run_scores[end_to_end["slide_key"]])
    page = (tmp_path / "probe.html").read_text()
    assert "trained end to end" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert str(tmp_path) not in page + json.dumps(document)
    assert str(trained.run.folder) not in page + json.dumps(document)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"open {tmp_path / 'probe.html'}")


def test_tiles_of_patients_of_training_are_never_probed_with_the_run_or_its_export(
    trained: PretrainConfig, exported: Path, tmp_path: Path
) -> None:
    seen = {f"patient{number}" for number in range(6)}
    for source in (str(trained.run.folder), str(exported)):
        encoders = open_encoders([f"ours={source}"], "best", FAST)
        assert seen_patients(encoders, trained.data.manifest, FAST) == seen
    assert seen_patients(open_encoders(["test_resnet:random"], "best", FAST), trained.data.manifest, FAST) == set()
    path = labels_of_all_slides(trained, tmp_path / "labels.csv")
    with pytest.raises(InputError, match="1 patients have rows of class 0, 2 folds"):  # patients 6 and 7 are left
        probe_run(
            [f"ours={exported}"],
            path,
            trained.data.manifest,
            trained.data.vault,
            tmp_path,
            "best",
            FAST,
            FEATURES,
            False,
        )


def test_labelled_places_on_slides_are_probed_with_an_encoder_that_saw_nobody(
    trained: PretrainConfig, tmp_path: Path
) -> None:
    path = labels_of_all_slides(trained, tmp_path / "labels.csv")
    probe_run(["plain=test_resnet:random"], path, trained.data.manifest, trained.data.vault, tmp_path / "out", "best",
              FAST, FEATURES, dry_run=False)  # fmt: skip
    document = json.loads((tmp_path / "out" / "probe.json").read_text())
    tiles = {(row["method"], row["encoder"]): row for row in document["rows"] if row["level"] == "tile"}
    assert set(tiles) == {("linear", "plain"), ("neighbours", "plain")}  # it is the random baseline itself
    assert tiles["linear", "plain"]["num_units"] == 116
    assert tiles["linear", "plain"]["num_patients"] == 8
    assert tiles["linear", "plain"]["auroc"]["value"] > 0.9  # stripes against dots
    assert "Tiles: 116, 60 positive, of 8 patients, in 2 folds of whole patients; left out: none." in document["notes"]


def test_an_encoder_that_saw_patients_of_the_test_part_is_refused(trained: PretrainConfig, tmp_path: Path) -> None:
    """A second fold in which a patient of training is to be tested."""
    from ingest.manifest import read_table, table_from_rows, write_table
    from tests.small_cohort import PROVENANCE

    manifest = trained.data.manifest
    original = (manifest / "splits.parquet").read_bytes()
    rows = read_table(manifest, "splits").to_pylist()
    other = [{**row, "fold": 1, "split": {"train": "test", "test": "train"}.get(row["split"], "tune")} for row in rows]
    config = FAST.model_copy(update={"fold": 1})
    try:
        write_table(manifest, "splits", table_from_rows("splits", rows + other), PROVENANCE)
        with pytest.raises(
            GateError, match="4 patients of the test part of scheme holdout fold 1 were seen in the training"
        ):
            probe_run(
                [f"ours={trained.run.folder}"],
                None,
                manifest,
                trained.data.vault,
                tmp_path,
                "best",
                config,
                FEATURES,
                False,
            )
    finally:
        (manifest / "splits.parquet").write_bytes(original)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=test_resnet:random", "a=test_resnet:random"], "a name of its own"),
        (["a b=test_resnet:random"], "a name of its own"),
        (["test_resnet:random"], "nothing to probe on"),
    ],
)
def test_faulty_arguments_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        probe_run(arguments, None, None, None, tmp_path, "best", FAST, FEATURES, dry_run=False)


def test_a_dry_run_counts_and_writes_nothing(
    trained: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labels_of_all_slides(trained, tmp_path / "labels.csv")
    probe_run(["plain=test_resnet:random"], path, trained.data.manifest, trained.data.vault, tmp_path / "out", "best",
              FAST, FEATURES, dry_run=True)  # fmt: skip
    printed = capsys.readouterr().out
    assert "Tiles: 116, 60 positive" in printed
    assert "would write" in printed
    assert not (tmp_path / "out").exists()


def test_random_weights_of_the_first_model_stand_beside_the_others_unless_unwanted(trained: PretrainConfig) -> None:
    run = f"ours={trained.run.folder}"
    with_random = open_encoders([run], "best", FAST)
    assert list(with_random) == ["ours", "random"]
    assert with_random["random"].name == with_random["ours"].name
    assert list(open_encoders([run], "best", FAST.model_copy(update={"random_baseline": False}))) == ["ours"]
    seeded = open_encoders([run], "best", FAST.model_copy(update={"seed": 1}))
    assert seeded["random"].digest != with_random["random"].digest


def test_colour_features_by_hand() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (200, 100, 0)
    found = colour_features(image)[0]
    assert found[:3].tolist() == [50, 25, 0]
    assert found[3:6] == pytest.approx([np.std([200, 0, 0, 0]), np.std([100, 0, 0, 0]), 0])
    assert found[6:15] == pytest.approx(
        [0, 0, 0, 0, 0, 0, 140, 70, 0]
    )  # 10th, 50th and 90th percentile of each channel
    assert found[15] == 50


@pytest.mark.skipif(not PATCHES.is_file(), reason="needs real patches in ../shared/data")
def test_colour_alone_separates_real_patches_and_shuffled_labels_do_not(tmp_path: Path) -> None:
    """0.859 here with patients in folds; 0.88 to 0.89 is known for sixteen such numbers with models that are not linear."""
    from evaluate.labelled_tiles import read_labelled_tiles
    from evaluate.linear_probe import linear_probe, patient_folds

    tiles = read_labelled_tiles(PATCHES, [], frozenset())
    assert tiles.images is not None
    assert len(tiles.labels) + sum(tiles.left_out.values()) == 4011
    values = colour_features(tiles.images)
    folds = patient_folds(tiles.labels, tiles.patients, 5, seed=0)
    found = linear_probe(values, tiles.labels, tiles.patients, folds, (0.01, 1.0), 3, seed=0)
    assert 0.84 < np.mean(found.fold_aurocs) < 0.90
    shuffled = np.random.default_rng(0).permutation(tiles.labels)
    folds = patient_folds(shuffled, tiles.patients, 5, seed=0)
    from evaluate.interval import auroc_interval

    control = linear_probe(values, shuffled, tiles.patients, folds, (1.0,), 3, seed=0)
    interval = auroc_interval(shuffled, control.scores, tiles.patients)
    assert interval.low < 0.5 < interval.high
