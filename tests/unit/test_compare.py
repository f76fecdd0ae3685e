from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluate.compare import compare_runs, comparison_text, holm, nadeau_bengio, read_runs, write_comparison
from evaluate.interval import clustered_delong
from evaluate.predictions import write_predictions
from evaluate.roc import NotDefinedError
from ingest.errors import InputError
from tests.invented_predictions import invented_predictions, some


def worse(frame: pd.DataFrame, seed: int = 1, amount: float = 0.25) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(scale=amount, size=len(frame))
    return frame.assign(score=np.clip(frame["score"] + noise, 0, 1))


def test_a_difference_is_that_of_the_areas_with_the_clustered_variance() -> None:
    frame = invented_predictions(100)
    other = worse(frame)
    (found,) = compare_runs({"base": frame, "noisy": other}, num_resamples=300)
    test = frame["split"] == "test"
    areas, covariance = clustered_delong(
        frame["label"][test], frame["patient_key"][test], other["score"][test], frame["score"][test]
    )
    gap, error = areas[0] - areas[1], np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference.value == pytest.approx(gap)
    assert some(found.difference.high) - some(found.difference.low) == pytest.approx(2 * 1.959964 * error, rel=1e-5)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(gap / error)))
    assert found.difference_by_bootstrap.low == pytest.approx(found.difference.low, abs=0.03)
    assert "| noisy | base |" in comparison_text([found])


def test_a_run_against_itself_has_no_variance_to_judge_by(tmp_path: Path) -> None:
    frame = invented_predictions(30)
    found = compare_runs({"a": frame, "b": frame.assign(score=frame["score"] ** 2)}, num_resamples=200)
    assert found[0].difference.value == 0
    assert found[0].p_value is None
    assert "order the pairs alike" in some(found[0].difference.reason)
    write_comparison(found, tmp_path)
    assert (tmp_path / "comparison.json").exists()


def test_three_runs_are_adjusted_together() -> None:
    frame = invented_predictions(100)
    found = compare_runs({"a": frame, "b": worse(frame), "c": worse(frame, 2, 0.4)}, num_resamples=200)
    expected = holm([item.p_value for item in found])
    assert [item.p_value_adjusted for item in found] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[:-1], "unpaired: 1 units only in the first"),
        (lambda f: f.assign(label=1 - f["label"]), "units differ in label"),
        (lambda f: f.assign(patient_key=f["patient_key"] + "x"), "units differ in patient_key"),
    ],
)
def test_unpaired_runs_are_refused(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    frame = invented_predictions(21).query("split == 'test'")
    with pytest.raises(InputError, match=message):
        compare_runs({"a": frame, "b": change(frame)})


def test_holm_is_the_step_down_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.04]) == [0.04, None, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_nadeau_bengio_without_overlap_is_the_paired_t_test_and_widens_with_it() -> None:
    differences = [0.02, 0.01, -0.01, 0.03, 0.00]
    plain = nadeau_bengio(differences, 0.0)
    assert plain.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    corrected = nadeau_bengio(differences, 0.25)
    ratio = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(np.sqrt((1 / 5 + 0.25) / (1 / 5)))
    with pytest.raises(NotDefinedError, match="a spread needs two"):
        nadeau_bengio([0.1], 0.25)
    with pytest.raises(NotDefinedError, match="same value"):
        nadeau_bengio([0.1, 0.1], 0.25)


def test_a_run_folder_stands_for_its_predictions(tmp_path: Path) -> None:
    write_predictions(invented_predictions(10), tmp_path / "one" / "predictions.parquet")
    invented_predictions(10).to_csv(tmp_path / "two.csv", index=False)
    runs = read_runs([tmp_path / "one", tmp_path / "two.csv"])
    assert list(runs) == ["one", "two"]
    assert compare_runs(runs, num_resamples=200)[0].difference.value == pytest.approx(0)
    with pytest.raises(InputError, match="two runs are called one"):
        read_runs([tmp_path / "one", tmp_path / "one"])
