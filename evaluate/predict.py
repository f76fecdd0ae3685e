"""Every tile of every slide of a split through a trained run: one score per slide and task, one weight per tile.

Each finished slide is a file of its own, so a stopped command goes on where it was; `predictions.parquet` is put together
at the end. The geometry is that of training: a manifest with another tile size or resolution is refused.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from evaluate.predictions import write_predictions
from ingest.atomic import atomic_file
from ingest.errors import InputError
from ingest.progress import track
from pretrain.cohort import Cohort, CohortSlide
from pretrain.config import DataConfig, StepConfig
from pretrain.forward import forward_slides
from pretrain.heads import probabilities
from pretrain.loader import TileFeed
from pretrain.team import make_team, pick_device
from pretrain.trained import Trained, require_same_geometry, trained_models

SPLITS = ("train", "tune", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideResult:
    """What was predicted for one slide.

    Attributes:
        scores: per task, probability of the last class (the positive one of two).
        tile_indices, attention: [T] grid indices and weights that sum to 1; attention is None for aggregators without.
    """

    slide_key: str
    scores: dict[str, float]
    tile_indices: NDArray[np.int64]
    attention: NDArray[np.float32] | None


def predict(
    trained: Trained, cohort: Cohort, splits: Sequence[str], folder: Path, data: DataConfig, step: StepConfig
) -> tuple[Path, list[str]]:
    """Predict the slides of `splits` and write `folder/predictions.parquet` and `folder/tiles/SLIDE.parquet`.

    Under torchrun every rank calls it; rank 0 writes.

    Args:
        data: reader settings. step: layout and memory; may differ from training.
    Returns:
        The path of the predictions, and the keys of slides that could not be read.
    Raises:
        ManifestError: other tiles than in training.
        InputError: no slide could be read.
    """
    require_same_geometry(trained, cohort)
    slides = [slide for split in splits for slide in cohort.part(split)]
    todo = [slide for slide in slides if not _is_done(folder, slide, trained)]
    config = trained.config.model_copy(update={"step": step, "data": data})
    device = torch.device("cpu") if config.run.device == "cpu" else pick_device()
    team = make_team(step.layout, step.num_teams, timeout_seconds=step.timeout_seconds, device=device)
    unread: list[str] = []
    try:
        if todo:
            models = trained_models(trained, team, step)
            with TileFeed(data, cohort, team, step.timeout_seconds) as feed:
                for tiles, result in track(forward_slides(config, models, feed, todo, team), len(todo), "predicting"):
                    if not team.is_aggregator:
                        continue
                    slide = tiles.plan.slide
                    if result is None or result.logits is None:
                        unread.append(slide.slide_key)
                        continue
                    scores = {task: float(values[-1]) for task, values in probabilities(result.logits).items()}
                    attention = None if result.attention_T is None else result.attention_T.float().cpu().numpy()
                    _write_slide(folder, SlideResult(slide_key=slide.slide_key, scores=scores, attention=attention,
                                                     tile_indices=slide.tile_indices()), trained)  # fmt: skip
    finally:
        team.close()
    path = folder / "predictions.parquet"
    if team.rank == 0:
        if len(unread) == len(slides):
            raise InputError(f"predict: none of {len(slides)} slides could be read; is the slide storage mounted?")
        write_predictions(_table(trained, cohort, slides, folder), path)
    return path, sorted(unread)


def read_slide(folder: Path, slide_key: str) -> SlideResult:
    """The result of one slide as `predict` left it.

    Raises:
        InputError: the slide was not predicted.
    """
    path = _slide_path(folder, slide_key)
    if not path.exists():
        raise InputError(f"slide {slide_key}: no prediction in {folder.name}; run `python -m evaluate predict` first")
    table = pq.read_table(path)
    attention = table.column("attention").to_numpy() if "attention" in table.column_names else None
    return SlideResult(slide_key=slide_key, scores=json.loads(table.schema.metadata[b"scores"]),
                       tile_indices=table.column("tile_index").to_numpy().astype(np.int64), attention=attention)  # fmt: skip


def _write_slide(folder: Path, result: SlideResult, trained: Trained) -> None:
    columns: dict[str, Any] = {"tile_index": pa.array(result.tile_indices, pa.int32())}
    if result.attention is not None:
        columns["attention"] = pa.array(result.attention, pa.float32())
    table = pa.table(columns).replace_schema_metadata(
        {"scores": json.dumps(result.scores), "run_digest": trained.digest}
    )
    with atomic_file(_slide_path(folder, result.slide_key)) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _is_done(folder: Path, slide: CohortSlide, trained: Trained) -> bool:
    path = _slide_path(folder, slide.slide_key)
    if not path.exists():
        return False
    file = pq.ParquetFile(path)
    metadata = file.schema_arrow.metadata or {}
    return metadata.get(b"run_digest") == trained.digest.encode() and file.metadata.num_rows == slide.num_tiles


def _table(trained: Trained, cohort: Cohort, slides: Sequence[CohortSlide], folder: Path) -> pd.DataFrame:
    rows = []
    for slide in slides:
        if not _is_done(folder, slide, trained):
            continue
        result = read_slide(folder, slide.slide_key)
        for task, target in zip(cohort.tasks, slide.targets, strict=True):
            rows.append({
                "slide_key": slide.slide_key, "specimen_key": slide.specimen_key, "case_key": slide.case_key,
                "patient_key": slide.patient_key, "task": task, "label": None if math.isnan(target) else target,
                "score": result.scores[task], "split": slide.split, "fold": trained.config.data.fold,
                "num_tiles": slide.num_tiles, "run_digest": trained.digest,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _slide_path(folder: Path, slide_key: str) -> Path:
    return folder / "tiles" / f"{slide_key}.parquet"
