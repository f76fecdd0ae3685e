"""The model card of an exported encoder: what it is, what it was made from, how good it is, what it is not for."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from evaluate.export import EncoderFacts, Exported
from pretrain.cohort import Cohort
from pretrain.trained import Trained

PARTS = ("train", "tune", "test")
UNKNOWN_LICENSE = "not known"

LOAD = """## Load
With timm 1.0.26 or newer; mean, deviation, size and crop come with the weights, so take the transform from them too:
```python
import timm, torch
encoder = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder), is_training=False)
with torch.inference_mode():
    features = encoder(transform(tile_as_pil_image)[None])  # [1, {num_features}]
```
An older timm has no `local-dir:`; this works from 0.9.12 on:
```python
import json
config = json.load(open("PATH_OF_THIS_FOLDER/config.json"))
settings = dict(config["pretrained_cfg"], file="PATH_OF_THIS_FOLDER/model.safetensors")
encoder = timm.create_model(config["architecture"], pretrained=True, pretrained_cfg=settings, num_classes=0,
                            **config.get("model_args", {{}})).eval()
```
transformers reads it with `AutoModel.from_pretrained(PATH)`, LazySlide with `TimmModel("local-dir:PATH")`.
The scores of a slide, from the features [tiles, {num_features}] of all its tissue tiles, with fullslide installed:
```python
from pathlib import Path
from evaluate.export_aggregator import load_slide_model
scores = load_slide_model(Path("PATH_OF_THIS_FOLDER/aggregator")).scores(features)
```
"""

USE = """## Intended use
Features of tiles for research: retrieval, clustering, and classifiers of slides that are trained and tested on data of their own.
Read tiles at the resolution above. **Not a medical device; not for diagnosis, and not for decisions about a patient.**

## Limits
Labels come from reports by rules, not from re-reading slides, and a specimen's label is not every slide's. One cohort, its
scanners and its stains; other sites, scanners, organs and tasks are untested unless a table above says so. Scores of the
aggregator follow the share of positives in training; calibrate them before reading them as probabilities. The features may
carry what identifies the site or the scanner.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWeights:
    """What training started from, when not from random weights.

    Attributes:
        name: of the file or folder, without its path.
        license: as its config.json or the user says; UNKNOWN_LICENSE otherwise.
    """

    name: str
    license: str


