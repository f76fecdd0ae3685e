"""Kinds of tissue from cached features: whose tiles they are, what a step takes of them, and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from ingest.config import to_toml
from ingest.errors import ConfigError, InputError, ManifestError
from pretrain.__main__ import app
from pretrain.clusters import cluster_slides, read_features, with_clusters, write_clusters
from pretrain.cohort import CohortSlide, load_cohort
from pretrain.config import PretrainConfig
from pretrain.loader import plan_share
from pretrain.start import open_cohort
from pretrain.team import make_team
from tests.small_cohort import with_settings, write_small_cohort


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return write_small_cohort(tmp_path)


def train_slides(config: PretrainConfig) -> tuple[CohortSlide, ...]:
    return load_cohort(config.data.manifest, config.data.vault, ["cancer"], "holdout", 0).part("train")


def invented_features(slide: CohortSlide) -> NDArray[np.float32]:
    """The first two tiles of every slide are of another kind."""
    features_TF = np.random.default_rng(slide.num_tiles).normal(0, 0.1, (slide.num_tiles, 3)).astype(np.float32)
    features_TF[:2] += 10
    return features_TF


def write_features(folder: Path, slide: CohortSlide, features_TF: NDArray[np.float32]) -> None:
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"{slide.slide_key}.h5", "w") as file:
        file["features"] = features_TF.astype(np.float16)
        file["coords"] = slide.grid.boxes(slide.tile_indices())[:, :2]


def test_centres_are_common_to_all_slides(config: PretrainConfig) -> None:
    slides = train_slides(config)
    made = cluster_slides(slides, invented_features, 2, seed=1)
    rare = {int(clusters[0]) for clusters in made.clusters.values()}
    assert len(rare) == 1
    for slide in slides:
        clusters = made.clusters[slide.slide_key]
        assert (clusters == rare.copy().pop()).tolist() == [True, True] + [False] * (slide.num_tiles - 2)
    assert not made.left_out


def test_the_command_makes_what_training_reads_and_a_step_takes_as_many_rare_as_common_tiles(
    config: PretrainConfig, tmp_path: Path
) -> None:
    slides = train_slides(config)
    for slide in slides:
        write_features(tmp_path / "features", slide, invented_features(slide))
    (tmp_path / "config.toml").write_text(to_toml("pretrain", config), encoding="utf-8")
    out = tmp_path / "clusters.parquet"
    arguments = [
        "cluster",
        str(tmp_path / "features"),
        "-c",
        str(tmp_path / "config.toml"),
        "--num-clusters",
        "2",
        "-o",
        str(out),
    ]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert "4 of 4 have a feature file; dry run" in dry.output
    assert not out.exists()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "4 slides clustered, 0 left out, 4 in all" in done.output
    config = with_settings(config, sample={"mode": "cluster", "num_tiles": 4, "clusters": out})
    team = make_team("single", device="cpu")
    for slide in open_cohort(config).part("train"):
        plan = plan_share(slide, team, config.sample, run_seed=0, epoch=0)
        tissue = slide.tile_indices()
        assert int(np.isin(plan.tile_indices, tissue[:2]).sum()) == 2  # a random draw of 4 would take 0.5 of them
        assert len(plan.tile_indices) == 4


def test_a_slide_without_features_is_left_out_and_told_and_training_asks_for_it(
    config: PretrainConfig, tmp_path: Path
) -> None:
    slides = train_slides(config)
    for slide in slides[1:]:
        write_features(tmp_path / "features", slide, invented_features(slide))
    write_features(tmp_path / "features", slides[3], invented_features(slides[3])[::-1][:-1])  # other tiles
    made = cluster_slides(
        slides, lambda slide: read_features(tmp_path / "features" / f"{slide.slide_key}.h5", slide), 2, 1
    )
    assert len(made.clusters) + len(made.left_out) == len(slides)
    assert made.left_out[slides[0].slide_key] == "no feature file"
    out = tmp_path / "clusters.parquet"
    write_clusters(out, made.clusters, {})
    with pytest.raises(ManifestError, match=r"2 of 4 training slides are not in it \(first: slide0\)"):
        open_cohort(with_settings(config, sample={"mode": "cluster", "num_tiles": 4, "clusters": out}))


def test_features_of_other_tiles_and_damaged_files_are_refused(config: PretrainConfig, tmp_path: Path) -> None:
    slide = train_slides(config)[0]
    path = tmp_path / f"{slide.slide_key}.h5"
    features_TF = invented_features(slide)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features_TF, slide.grid.boxes(slide.tile_indices())[::-1, :2]
    with pytest.raises(InputError, match="other tiles"):
        read_features(path, slide)
    features_TF[3, 1] = np.nan
    write_features(tmp_path, slide, features_TF)
    with pytest.raises(InputError, match="not finite"):
        read_features(path, slide)
    path.write_bytes(b"no h5")
    with pytest.raises(InputError, match="not a readable feature file"):
        read_features(path, slide)


def test_too_few_tiles_a_missing_table_and_one_of_other_tiles_are_refused(
    config: PretrainConfig, tmp_path: Path
) -> None:
    slides = train_slides(config)
    with pytest.raises(InputError, match="ask for fewer clusters"):
        cluster_slides(slides[:1], invented_features, 200, seed=1)
    cohort = load_cohort(config.data.manifest, config.data.vault, ["cancer"], "holdout", 0)
    with pytest.raises(ConfigError, match="no such file"):
        with_clusters(cohort, tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no table", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a table"):
        with_clusters(cohort, tmp_path / "text.parquet")
    write_clusters(tmp_path / "c.parquet", {slide.slide_key: np.zeros(3, np.uint8) for slide in slides}, {})
    with pytest.raises(ManifestError, match="tiles were counted again"):
        with_clusters(cohort, tmp_path / "c.parquet")
