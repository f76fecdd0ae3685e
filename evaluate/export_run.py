"""`evaluate export`: from a run folder to an exported encoder with its cards."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from evaluate.dataset_card import write_dataset_card
from evaluate.export import EncoderFacts, Exported, ExportOptions, SlideParts, export_encoder, require_exportable
from evaluate.model_card import UNKNOWN_LICENSE, BaseWeights, model_card, read_metrics_document
from evaluate.parity import parity_tiles
from ingest.card import funnel_steps
from ingest.manifest import read_table
from ingest.show import summarise
from pretrain.config import EncoderConfig
from pretrain.encoder import model_args, preprocessing
from pretrain.forward import plain_view
from pretrain.start import build_models, open_cohort
from pretrain.team import make_team
from pretrain.timm_folder import read_timm_folder
from pretrain.trained import Trained, open_trained, require_same_geometry

MAX_STAINS = 5  # names in the card


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Everything that is known before something is computed or written."""

    trained: Trained
    folder: Path
    license: str
    base: BaseWeights | None
    options: ExportOptions

    def describe(self) -> str:
        """For people: what will be written from what."""
        files = [
            "config.json, model.safetensors (timm)",
            "aggregator/",
            "check/",
            "README.md, dataset/README.md (cards)",
        ]
        files += ["program/encoder.pt2"] * self.options.torch_export + ["program/encoder.onnx"] * self.options.onnx
        base = "random weights" if self.base is None else f"{self.base.name}, licence {self.base.license}"
        return (
            f"export of {self.trained.folder.name}, {self.trained.checkpoint}: {self.trained.config.encoder.name}, tiles of "
            f"{self.trained.tile_size_px} px at {self.trained.tile_mpp:g} mpp; licence {self.license}; training started from "
            f"{base}\ninto {self.folder}: {'; '.join(files)}; SHA256SUMS"
        )


def plan_export(
    run: Path, folder: Path, license: str, checkpoint: str = "best", base_license: str | None = None,
    options: ExportOptions | None = None,
) -> ExportPlan:  # fmt: skip
    """Args:
        base_license: of the weights that training started from, where their own config.json does not say.
    Raises:
        ConfigError: no licence, or a folder that must not be replaced. InputError: no such checkpoint.
    """
    options = options or ExportOptions()
    require_exportable(license, folder, options)
    trained = open_trained(run, checkpoint)
    return ExportPlan(
        trained=trained, folder=folder, license=license.strip(), options=options,
        base=base_weights(trained.config.encoder, base_license),
    )  # fmt: skip


def export_run(plan: ExportPlan) -> Exported:
    """Write the folder of a plan; see `export_encoder`.

    Raises:
        ManifestError: the manifest is not the run's any more, or lacks a table.
    """
    trained = plan.trained
    config, manifest = trained.config, trained.config.data.manifest
    cohort = open_cohort(config)
    require_same_geometry(trained, cohort)
    models = build_models(config, make_team("single", device="cpu"))
    encoder, aggregator, heads = models.encoder, models.aggregator, models.heads
    assert encoder is not None, "a single rank encodes"
    assert aggregator is not None, "a single rank aggregates"
    assert heads is not None, "the aggregator comes with its heads"
    encoder.load_state_dict(trained.parts["encoder"])
    aggregator.load_state_dict(trained.parts["aggregator"]["aggregator"])
    heads.load_state_dict(trained.parts["aggregator"]["heads"])
    mean, std = preprocessing(config.encoder)
    started_from = None if plan.base is None else {"name": plan.base.name, "license": plan.base.license}
    facts = EncoderFacts(
        architecture=config.encoder.name.split(".")[0], model_args=model_args(config.encoder),
        tile_size_px=trained.tile_size_px, tile_mpp=trained.tile_mpp, mean=mean, std=std, stain=_stains(manifest),
        license=plan.license,
        provenance={"checkpoint": trained.checkpoint, "training": trained.digest, "manifest": trained.manifest_digest,
                    "started_from": started_from},
    )  # fmt: skip
    funnel = funnel_steps(summarise(manifest))
    metrics = read_metrics_document(trained.folder / "report" / "metrics.json", trained.digest)

    def write_cards(folder: Path, exported: Exported) -> None:
        card = model_card(trained, cohort, facts, exported, base=plan.base, funnel=funnel, metrics=metrics)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_dataset_card(manifest, cohort, config.data, folder / "dataset")

    return export_encoder(
        encoder, SlideParts(aggregator=aggregator, heads=heads, config=config.aggregator), facts,
        parity_tiles(cohort), plain_view(config), write_cards, plan.folder,
        channels_last=config.step.channels_last, options=plan.options,
    )  # fmt: skip


def checks(plan: ExportPlan, exported: Exported) -> str:
    """What was compared with what outcome, and what the user has to think of."""
    lines = [f"parity: {exported.parity.sentence}", *(f"parity: {program.sentence}" for program in exported.programs)]
    if not exported.parity.num_slides:
        lines.append("warning: no slide of the manifest could be read; mount the slide storage and export again")
    if plan.base is not None and plan.base.license == UNKNOWN_LICENSE:
        lines.append(
            f"warning: training started from {plan.base.name}, whose licence is not known; it goes on to this encoder: find "
            "it out and say it with --base-license"
        )
    return "\n".join(lines)


def base_weights(config: EncoderConfig, license: str | None) -> BaseWeights | None:
    """What training started from; the licence of a folder is what its own config.json says, else `license`."""
    if config.weights is None:
        return None
    stated = read_timm_folder(config.weights).license if config.weights.is_dir() else None
    return BaseWeights(name=config.weights.name, license=stated or (license or "").strip() or UNKNOWN_LICENSE)


def _stains(manifest: Path) -> str | None:
    names = Counter(name for name in read_table(manifest, "slides").column("stain").to_pylist() if name)
    return ", ".join(name for name, _ in names.most_common(MAX_STAINS)) or None
