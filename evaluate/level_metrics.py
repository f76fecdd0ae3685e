"""Every number of one level (slide, specimen or patient): threshold-free, calibration, and at the frozen threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from evaluate import calibration
from evaluate.bootstrap import Bootstrap, bootstrap, percentile_interval
from evaluate.interval import (
    Estimate,
    Interval,
    auroc_interval,
    clustered_delong,
    estimate,
    logit_interval,
    wilson_interval,
)
from evaluate.levels import RULE_TEXT, Level, Rule
from evaluate.operating_point import (
    Confusion,
    OperatingPoint,
    OperatingPointConfig,
    choose_operating_point,
    confusion,
    predictive_values,
    share,
)
from evaluate.roc import (
    Bools,
    Floats,
    NotDefinedError,
    PrecisionRecallCurve,
    RocCurve,
    auroc,
    average_precision,
    precision_recall_curve,
    roc_curve,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from ingest.config import Section

FEW_PATIENTS = 20  # below this in a class, percentile limits of a bootstrap are too narrow; Wilson at patients instead
Keys = NDArray[np.object_]


class EvaluationConfig(Section):
    headline_level: Level = "slide"  # the level of the first line; all three are always reported
    rule: Rule = "max"  # how slide scores make a specimen or patient score
    scored_split: Literal["train", "tune", "test"] = "test"
    chosen_split: Literal["train", "tune", "test"] = "tune"  # where the threshold comes from
    fold: int | None = None  # None: the table must hold one fold
    operating_point: OperatingPointConfig = OperatingPointConfig()
    specificities: tuple[float, ...] = (0.90, 0.95)  # sensitivity is reported at each
    sensitivities: tuple[float, ...] = (0.95,)  # specificity is reported at each
    num_resamples: int = Field(default=2000, ge=100)  # patient bootstrap draws
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = 0
    num_bins: int = Field(default=10, ge=2)  # of the reliability curve, fewer below 10 rows a bin
    trained_prevalence: float | None = Field(
        default=None, gt=0, lt=1
    )  # of the training sample; shifted to that of tune
    target_prevalence: float | None = Field(default=None, gt=0, lt=1)  # where it will be used; for predictive values
    groups: tuple[str, ...] = ("site", "procedure", "scanner", "centre")  # columns of the subgroup table
    min_positive_patients: int = Field(default=10, ge=2)  # smaller subgroups show no area under the curve


@dataclass(frozen=True, slots=True)
class Curves:
    """What the figures draw; not part of metrics.json."""

    roc: RocCurve
    precision_recall: PrecisionRecallCurve
    draws: Bootstrap
    reliability: list[calibration.ReliabilityBin]
    shifted_reliability: list[calibration.ReliabilityBin] | None
    confidence: float


@dataclass(frozen=True, slots=True)
class OperatingResult:
    """A frozen threshold and what it did on the scored split."""

    point: OperatingPoint
    confusion: Confusion
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class LevelResult:
    level: Level
    rule: str
    num_units: int
    num_positive: int
    num_patients: int
    num_positive_patients: int
    num_negative_patients: int
    num_unlabelled: int
    metrics: Mapping[str, Estimate]
    operating_point: OperatingResult | None
    operating_point_reason: str | None
    curves: Curves | None


def level_result(level: Level, units: pd.DataFrame, tune_units: pd.DataFrame, config: EvaluationConfig) -> LevelResult:
    """Every number of one level; `units` and `tune_units` are tables of `evaluate.levels.aggregate`."""
    known = units[units["label"].notna()]
    positive, scores = _arrays(known)
    patients = known["patient_key"].to_numpy(dtype=object)
    tune_known = tune_units["label"].dropna()
    tune_prevalence = float(tune_known.mean()) if 0 < tune_known.sum() < len(tune_known) else None
    metrics, curves = _threshold_free(positive, scores, patients, tune_prevalence, config)
    result, reason = None, None
    try:
        result = _at_operating_point(positive, scores, patients, tune_units, config)
    except NotDefinedError as error:
        reason = str(error)
    return LevelResult(
        level=level,
        rule="as scored" if level == "slide" else f"{config.rule}: {RULE_TEXT[config.rule]}",
        num_units=len(known),
        num_positive=int(positive.sum()),
        num_patients=len(set(patients)),
        num_positive_patients=len(set(patients[positive])),
        num_negative_patients=len(set(patients[~positive])),
        num_unlabelled=len(units) - len(known),
        metrics=metrics,
        operating_point=result,
        operating_point_reason=reason,
        curves=curves,
    )


def _threshold_free(
    positive: Bools, scores: Floats, patients: Keys, tune_prevalence: float | None, config: EvaluationConfig
) -> tuple[dict[str, Estimate], Curves | None]:
    confidence = config.confidence
    try:
        draws = bootstrap(
            positive, scores, patients, num_resamples=config.num_resamples, seed=config.seed,
            specificities=config.specificities, at_sensitivities=config.sensitivities, confidence=confidence,
        )  # fmt: skip
        area, area_interval = auroc(positive, scores), auroc_interval(positive, scores, patients, confidence)
    except NotDefinedError as error:
        names = ("auroc", "average_precision", "brier", "calibration_error", "calibration_slope")
        return {name: Estimate(None, reason=str(error)) for name in names}, None
    num_patients = {True: len(set(patients[positive])), False: len(set(patients[~positive]))}

    def resampled(value: float, values: Floats, of_positives: bool = True) -> Estimate:
        """Percentiles; with few patients or no spread, Wilson's limits at the patients the number is a mean over."""
        low, high = percentile_interval(values, confidence)
        if min(num_patients.values()) < FEW_PATIENTS or low == high:
            return _with(value, _wilson_at_patients(value, num_patients[of_positives], of_positives, confidence))
        return Estimate(value, low, high, _draws_method(draws, config))

    metrics = {
        "auroc": _with(area, area_interval),
        "auroc_by_bootstrap": Estimate(
            area, *percentile_interval(draws.aurocs, confidence), _draws_method(draws, config)
        ),
        "auroc_by_clustered_delong": estimate(lambda: _delong(positive, scores, patients, confidence)),
        "average_precision": resampled(average_precision(positive, scores), draws.average_precisions),
    }
    for number, goal in enumerate(config.specificities):
        value = sensitivity_at_specificity(positive, scores, goal)[0]
        metrics[f"sensitivity_at_specificity_{goal:g}"] = resampled(value, draws.sensitivities[:, number])
    for number, goal in enumerate(config.sensitivities):
        value = specificity_at_sensitivity(positive, scores, goal)[0]
        metrics[f"specificity_at_sensitivity_{goal:g}"] = resampled(value, draws.specificities[:, number], False)
    metrics |= _calibration_metrics(positive, scores, patients, config)
    shifted = None
    if config.trained_prevalence is not None and tune_prevalence is not None:
        moved = calibration.shift_prior(scores, config.trained_prevalence, tune_prevalence)
        later = _calibration_metrics(positive, moved, patients, config)
        metrics |= {f"{name}_after_prior_shift": number for name, number in later.items()}
        shifted = calibration.reliability(positive, moved, patients, _num_bins(scores, config), confidence)
    curves = Curves(
        roc_curve(positive, scores),
        precision_recall_curve(positive, scores),
        draws,
        calibration.reliability(positive, scores, patients, _num_bins(scores, config), confidence),
        shifted,
        confidence,
    )
    return metrics, curves


