from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluate.predictions import (
    PREDICTIONS_SCHEMA,
    check_predictions,
    count_predictions,
    predictions_digest,
    read_predictions,
    write_predictions,
)
from ingest.errors import GateError, InputError
from tests.invented_predictions import invented_predictions


def test_a_table_survives_writing_and_reading(tmp_path: Path) -> None:
    frame = invented_predictions(10)
    write_predictions(frame, tmp_path / "predictions.parquet")
    back = read_predictions(tmp_path / "predictions.parquet")
    assert list(back.columns) == PREDICTIONS_SCHEMA.names
    assert len(back) == len(frame)
    assert predictions_digest(back) == predictions_digest(check_predictions(frame))


def test_the_digest_ignores_row_order_and_sees_a_changed_score() -> None:
    frame = check_predictions(invented_predictions(10))
    assert predictions_digest(frame.iloc[::-1]) == predictions_digest(frame)
    changed = frame.copy()
    changed.loc[0, "score"] = 0.123
    assert predictions_digest(changed) != predictions_digest(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(score=f["score"].mask(f.index == 3)), "1 of .* scores are NaN or infinite, first slide"),
        (lambda f: f.assign(score=f["score"] * 9), "outside 0..1.*not logits"),
        (lambda f: f.assign(label=2.0), "neither 0 nor 1"),
        (lambda f: f.assign(label="yes"), "are not numbers; name the positive one with positive_class"),
        (lambda f: f.assign(slide_key="same", patient_key="same", split="test"), "rows repeat a slide in one fold"),
        (lambda f: f.assign(patient_key=f["patient_key"].mask(f.index < 2)), "2 of .* rows have no patient_key"),
        (lambda f: f.assign(patient_key=f["patient_key"].where(f.index > 0, " ")), "1 of .* rows have no patient_key"),
        (lambda f: f.drop(columns="patient_key"), "no patient_key column; slides of one patient are not independent"),
        (lambda f: f.assign(specimen_key="same"), "specimen same belongs to 8 patients"),
        (lambda f: f.assign(split="holdout"), "split holdout; use train, tune, test"),
        (lambda f: f.assign(fold=0.5), "fold must be a whole number"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_a_broken_table_is_refused_with_the_fault(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_predictions(change(invented_predictions(8)))


def test_a_patient_in_two_splits_is_a_leak_and_closes_the_gate() -> None:
    frame = invented_predictions(8)
    several = frame["patient_key"].value_counts().idxmax()
    rows = frame.index[frame["patient_key"] == several]
    frame.loc[rows[0], "split"] = "tune" if frame.loc[rows[0], "split"] == "test" else "test"
    with pytest.raises(GateError, match=f"1 patients are in two splits .*first patient {several}"):
        check_predictions(frame)


def test_one_patient_may_be_in_different_splits_of_different_folds() -> None:
    one, two = invented_predictions(8), invented_predictions(8, fold=1)
    two["split"] = np.where(two["split"] == "test", "tune", "test")
    assert len(check_predictions(pd.concat([one, two]))) == 2 * len(one)


def test_unknown_labels_are_counted_and_kept() -> None:
    frame = invented_predictions(8)
    frame.loc[:2, "label"] = np.nan
    counts = count_predictions(check_predictions(frame))
    assert (counts.num_unlabelled, counts.num_scored_labelled) == (3, len(frame) - 3)


def test_clam_columns_are_known(tmp_path: Path) -> None:
    (tmp_path / "split_0_results.csv").write_text(
        "slide_id,patient_id,Y,Y_hat,p_0,p_1\na,P1,1,1,0.2,0.8\nb,P2,0,0,0.7,0.3\n"
    )
    frame = read_predictions(tmp_path / "split_0_results.csv")
    assert frame[["slide_key", "label", "score", "split"]].to_numpy().tolist() == [
        ["a", 1, 0.8, "test"],
        ["b", 0, 0.3, "test"],
    ]


def test_stamp_patient_predictions_are_known(tmp_path: Path) -> None:
    path = tmp_path / "patient-preds.csv"
    path.write_text("PATIENT,EGFR,pred,EGFR_mut,EGFR_wt,loss\nP1,mut,mut,0.9,0.1,0.1\nP2,wt,mut,0.6,0.4,0.9\n")
    frame = read_predictions(path, positive_class="mut")
    assert frame[["slide_key", "patient_key", "label", "score"]].to_numpy().tolist() == [
        ["P1", "P1", 1.0, 0.9],
        ["P2", "P2", 0.0, 0.6],
    ]
    with pytest.raises(InputError, match="classes mut, wt: name the positive one"):
        read_predictions(path)


def test_opal_split_columns_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "opal.csv"
    path.write_text("slide,patient,target,prob,mccv1,mccv2\na,A,1,0.9,train,val\nb,B,0,0.1,val,train\nc,C,0,0.2,val,\n")
    frame = read_predictions(path, mccv_column="mccv2")
    assert frame[["slide_key", "split", "fold"]].to_numpy().tolist() == [["a", "tune", 2], ["b", "train", 2]]
    with pytest.raises(InputError, match=r"2 split columns mccv1..mccv2: say which one"):
        read_predictions(path)


def test_two_columns_for_one_meaning_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("slide,patient,y,target,prob\na,A,1,1,0.9\n")
    with pytest.raises(InputError, match="could all be label"):
        read_predictions(tmp_path / "t.csv")


def test_missing_unreadable_and_foreign_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; run `evaluate predict`"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a Parquet or CSV table"):
        read_predictions(tmp_path / "bad.parquet")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="column slide_key, label, score missing; found a, b"):
        read_predictions(tmp_path / "other.csv")
