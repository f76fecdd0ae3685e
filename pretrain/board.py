"""TensorBoard as a view of a run: scalars, ROC curve of the tune part, tiles per slide, hyperparameters. Rank 0 only."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from pretrain.validate import Scores

STEP_SCALARS = ("loss", "learning_rate", "num_tiles", "tiles_per_second", "num_cached_tiles", "peak_memory_bytes",
                "encoder_gradient_norm", "aggregator_gradient_norm")  # fmt: skip


class Board:
    """Writes `tensorboard/` of a run folder."""

    def __init__(
        self,
        folder: Path,
        resume_step: int,
        config: BaseModel,
        tasks: Sequence[str],
        tile_counts: Mapping[str, Sequence[int]],
    ) -> None:
        """Args:
        resume_step: later steps that are there already are hidden; 0 for a new run.
        tile_counts: tiles per slide of each part.
        """
        from torch.utils.tensorboard import SummaryWriter  # 2.7 s to import: rank 0 only
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)
        if resume_step:
            return
        metrics = dict.fromkeys(("epoch/loss", "epoch/tune_loss", *(f"epoch/tune_auc_{task}" for task in tasks)), 0.0)
        for summary in hparams(hyperparameters(config), metrics):  # type: ignore[no-untyped-call]
            # `add_hparams` would open a run of its own beside this one.
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for part, counts in tile_counts.items():
            if counts:
                self._writer.add_histogram(f"tiles_per_slide/{part}", np.asarray(counts), 0)

    def step(self, step: int, line: Mapping[str, Any]) -> None:
        for name in STEP_SCALARS:
            self._writer.add_scalar(f"step/{name}", line[name], step)
        for phase, seconds in line["seconds"].items():
            self._writer.add_scalar(f"seconds/{phase}", seconds, step)

    def epoch(self, step: int, line: Mapping[str, Any], scores: Scores) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(f"epoch/{name}", value, step)
        for task, auc in scores.auc.items():
            if auc is not None:
                self._writer.add_scalar(f"epoch/tune_auc_{task}", auc, step)
                self._writer.add_figure(f"roc/{task}", roc_figure(*scores.predictions[task], auc), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def hyperparameters(config: BaseModel) -> dict[str, bool | float | str]:
    """`section.field` -> value, as TensorBoard takes them; places on disk are left out."""
    values: dict[str, bool | float | str] = {}
    for section, fields in config.model_dump().items():
        for name, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
            if not isinstance(value, Path):
                key = f"{section}.{name}".rstrip(".")
                values[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return values


def roc_figure(scores: Sequence[float], targets: Sequence[float], auc: float) -> Any:
    """The ROC curve as a matplotlib figure, over the known targets."""
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    known = [(score, target) for score, target in zip(scores, targets, strict=True) if not math.isnan(target)]
    false_positive, true_positive, _ = roc_curve([target for _, target in known], [score for score, _ in known])
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.step(false_positive, true_positive, where="post")
    axes.set(
        xlabel="1 - specificity",
        ylabel="sensitivity",
        title=f"tune part: AUC {auc:.3f}, {len(known)} slides",
        aspect="equal",
    )
    return figure
