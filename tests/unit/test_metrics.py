import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluate.metrics import EvaluationConfig, Selection, evaluate_predictions, metrics_document, write_metrics
from evaluate.operating_point import OperatingPointConfig
from evaluate.subgroup import subgroup_table
from ingest.errors import ConfigError, InputError
from tests.invented_predictions import invented_predictions, some

QUICK = EvaluationConfig(num_resamples=200)


def test_headline_numbers_equal_scikit_learn_on_the_test_rows_only() -> None:
    frame = invented_predictions()
    evaluation = evaluate_predictions(frame, QUICK)
    test = frame[frame["split"] == "test"]
    metrics = evaluation.headline.metrics
    assert metrics["auroc"].value == pytest.approx(roc_auc_score(test["label"], test["score"]))
    assert metrics["average_precision"].value == pytest.approx(average_precision_score(test["label"], test["score"]))
    patients = test.groupby("patient_key").agg(label=("label", "max"), score=("score", "max"))
    found = evaluation.levels["patient"].metrics["auroc"].value
    assert found == pytest.approx(roc_auc_score(patients["label"], patients["score"]))
    assert evaluation.levels["specimen"].num_units == test["specimen_key"].nunique()


def test_every_defined_interval_holds_its_value_and_names_its_method() -> None:
    for level in evaluate_predictions(invented_predictions(), QUICK).levels.values():
        for estimate in (*level.metrics.values(), *some(level.operating_point).metrics.values()):
            if estimate.low is not None:
                assert estimate.low <= some(estimate.value) + 1e-9
                assert some(estimate.value) <= some(estimate.high) + 1e-9
                assert estimate.method


def test_the_threshold_comes_from_tune_and_test_cannot_move_it() -> None:
    frame = invented_predictions()
    point = some(evaluate_predictions(frame, QUICK).headline.operating_point)
    moved = frame.assign(score=frame["score"].where(frame["split"] == "tune", frame["score"] ** 3))
    other = some(evaluate_predictions(moved, QUICK).headline.operating_point)
    assert point.point == other.point
    assert point.point.chosen_on == "tune"
    assert point.confusion != other.confusion


def test_without_tune_rows_there_is_no_threshold_and_the_reason_is_told() -> None:
    frame = invented_predictions().query("split == 'test'")
    head = evaluate_predictions(frame, QUICK).headline
    assert head.operating_point is None
    assert "no tune rows to choose a threshold on" in some(head.operating_point_reason)
    given = QUICK.model_copy(update={"operating_point": OperatingPointConfig(target="threshold", value=0.5)})
    assert some(evaluate_predictions(frame, given).headline.operating_point).point.threshold == 0.5


def test_one_class_is_null_with_the_reason_and_never_one_half(tmp_path: Path) -> None:
    frame = invented_predictions().query("label == 1")
    evaluation = evaluate_predictions(frame, QUICK)
    write_metrics(evaluation, tmp_path / "metrics.json")
    document = json.loads((tmp_path / "metrics.json").read_text())
    auroc = document["levels"]["slide"]["metrics"]["auroc"]
    assert auroc["value"] is None
    assert "one class only" in auroc["reason"]
    assert evaluation.headline.curves is None


def test_metrics_json_is_sorted_strict_and_the_same_for_the_same_input(tmp_path: Path) -> None:
    for name, frame in (("a", invented_predictions()), ("b", invented_predictions().iloc[::-1])):
        write_metrics(evaluate_predictions(frame, QUICK), tmp_path / name)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(document) == sorted(document)
    assert document["schema_version"] == 1


def test_unlabelled_slides_are_counted_and_enter_no_number() -> None:
    frame = invented_predictions()
    blank = frame.copy()
    blank.loc[blank["split"].eq("test") & (np.arange(len(blank)) % 5 == 0), "label"] = np.nan
    head = evaluate_predictions(blank, QUICK).headline
    known = blank[(blank["split"] == "test") & blank["label"].notna()]
    assert head.metrics["auroc"].value == pytest.approx(roc_auc_score(known["label"], known["score"]))
    assert head.num_unlabelled == int((blank["split"].eq("test") & blank["label"].isna()).sum()) > 0


def test_a_perfect_small_test_set_keeps_an_honest_interval_and_a_warning() -> None:
    frame = invented_predictions(14, gap=30.0)
    evaluation = evaluate_predictions(frame, QUICK)
    metrics = evaluation.headline.metrics
    assert metrics["auroc"].value == 1.0
    assert 0.4 < some(metrics["auroc"].low) < 0.85
    assert "perfect separation" in some(metrics["auroc"].method)
    assert metrics["auroc_by_bootstrap"].low == 1.0  # why it is not the headline
    assert metrics["auroc_by_clustered_delong"].value is None
    assert some(metrics["average_precision"].low) < 0.9
    assert some(some(evaluation.headline.operating_point).metrics["sensitivity"].low) < 0.9
    assert any("Few patients" in text for text in evaluation.warnings)


def test_selecting_on_the_scored_split_is_said_aloud() -> None:
    evaluation = evaluate_predictions(invented_predictions(), QUICK, selection=Selection("step_9", "test", 40))
    assert any("selected among 40 on the scored split (test)" in text for text in evaluation.warnings)
    honest = evaluate_predictions(invented_predictions(200), QUICK, selection=Selection("step_9", "tune", 40))
    assert not honest.warnings


