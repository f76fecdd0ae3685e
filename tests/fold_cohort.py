"""The small cohort with a Monte Carlo scheme of three repeats, for tests of `--scheme`."""

from pathlib import Path

import pyarrow as pa

from ingest.config import to_toml
from ingest.manifest import read_table, table_from_rows, write_table
from pretrain.config import PretrainConfig
from tests.small_cohort import PROVENANCE, with_settings, write_small_cohort

SCHEME = "mccv3"
NUM_FOLDS = 3
PARTS = ("train", "train", "train", "train", "tune", "test", "test", "test")  # of patients 0..7 in fold 0
SWAPPED = {
    "slide5": 0,
    "slide6": 1,
}  # labels against the looks of the slides: fold 0, which tests both, cannot be right


def write_fold_cohort(folder: Path, num_epochs: int = 1) -> PretrainConfig:
    """Fold f has the parts of fold 0, moved by 2 f patients; `folder/run.toml` is the configuration."""
    config = with_settings(write_small_cohort(folder), run={"num_epochs": num_epochs}, step={"timeout_seconds": 600})
    slides = read_table(config.data.manifest, "slides").to_pylist()
    for slide in slides:
        slide["y_cancer"] = SWAPPED.get(slide["slide_key"], slide["y_cancer"])
    write_table(config.data.manifest, "slides", table_from_rows("slides", slides, {"y_cancer": pa.int8()}), PROVENANCE)
    add_scheme(config.data.manifest)
    (folder / "run.toml").write_text(to_toml("pretrain", config), encoding="utf-8")
    return config


def part(number: int, fold: int, shift: int = 2) -> str:
    """The part of patient `number` in a fold."""
    return PARTS[(number + shift * fold) % len(PARTS)]


def add_scheme(manifest: Path, shift: int = 2) -> None:
    rows = [row for row in read_table(manifest, "splits").to_pylist() if row["scheme"] != SCHEME]
    rows += [{"patient_key": f"patient{number}", "scheme": SCHEME, "fold": fold, "split": part(number, fold, shift)}
             for fold in range(NUM_FOLDS) for number in range(len(PARTS))]  # fmt: skip
    write_table(manifest, "splits", table_from_rows("splits", rows), PROVENANCE)
