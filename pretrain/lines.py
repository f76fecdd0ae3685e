"""What a step, an epoch and a finished run say: the lines of `metrics.jsonl`, the sentence on the screen, `result.json`."""

import math
from collections.abc import Sequence
from typing import Any

from pretrain.checkpoint import find_checkpoint, load_checkpoint, weights_digest
from pretrain.config import PretrainConfig
from pretrain.loader import SlideTiles
from pretrain.reading import Reading, reading_sentence
from pretrain.record import peak_memory_bytes
from pretrain.state import Run
from pretrain.step import StepResult
from pretrain.team import sum_over_ranks
from pretrain.update import Update
from pretrain.validate import Scores

SELECTION_RULES = {
    "tune_auc": "the epoch with the highest mean AUROC over the tasks on all tiles of the tune part; of equals the first; the "
                "test part takes no part in it",
    "last": "the last epoch; nothing was selected",
}  # fmt: skip


def step_line(
    run: Run, update: Update, results: Sequence[StepResult], read: Sequence[SlideTiles], seconds: dict[str, float]
) -> tuple[dict[str, Any], bool]:
    """The line of `metrics.jsonl`, and whether any rank must stop.

    Seconds are means over the ranks that do the work; `decode` is the reader's, `cache` the part of it that came from the
    cache; memory is that of the rank that needs most.
    """
    team, unread = run.team, sorted(share.plan.slide.slide_key for share in read if share.problem)
    cached = [share for share in read if share.from_cache]
    own = {
        **seconds,
        **{name: math.fsum(result.seconds[name] for result in results)
           for name in ("encode", "exchange", "aggregate", "backward")},
        "wait": math.fsum(share.wait_seconds for share in read),
        "decode": math.fsum(share.decode_seconds for share in read),
        "cache": math.fsum(share.decode_seconds for share in cached),
    }  # fmt: skip
    by_encoders = ("wait", "decode", "cache", "encode", "exchange", "backward")
    by_aggregators = ("aggregate", "optimiser", "step")
    peaks = [0.0] * team.world_size
    peaks[team.rank] = float(peak_memory_bytes(team.device))
    values = [own[name] if team.is_encoder else 0.0 for name in by_encoders]
    values += [own[name] if team.is_aggregator else 0.0 for name in by_aggregators]
    values += [float(sum(len(share.plan.tile_indices) for share in cached))]
    values += [
        float(count) if team.is_aggregator else 0.0 for count in (sum(r.num_tiles for r in results), len(unread))
    ]
    sums = sum_over_ranks([*values, float(run.stop.requested), *peaks], team, f"logging step {run.at.step}")
    shares = [team.num_encoders * team.num_teams] * len(by_encoders) + [team.num_teams] * len(by_aggregators)
    mean_seconds = {
        name: total / share for name, total, share in zip(by_encoders + by_aggregators, sums, shares, strict=False)
    }
    num_cached_tiles, num_tiles, num_unread, num_stops, *peaks = sums[len(shares) :]
    first = next(run.optimisers.all(), None)
    line = {
        "epoch": run.at.epoch, "loss": update.loss, "num_slides": update.num_slides, "num_tiles": int(num_tiles),
        "num_cached_tiles": int(num_cached_tiles), "num_unread_slides": int(num_unread), "unread_slides": unread,
        "tiles_per_second": num_tiles / max(mean_seconds["step"], 1e-9),
        "learning_rate": first.param_groups[0]["lr"] if first is not None else 0.0,
        "encoder_gradient_norm": update.encoder_norm, "aggregator_gradient_norm": update.aggregator_norm,
        "loss_scale": run.scale.value, "peak_memory_bytes": int(max(peaks)),
        "seconds": {name: round(value, 6) for name, value in mean_seconds.items()},
    }  # fmt: skip
    return line, num_stops > 0


def epoch_line(run: Run, scores: Scores, is_best: bool, reading: Reading, seconds: float) -> dict[str, Any]:
    at = run.at
    return {"epoch": at.epoch, "loss": at.loss_sum / at.num_slides, "tune_loss": scores.loss, "tune_auc": scores.auc,
            "num_tune_slides": scores.num_slides, "num_unread_tune_slides": scores.num_unread, "is_best": is_best,
            "selected_by": run.config.run.select_by, "seconds": seconds, "wait_share": reading.wait_share,
            "cached_share": reading.cached_share}  # fmt: skip


def epoch_sentence(line: dict[str, Any], reading: Reading, config: PretrainConfig) -> str:
    aucs = ", ".join(
        f"{task} {'not defined' if auc is None else format(auc, '.3f')}" for task, auc in line["tune_auc"].items()
    )
    best = " (best so far)" if line["is_best"] and line["selected_by"] == "tune_auc" else ""
    tiles = reading_sentence(reading, reader_threads=config.data.reader_threads, slides_ahead=config.data.slides_ahead,
                             has_cache=config.data.cache is not None)  # fmt: skip
    return (
        f"epoch {line['epoch'] + 1}: loss {line['loss']:.3f}, tune AUC {aucs}{best}, {line['seconds']:.0f} s, {tiles}"
    )


def result_facts(run: Run) -> dict[str, Any]:
    """What `result.json` says, for the person who finds the run a week later."""
    config, at = run.config, run.at
    newest = find_checkpoint(config.run.folder, "last")
    assert newest is not None, "saved at the end of every epoch"
    ended = (f"after {at.epoch} epochs: the last {config.run.stop_after_epochs} brought no better tune AUC"
             if at.epoch < config.run.num_epochs else f"after all {at.epoch} epochs")  # fmt: skip
    return {
        "ended": ended, "num_epochs": at.epoch, "num_steps": at.step, "selection_rule": SELECTION_RULES[config.run.select_by],
        "num_candidates": at.epoch if config.run.select_by == "tune_auc" else 1, "best_epoch": at.best_epoch + 1,
        "best_tune_auc": at.best_auc if math.isfinite(at.best_auc) else None,
        "judged_weights": "trained" if config.optim.ema_decay is None else f"moving average, decay {config.optim.ema_decay:g}",
        "last_weights_sha256": weights_digest(load_checkpoint(newest, only=("encoder", "aggregator"))),
    }  # fmt: skip