def _calibration_metrics(
    positive: Bools, scores: Floats, patients: Keys, config: EvaluationConfig
) -> dict[str, Estimate]:
    metrics = {
        "brier": estimate(lambda: calibration.brier_with_interval(positive, scores, patients, config.confidence)),
        "brier_skill": Estimate(calibration.brier_skill(positive, scores)),
        "calibration_error": Estimate(calibration.calibration_error(positive, scores, _num_bins(scores, config))),
        "calibration_error_floor": Estimate(
            calibration.calibration_error_floor(scores, _num_bins(scores, config), config.seed)
        ),
        "mean_score": Estimate(float(scores.mean())),
    }
    try:
        fit = calibration.recalibration(positive, scores, patients, config.confidence)
    except NotDefinedError as error:
        undefined = Estimate(None, reason=str(error))
        return metrics | {"calibration_slope": undefined, "calibration_intercept": undefined}
    return metrics | {
        "calibration_slope": _with(fit.slope, fit.slope_interval),
        "calibration_intercept": _with(fit.intercept, fit.intercept_interval),
    }


def _at_operating_point(
    positive: Bools,
    scores: Floats,
    patients: Keys,
    tune_units: pd.DataFrame,
    config: EvaluationConfig,
) -> OperatingResult:
    if config.operating_point.target != "threshold" and tune_units.empty:
        raise NotDefinedError(
            f"no {config.chosen_split} rows to choose a threshold on; predict them or give a threshold"
        )
    known = tune_units[tune_units["label"].notna()]
    tune_positive, tune_scores = _arrays(known)
    point = choose_operating_point(
        tune_positive,
        tune_scores,
        known["patient_key"].to_numpy(dtype=object),
        config.operating_point,
        config.chosen_split,
    )
    called = scores >= point.threshold

    def rate(part: Bools, of: Bools, what: str) -> Estimate:
        return estimate(lambda: share(part, of, patients, what, config.confidence))

    metrics = {
        "sensitivity": rate(called, positive, "positive"),
        "specificity": rate(~called, ~positive, "negative"),
        "positive_predictive_value": rate(positive, called, "called-positive"),
        "negative_predictive_value": rate(~positive, ~called, "called-negative"),
        "accuracy": rate(called == positive, np.ones(len(called), dtype=bool), "scored"),
    }
    sensitivity, specificity = metrics["sensitivity"].value, metrics["specificity"].value
    if config.target_prevalence is not None and sensitivity is not None and specificity is not None:
        prevalence = config.target_prevalence
        try:
            values = predictive_values(sensitivity, specificity, prevalence)
        except NotDefinedError as error:
            positive_value = negative_value = Estimate(None, reason=str(error))
        else:
            positive_value, negative_value = Estimate(values[0]), Estimate(values[1])
        metrics["positive_predictive_value_at_target_prevalence"] = positive_value
        metrics["negative_predictive_value_at_target_prevalence"] = negative_value
    return OperatingResult(point, confusion(positive, scores, point.threshold), metrics)


