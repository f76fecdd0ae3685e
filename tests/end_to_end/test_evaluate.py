"""From a trained run to predictions, report, pictures and an encoder: on a small cohort, in one process."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluate.predict import read_slide
from evaluate.predictions import read_predictions
from evaluate.whole import EvaluateConfig, attention_run, predict_run, report_run
from ingest.config import load_config
from ingest.errors import ConfigError, InputError, ManifestError
from ingest.manifest import read_table, write_table
from pretrain.config import PretrainConfig
from pretrain.loop import train
from pretrain.start import open_run
from tests.small_cohort import PROVENANCE, with_settings, write_small_cohort


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("trained")
    config = with_settings(write_small_cohort(folder), run={"num_epochs": 3})
    with open_run(config, resume=False) as run:
        train(run)
    predict_run(config.run.folder, "best", EvaluateConfig())
    return config


def test_every_slide_of_tune_and_test_is_scored_with_all_its_tiles(trained: PretrainConfig) -> None:
    predictions = read_predictions(trained.run.folder / "predictions.parquet")
    assert sorted(predictions["slide_key"]) == ["slide4", "slide5", "slide6", "slide7"]
    assert predictions["score"].between(0, 1).all()
    assert dict(zip(predictions["slide_key"], predictions["num_tiles"], strict=True))["slide5"] == 11 + 5
    result = read_slide(trained.run.folder, "slide5")
    assert len(result.tile_indices) == 16
    assert result.attention is not None
    assert result.attention.sum() == pytest.approx(1, abs=1e-5)


def test_a_second_prediction_reads_no_slide_again_and_gives_the_same_table(trained: PretrainConfig) -> None:
    folder = trained.run.folder
    before = (folder / "predictions.parquet").read_bytes()
    times = {file.name: file.stat().st_mtime_ns for file in (folder / "tiles").iterdir()}
    victim = folder / "tiles" / "slide6.parquet"
    victim.unlink()
    predict_run(folder, "best", EvaluateConfig())
    assert (folder / "predictions.parquet").read_bytes() == before
    again = {file.name: file.stat().st_mtime_ns for file in (folder / "tiles").iterdir()}
    assert {name for name in times if times[name] != again[name]} == {"slide6.parquet"}


def test_predictions_of_other_weights_are_not_taken_over(trained: PretrainConfig) -> None:
    folder = trained.run.folder
    path = folder / "tiles" / "slide4.parquet"
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"run_digest": b"another run", b"scores": b'{"cancer": 0.123}'}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    predict_run(folder, "best", EvaluateConfig())
    assert read_slide(folder, "slide4").scores["cancer"] != 0.123


def test_a_manifest_with_other_tiles_than_in_training_is_refused(trained: PretrainConfig, tmp_path: Path) -> None:
    import pyarrow as pa

    manifest = trained.data.manifest
    tiles = read_table(manifest, "tiles")
    original = (manifest / "tiles.parquet").read_bytes()
    coarser = tiles.set_column(tiles.column_names.index("tile_mpp"), "tile_mpp", pa.array([0.6] * tiles.num_rows))
    try:
        write_table(manifest, "tiles", coarser, PROVENANCE)
        with pytest.raises(ManifestError, match=r"trained on tiles of 32 px at 0\.5 mpp"):
            predict_run(trained.run.folder, "best", EvaluateConfig())
    finally:
        (manifest / "tiles.parquet").write_bytes(original)


def test_the_report_says_what_was_selected_on_and_holds_no_path(trained: PretrainConfig) -> None:
    reported = report_run(trained.run.folder, "best", EvaluateConfig())
    page = reported.page.read_text()
    assert "AUC on test" in reported.headline
    assert "last epoch (nothing selected)" in reported.headline
    assert len(page) < 1_000_000
    assert str(trained.run.folder.parent) not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    metrics = json.loads((trained.run.folder / "report" / "metrics.json").read_text())
    assert metrics["levels"]["slide"]["num_units"] == 2


def test_attention_pictures_of_one_slide(trained: PretrainConfig, tmp_path: Path) -> None:
    attention_run(trained.run.folder, ["slide7"], tmp_path, "best", viewer_mpp=0.5)
    names = {file.name for file in (tmp_path / "slide7").iterdir()}
    assert {"heatmap.png", "most_attended.png", "least_attended.png", "attention.geojson.gz", "viewer"} <= names
    with gzip.open(tmp_path / "slide7" / "attention.geojson.gz", "rt") as stream:
        features = json.load(stream)["features"]
    assert 0 < len(features) <= 18
    with pytest.raises(InputError, match="not in the manifest"):
        attention_run(trained.run.folder, ["nobody"], tmp_path, "best", viewer_mpp=None)


def test_a_report_on_predictions_of_other_weights_is_refused(trained: PretrainConfig) -> None:
    path = trained.run.folder / "predictions.parquet"
    original = path.read_bytes()
    table = pq.read_table(path)
    import pyarrow as pa

    column = table.column_names.index("run_digest")
    try:
        pq.write_table(table.set_column(column, "run_digest", pa.array(["x"] * table.num_rows)), path)
        with pytest.raises(InputError, match="made with other weights"):
            report_run(trained.run.folder, "best", EvaluateConfig())
    finally:
        path.write_bytes(original)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean metrics"):
        load_config(EvaluateConfig, "evaluate", None, ["metric.seed=3"])