def test_prior_shift_moves_calibration_and_leaves_ranks() -> None:
    frame = invented_predictions(200)
    plain, shifted = (
        evaluate_predictions(frame, EvaluationConfig(num_resamples=200, trained_prevalence=p)).headline.metrics
        for p in (None, 0.9)
    )
    assert plain["auroc"] == shifted["auroc"]
    assert some(shifted["mean_score_after_prior_shift"].value) < some(plain["mean_score"].value) - 0.1


def test_a_missing_specimen_key_drops_that_level_with_the_reason() -> None:
    evaluation = evaluate_predictions(invented_predictions().assign(specimen_key=None), QUICK)
    assert set(evaluation.levels) == {"slide", "patient"}
    assert "needs specimen_key" in evaluation.missing_levels["specimen"]


def test_several_tasks_or_folds_must_be_named() -> None:
    one = invented_predictions(20)
    with pytest.raises(ConfigError, match="2 tasks"):
        evaluate_predictions(pd.concat([one, one.assign(task="grade")]), QUICK)
    with pytest.raises(ConfigError, match="2 folds; set fold"):
        evaluate_predictions(pd.concat([one, one.assign(fold=1)]), QUICK)
    with pytest.raises(ConfigError, match="task egfr: not in the predictions; found cancer"):
        evaluate_predictions(one, QUICK, task="egfr")
    with pytest.raises(InputError, match="no rows in split test; found tune"):
        evaluate_predictions(one.query("split == 'tune'"), QUICK)


def test_groups_come_from_the_manifest_when_the_predictions_lack_them() -> None:
    frame = invented_predictions(120)
    slides = frame[["slide_key", "site"]].astype("category")  # as the manifest's dictionary columns are read
    patient = QUICK.model_copy(update={"headline_level": "patient", "groups": ("site",)})
    evaluation = evaluate_predictions(frame.drop(columns="site"), patient, slides=slides)
    assert {row.value for row in some(evaluation.subgroups).rows} == {"axilla", "breast"}
    unknown = evaluate_predictions(frame.drop(columns="site"), patient, slides=slides.iloc[:0])
    assert [row.value for row in some(unknown.subgroups).rows] == ["not known"]


def test_a_subgroup_equals_its_own_evaluation_and_small_ones_are_held_back() -> None:
    frame = invented_predictions(200)
    units = frame.assign(unit_key=frame["slide_key"])
    units.loc[units["patient_key"].isin(["p000", "p001"]), "scanner"] = "rare"
    table = subgroup_table(units, ["scanner"], 0.5)
    rows = {row.value: row for row in table.rows}
    inside = units[units["scanner"] == "B"]
    assert rows["B"].auroc.value == pytest.approx(roc_auc_score(inside["label"], inside["score"]))
    assert rows["B"].sensitivity.value == pytest.approx((inside.query("label == 1")["score"] >= 0.5).mean())
    rest = units[units["scanner"] != "B"]
    assert rows["B"].auroc_without == pytest.approx(roc_auc_score(rest["label"], rest["score"]))
    assert rows["rare"].num_patients is None
    assert rows["rare"].auroc.reason == "fewer than 5 patients: not shown"
    few = subgroup_table(units, ["scanner"], None, min_positive_patients=1000).rows[0]
    assert few.auroc.value is None
    assert "too few to say" in some(few.auroc.reason)
    assert few.sensitivity.reason == "no operating point"


def test_the_document_holds_no_curve_and_no_nan() -> None:
    document = metrics_document(evaluate_predictions(invented_predictions(), QUICK))
    assert all("curves" not in level for level in document["levels"].values())
    json.dumps(document, allow_nan=False)


def test_every_goal_of_the_configuration_has_its_own_interval() -> None:
    config = EvaluationConfig(num_resamples=200, specificities=(0.5, 0.8, 0.99), sensitivities=(0.7, 0.99))
    metrics = evaluate_predictions(invented_predictions(300), config).headline.metrics
    for name in ("sensitivity_at_specificity_0.5", "sensitivity_at_specificity_0.99", "specificity_at_sensitivity_0.7"):
        found = metrics[name]
        assert some(found.low) < some(found.value) < some(found.high)
    assert some(metrics["specificity_at_sensitivity_0.7"].low) > some(metrics["specificity_at_sensitivity_0.99"].low)


def test_a_wider_confidence_gives_wider_intervals_everywhere() -> None:
    frame = invented_predictions(200)
    usual, wide = (
        evaluate_predictions(frame, EvaluationConfig(num_resamples=400, confidence=c)).headline for c in (0.9, 0.99)
    )
    for name, estimate in usual.metrics.items():
        if estimate.low is not None:
            assert some(wide.metrics[name].low) <= estimate.low, name
            assert some(wide.metrics[name].high) >= some(estimate.high), name


def test_a_scored_split_without_any_label_is_not_defined() -> None:
    frame = invented_predictions(20)
    frame.loc[frame["split"] == "test", "label"] = np.nan
    head = evaluate_predictions(frame, QUICK).headline
    assert head.num_units == 0
    assert head.metrics["auroc"].reason == "no rows with a known label"