def _num_bins(scores: Floats, config: EvaluationConfig) -> int:
    return min(config.num_bins, max(2, len(scores) // 10))


def _arrays(units: pd.DataFrame) -> tuple[Bools, Floats]:
    return units["label"].to_numpy(dtype=np.float64) == 1, units["score"].to_numpy(dtype=np.float64)


def _with(value: float, interval: Interval) -> Estimate:
    return Estimate(value, interval.low, interval.high, interval.method)


def _wilson_at_patients(value: float, num_patients: int, of_positives: bool, confidence: float) -> Interval:
    """A mean over rows of numbers in 0..1 varies no more than a proportion: Wilson's limits bound it."""
    low, high = wilson_interval(value, num_patients, confidence)
    return Interval(low, high, f"Wilson at {num_patients} patients with {'positives' if of_positives else 'negatives'}")


def _delong(positive: Bools, scores: Floats, patients: Keys, confidence: float) -> tuple[float, Interval]:
    areas, covariance = clustered_delong(positive, patients, scores)
    low, high = logit_interval(float(areas[0]), float(covariance[0, 0]), confidence)
    return float(areas[0]), Interval(low, high, "clustered DeLong (Obuchowski 1997), logit scale")


def _draws_method(draws: Bootstrap, config: EvaluationConfig) -> str:
    left_out = f", {draws.num_undefined} left out for one class" if draws.num_undefined else ""
    return f"patient bootstrap, {config.num_resamples} draws{left_out}, percentile"