def model_card(
    trained: Trained, cohort: Cohort, facts: EncoderFacts, exported: Exported, *, base: BaseWeights | None,
    funnel: Sequence[tuple[str, int]], metrics: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """Markdown with the header that model hubs read.

    Args:
        funnel: steps of the cohort with what was left after each.
        metrics: the document of `metrics.json` of these weights, or None when they were not evaluated.
    """
    architecture = facts.architecture
    license_fields: dict[str, Any] = _license_fields(facts.license)
    header = ModelCardData(
        **license_fields, library_name="timm", pipeline_tag="image-feature-extraction",
        tags=["pathology", "whole-slide", "end-to-end", "timm"], **_eval_fields(architecture, metrics),
    )  # fmt: skip
    programs = "".join(f"- {program.sentence}\n" for program in exported.programs)
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {architecture} tile encoder, trained end to end on whole slides",
        f"Features [{exported.num_features}] of tiles of **{facts.tile_size_px} px at {facts.tile_mpp:g} micrometres per "
        f"pixel**{f', stain {facts.stain}' if facts.stain else ''}. Other resolutions or another normalisation give other "
        "features.",
        LOAD.format(num_features=exported.num_features).rstrip(),
        _programs_section(exported),
        _training_section(trained, cohort, base),
        "### From the laboratory's records to what was trained on\n"
        + _funnel_table(funnel)
        + "\n\n`dataset/README.md` has the labels, the split, and what was left out and why.",
        _metrics_section(metrics),
        USE.rstrip(),
        _license_section(facts.license, base),
        f"## Checked when it was written\n- {exported.parity.sentence}\n{programs}"
        "- the aggregator and heads, read back, give the same outputs bit for bit\n"
        "- `check/golden.safetensors` holds tiles of noise (uint8; no patient's pixels are in this folder) and their features: "
        "what you load must reproduce them (images in plain memory order: contiguous)\n"
        "- `SHA256SUMS` names every file: `sha256sum -c SHA256SUMS`",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def read_metrics_document(path: Path, digest: str) -> dict[str, Any] | None:
    """`metrics.json` of a report folder; None if there is none, or if it is of other weights than `digest`."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document if document.get("run_digest") == digest else None


def _license_fields(license: str) -> dict[str, str]:
    """Hubs know identifiers; any other wording goes into a field of its own."""
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        return {"license": license}
    return {"license": "other", "license_name": license}


def _license_section(license: str, base: BaseWeights | None) -> str:
    text = f"## Licence\nThese weights: {license}."
    if base is None:
        return f"{text} Training started from random weights."
    if base.license == UNKNOWN_LICENSE:
        return (
            f"{text} **Training started from `{base.name}`, whose licence is not stated here: find out whether it lets you "
            "share what was made from it before you do.**"
        )
    return (
        f"{text} Training started from `{base.name}`, licence {base.license}: its terms go on to these weights; where the two "
        "differ the narrower one holds."
    )


def _training_section(trained: Trained, cohort: Cohort, base: BaseWeights | None) -> str:
    config = trained.config
    sizes = ", ".join(
        f"{name} {len(cohort.part(name)):,} slides of {len({slide.patient_key for slide in cohort.part(name)}):,} patients"
        for name in PARTS
    )
    sample = (
        "every tissue tile"
        if config.sample.mode == "all"
        else f"{config.sample.num_tiles} tiles ({config.sample.mode})"
    )
    selected = (
        "the last one, nothing selected"
        if config.run.select_by == "last"
        else f"the best {config.run.select_by} of {trained.num_epochs} epochs"
    )
    start = "random weights" if base is None else f"`{base.name}`"
    frozen = " The encoder was frozen: its weights are those of the start." if config.encoder.frozen else ""
    return (
        f"## Training\n{config.encoder.name} and a {config.aggregator.name} aggregator together, {sample} of a slide in one step: "
        f"the loss of a slide flows back to them (Campanella et al. 2024). Start: {start}.{frozen} Targets: "
        f"{', '.join(cohort.tasks)}, from reports by rules, at specimen level. Parts: {sizes}; split by patient "
        f"({config.data.scheme}, fold {config.data.fold}). Checkpoint {trained.checkpoint}, {selected}; the test part "
        f"was not looked at for that.\n\n- checkpoint digest: `{trained.digest}`\n- manifest digest: `{trained.manifest_digest}`"
    )


def _programs_section(exported: Exported) -> str:
    if not exported.programs:
        return ""
    names = " and ".join(f"`program/{program.file}`" for program in exported.programs)
    return (
        f"## Without timm\n{names}: input `tiles`, uint8 RGB 0..255 [batch, 3, height, width], any batch; **normalised "
        "inside**; output `features`. Load .onnx with `onnxruntime.InferenceSession(path)`, .pt2 with "
        "`torch.export.load(path).module()`; a .pt2 of a stranger is code."
    )


def _funnel_table(funnel: Sequence[tuple[str, int]]) -> str:
    rows = [f"| {name} | {number:,} |" for name, number in funnel]
    return "\n".join(["| step | left |", "|---|---|", *rows])


def _metrics_section(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Measured\nNot evaluated: no report of these weights was there when they were exported."
    selection = metrics["selection"]
    lines = [
        f"## Measured on the {metrics['scored_on']} part",
        f"Task {metrics['task']}; checkpoint selected on: {selection['selected_on']}. Intervals are "
        f"{metrics['config']['confidence']:.0%} and clustered by patient.\n",
        "| level | metric | value | interval | units (positive) | patients |",
        "|---|---|---|---|---|---|",
    ]
    for name, level in metrics["levels"].items():
        for metric in ("auroc", "average_precision"):
            estimate = level["metrics"][metric]
            value = f"not defined: {estimate['reason']}" if estimate["value"] is None else f"{estimate['value']:.3f}"
            span = "" if estimate.get("low") is None else f"{estimate['low']:.3f} to {estimate['high']:.3f}"
            lines.append(f"| {name} | {metric} | {value} | {span} | {level['num_units']:,} ({level['num_positive']:,}) | "
                         f"{level['num_patients']:,} |")  # fmt: skip
    return "\n".join([*lines, *(f"\n{warning}" for warning in metrics["warnings"])])


def _eval_fields(architecture: str, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Results for the header of the card; none at all when nothing was measured."""
    if metrics is None:
        return {}
    known = {name: level["metrics"]["auroc"] for name, level in metrics["levels"].items()}
    results = [
        EvalResult(
            task_type="image-classification", dataset_type="private", dataset_name=f"the cohort's {metrics['scored_on']} part",
            metric_type="roc_auc", metric_name=f"AUROC per {name}, {metrics['task']}", metric_value=round(auroc["value"], 4),
            metric_args={key: round(auroc[key], 4) for key in ("low", "high") if auroc.get(key) is not None},
        )
        for name, auroc in known.items() if auroc["value"] is not None
    ]  # fmt: skip
    return {"model_name": f"{architecture}-fullslide", "eval_results": results} if results else {}
