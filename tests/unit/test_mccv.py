from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evaluate.compare import nadeau_bengio
from evaluate.mccv import MccvConfig, MccvRunConfig, mccv_rows, splits_chart, table_text, tiles_chart, write_mccv
from ingest.errors import InputError
from tests.invented_predictions import some


def folds(shift: float, num_folds: int = 6) -> Any:
    """80 training and 20 test patients a fold; `shift` separates the classes."""
    tables = []
    for fold in range(num_folds):
        generator = np.random.default_rng(fold)
        order = generator.permutation(100)
        label = order % 2
        logit = generator.normal(size=100) + shift * label
        tables.append(
            pd.DataFrame(
                {
                    "slide_key": [f"s{k}" for k in order],
                    "patient_key": [f"p{k}" for k in order],
                    "label": label,
                    "score": 1 / (1 + np.exp(-logit)),
                    "split": np.where(np.arange(100) < 80, "train", "test"),
                    "fold": fold,
                }
            )
        )
    return pd.concat(tables)


def config_of(tmp_path: Path, **runs: tuple[pd.DataFrame, int]) -> Any:
    entries = []
    for name, (frame, num_tiles) in runs.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        entries.append(
            MccvRunConfig(
                algorithm=name, predictions=f"{name}.csv", num_tiles=num_tiles, strategy="P", selected_on="tune"
            )
        )
    return MccvConfig(runs=tuple(entries))


def test_the_table_has_the_papers_form_and_the_areas_of_scikit_learn(tmp_path: Path) -> None:
    frame = folds(1.0)
    rows = mccv_rows(config_of(tmp_path, K50=(frame, 50), K700=(folds(2.0), 700)), tmp_path)
    expected = [
        roc_auc_score(part["label"], part["score"]) for _, part in frame[frame["split"] == "test"].groupby("fold")
    ]
    assert list(rows[0].aurocs.values()) == pytest.approx(expected)
    assert rows[0].shown == f"{100 * np.mean(expected):.1f} ({100 * np.std(expected, ddof=1):.1f})"
    assert f"| K50 | NA | All Tiles | {rows[0].shown} | 6 |" in table_text(rows)
    paired = np.array(list(rows[1].aurocs.values())) - np.array(expected)
    assert rows[1].p_value == pytest.approx(nadeau_bengio(paired, 0.25).p_value)
    assert rows[0].p_value is None


def test_the_corrected_interval_is_wider_than_the_papers_bootstrap_of_the_mean(tmp_path: Path) -> None:
    (row,) = mccv_rows(config_of(tmp_path, K50=(folds(1.0), 50)), tmp_path)
    assert some(row.interval.high) - some(row.interval.low) > 1.3 * (
        some(row.mean_interval.high) - some(row.mean_interval.low)
    )


def test_a_fold_with_one_class_is_counted_and_not_averaged(tmp_path: Path) -> None:
    frame = folds(1.0)
    frame.loc[(frame["fold"] == 2) & (frame["split"] == "test"), "label"] = 1
    (row,) = mccv_rows(config_of(tmp_path, K50=(frame, 50)), tmp_path)
    assert (len(row.aurocs), row.num_undefined) == (5, 1)
    assert "5 (+1 not defined)" in table_text([row])


def test_without_train_rows_the_ratio_must_be_given(tmp_path: Path) -> None:
    config = config_of(tmp_path, K50=(folds(1.0).query("split == 'test'"), 50))
    with pytest.raises(InputError, match="set test_per_train"):
        mccv_rows(config, tmp_path)
    assert mccv_rows(config.model_copy(update={"test_per_train": 0.25}), tmp_path)


def test_runs_without_the_same_folds_are_not_compared(tmp_path: Path) -> None:
    rows = mccv_rows(config_of(tmp_path, a=(folds(1.0), 50), b=(folds(1.0, 4), 100)), tmp_path)
    assert rows[1].p_value is None
    assert "unpaired" in some(rows[1].difference.reason)


def test_figures_and_table_are_written(tmp_path: Path) -> None:
    rows = mccv_rows(config_of(tmp_path, K50=(folds(1.0), 50), K700=(folds(2.0), 700)), tmp_path)
    write_mccv(rows, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"table.md", "mccv.json", "tiles_against_auroc.png", "splits.pdf", "splits.svg"} <= names
    chart = some(tiles_chart(rows))
    assert [text for _, text in chart.x_ticks] == ["50", "700"]
    assert len(splits_chart(rows).x_ticks) == 2
