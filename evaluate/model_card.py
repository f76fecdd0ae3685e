"""The model card of an exported encoder: what it is, what it was made from, how good it is, what it is not for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.cohort import Cohort
from pretrain.trained import Trained

HEADER = """---
license: {license}
library_name: timm
pipeline_tag: image-feature-extraction
tags: [pathology, whole-slide, end-to-end]
---
# {architecture} tile encoder, trained end to end on whole slides

Research use only; not a medical device. Features of H&E tiles of **{tile_size_px} px at {tile_mpp:g} micrometres per pixel**. Other
resolutions or another normalisation give other features.

## Load
```python
import timm, torch
encoder = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(encoder)
transform = timm.data.create_transform(**settings, is_training=False)
with torch.inference_mode():
    features = encoder(transform(tile_as_pil_image)[None])  # [1, {num_features}]
```
`check/golden.safetensors` holds tiles of noise (uint8) and their features: what you load must reproduce them.
`SHA256SUMS` names every file.
"""


def model_card(
    trained: Trained, cohort: Cohort, num_features: int, license: str, metrics: Mapping[str, Any] | None
) -> str:
    """Markdown. `metrics` is the document of `metrics.json`, or None when the run was not evaluated."""
    config = trained.config
    text = HEADER.format(license=license, architecture=config.encoder.name, tile_size_px=trained.tile_size_px,
                         tile_mpp=trained.tile_mpp, num_features=num_features)  # fmt: skip
    sizes = ", ".join(f"{name} {len(cohort.part(name))} slides of {len({s.patient_key for s in cohort.part(name)})} patients"
                      for name in ("train", "tune", "test"))  # fmt: skip
    start = f"`{config.encoder.weights.name}`" if config.encoder.weights is not None else "random weights"
    text += (
        f"\n## Training\n"
        f"{config.encoder.name} and a {config.aggregator.name} aggregator, jointly and end to end: the loss of a slide flows "
        f"back to every tile of it (Campanella et al. 2024). Start: {start}. Targets: {', '.join(cohort.tasks)}, from reports "
        f"by rules, at specimen level. Parts: {sizes}; split by patient. Checkpoint {trained.checkpoint}, selected by "
        f"{config.run.select_by} among {trained.num_epochs} epochs.\n"
        f"\n- weights: `{trained.digest}`\n- manifest: `{trained.manifest_digest}`\n"
    )
    return text + _metrics_section(metrics) + (
        "\n## Limits\n"
        "Labels come from reports, not from re-reading slides, and a specimen's label is not every slide's. One cohort, its "
        "scanners and its stains. Not tested on other tasks unless stated above. If it started from others' weights, their "
        "licence goes on to this one.\n"
    )  # fmt: skip


def read_metrics_document(path: Path) -> dict[str, Any] | None:
    """`metrics.json` of a report folder, or None."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _metrics_section(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "\n## Measured\nNot evaluated yet.\n"
    lines = [
        f"\n## Measured on the {metrics['scored_on']} part\n",
        "| level | AUROC | 95 % interval | patients |",
        "|---|---|---|---|",
    ]
    for name, level in metrics["levels"].items():
        auroc = level["metrics"]["auroc"]
        value = "not defined" if auroc["value"] is None else f"{auroc['value']:.3f}"
        span = "" if auroc.get("low") is None else f"{auroc['low']:.3f} to {auroc['high']:.3f}"
        lines.append(f"| {name} | {value} | {span} | {level['num_patients']} |")
    return "\n".join(lines) + "\n"
