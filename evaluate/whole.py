"""Predict and report of one run, and everything with export, put together: what the command line calls."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from evaluate.export_run import checks, export_run, plan_export
from evaluate.features import FeaturesConfig
from evaluate.metrics import EvaluationConfig, Selection, evaluate_predictions
from evaluate.pictures import attention_folder, error_cases
from evaluate.predict import predict, read_slide
from evaluate.predictions import read_predictions
from evaluate.probe_config import ProbeConfig
from evaluate.report.build import FunnelStage, build_report, worst_errors
from evaluate.report.training import read_training_log
from ingest.config import Section, to_toml
from ingest.errors import InputError
from ingest.manifest import read_dataset_card, read_table
from pretrain.cohort import Cohort
from pretrain.config import DataConfig, PretrainConfig, StepConfig
from pretrain.start import open_cohort
from pretrain.trained import open_trained


class EvaluateConfig(Section):
    """Everything the commands of `evaluate` can be told."""

    splits: tuple[str, ...] = ("tune", "test")  # parts to predict; tune gives the threshold, test the numbers
    step: StepConfig = StepConfig()  # layout and memory of prediction; one process unless started under torchrun
    reader: DataConfig = DataConfig()  # only its reader settings are used
    metrics: EvaluationConfig = EvaluationConfig()
    features: FeaturesConfig = FeaturesConfig()
    probe: ProbeConfig = ProbeConfig()


@dataclass(frozen=True, slots=True)
class Reported:
    """What to say about a report: the headline sentence and the page to open."""

    headline: str
    page: Path


def predict_run(run: Path, checkpoint: str, config: EvaluateConfig) -> Path:
    """`predictions.parquet` of a run, in its folder."""
    trained = open_trained(run, checkpoint)
    cohort = open_cohort(trained.config)
    of_reading = ("reader", "reader_threads", "slides_ahead", "ahead_gib", "cache", "cache_gib")
    data = trained.config.data.model_copy(update={name: getattr(config.reader, name) for name in of_reading})
    step = config.step
    if step.layout == "single" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        step = step.model_copy(update={"layout": "shared"})
    path, unread = predict(trained, cohort, config.splits, run, data, step)
    if unread:
        print(f"{len(unread)} slides could not be read and have no prediction: {', '.join(unread[:5])}")
    return path


def report_run(run: Path, checkpoint: str, config: EvaluateConfig) -> Reported:
    """`report/` in the run folder."""
    trained = open_trained(run, checkpoint)
    cohort = open_cohort(trained.config)
    predictions = read_predictions(run / "predictions.parquet")
    if set(predictions["run_digest"]) != {trained.digest}:
        raise InputError(f"run {run.name}: predictions.parquet was made with other weights than checkpoint {checkpoint}; "
                         f"run `python -m evaluate predict {run} --checkpoint {checkpoint}` again")  # fmt: skip
    manifest = trained.config.data.manifest
    selected_on = "tune" if trained.config.run.select_by == "tune_auc" else "last epoch (nothing selected)"
    num_candidates = trained.num_epochs if trained.config.run.select_by == "tune_auc" else 1
    metrics = config.metrics
    if metrics.trained_prevalence is None:
        metrics = metrics.model_copy(update={"trained_prevalence": _trained_prevalence(cohort)})
    evaluation = evaluate_predictions(
        predictions, metrics, slides=read_table(manifest, "slides").to_pandas(),
        selection=Selection(checkpoint=trained.checkpoint, selected_on=selected_on, num_candidates=num_candidates),
    )  # fmt: skip
    slides = {slide.slide_key: slide for slide in cohort.slides}
    files = build_report(
        evaluation, run / "report", title=f"{evaluation.task}: {run.name}",
        training=read_training_log(run / "metrics.jsonl"), funnel=_funnel(manifest),
        errors=error_cases(worst_errors(predictions, evaluation), slides, run),
        resolved_config=to_toml("pretrain", _without_places(trained.config)), environment=_environment(run),
    )  # fmt: skip
    level = evaluation.headline
    auroc = level.metrics["auroc"]
    if auroc.value is None:
        sentence = f"AUC on {evaluation.scored_on}: not defined ({auroc.reason})"
    else:
        sentence = (f"AUC on {evaluation.scored_on}: {auroc.value:.3f} ({metrics.confidence:.0%} interval {auroc.low:.3f} to "
                    f"{auroc.high:.3f}; {level.num_units} {level.level}s, {level.num_positive} positive, of "
                    f"{level.num_patients} patients; selected on {selected_on})")  # fmt: skip
    return Reported(sentence, files.html)


def run_all(run: Path, checkpoint: str, config: EvaluateConfig, license: str) -> None:
    """Everything, and the last lines: what the number is, what was left out, what to open."""
    export = plan_export(
        run, run / "encoder", license, checkpoint
    )  # first: a missing licence must not come out at the end
    predict_run(run, checkpoint, config)
    reported = report_run(run, checkpoint, config)
    exported = export_run(export)
    print(checks(export, exported))
    manifest = export.trained.config.data.manifest
    print()
    for entity, tally in read_dataset_card(manifest)["ledger"].items():
        lost = ", ".join(f"{reason.split('/')[-1]} {count}" for reason, count in tally["left_out"].items())
        print(f"{entity}s: {tally['in']:,} in, {tally['used']:,} used; left out: {lost or 'none'}")
    print(reported.headline)
    print("open:")
    print(f"  {reported.page}  the report, one file")
    print(f"  {manifest / 'card.md'}  the cohort: labels, splits, what was left out and why")
    folder = exported.folder
    print(f"  {folder}  the encoder: timm.create_model('local-dir:{folder}', pretrained=True)")
    print(f"  tensorboard --logdir {run}  the training")


def attention_run(
    run: Path, slide_keys: Sequence[str], folder: Path, checkpoint: str, viewer_mpp: float | None
) -> None:
    """`folder/SLIDE/` with heat map, galleries, GeoJSON and viewer for some predicted slides of a run."""
    slides = {slide.slide_key: slide for slide in open_cohort(open_trained(run, checkpoint).config).slides}
    for slide_key in slide_keys:
        if slide_key not in slides:
            raise InputError(
                f"slide {slide_key}: not in the manifest of run {run.name}; take a slide_key of its predictions"
            )
        attention_folder(slides[slide_key], read_slide(run, slide_key), folder / slide_key, viewer_mpp)


def _without_places(config: PretrainConfig) -> PretrainConfig:
    """The configuration with folder names in place of paths: a report is passed around, a site's paths are not."""
    cache = config.data.cache
    data = config.data.model_copy(
        update={"manifest": Path(config.data.manifest.name), "vault": Path(config.data.vault.name),
                "cache": None if cache is None else Path(cache.name)}
    )  # fmt: skip
    weights = config.encoder.weights
    encoder = config.encoder.model_copy(update={"weights": None if weights is None else Path(weights.name)})
    run = config.run.model_copy(update={"folder": Path(config.run.folder.name)})
    return config.model_copy(update={"data": data, "encoder": encoder, "run": run})


def _trained_prevalence(cohort: Cohort) -> float | None:
    """Share of positives of the first task among what training drew, by weight; None where it is 0, 1 or not known."""
    train = [slide for slide in cohort.part("train") if not math.isnan(slide.targets[0])]
    total = math.fsum(slide.weight for slide in train)
    share = math.fsum(slide.weight * slide.targets[0] for slide in train) / total if total else 0.0
    return share if 0 < share < 1 else None


def _funnel(manifest: Path) -> list[FunnelStage]:
    """The steps of the cohort with what each lost."""
    document = read_dataset_card(manifest)
    steps: list[tuple[str, int]] = [(name, num) for name, num in document["funnel"]]
    losses = [{"left out": before - num} if before > num else {} for (_, before), (_, num) in pairwise(steps)]
    return [FunnelStage(name, num, lost) for (name, num), lost in zip(steps, [{}, *losses], strict=True)]


def _environment(run: Path) -> dict[str, Any]:
    path = run / "environment.json"
    environment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return environment
