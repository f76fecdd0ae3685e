"""Command line of evaluation. Imports no torch until a command needs it."""

from pathlib import Path
from typing import Annotated

import typer

from ingest.command import new_app, run_app

app = new_app("""From a run folder and its manifest to predictions, an honest report, heat maps and an encoder.

\b
All at once:     python -m evaluate run runs/breast --license cc-by-nc-4.0
Step by step:    python -m evaluate predict runs/breast
                 python -m evaluate report runs/breast
                 python -m evaluate export runs/breast exports/breast --license cc-by-nc-4.0
""")

RunArgument = Annotated[Path, typer.Argument(help="Run folder of pretrain.")]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="best or last.")]
LicenseOption = Annotated[
    str, typer.Option("--license", help="Licence of the weights, for example cc-by-nc-4.0. Required.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value of [evaluate.*]; may be repeated.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; its tables [evaluate.*] are read.")
]


@app.command()
def predict(
    run_folder: RunArgument, checkpoint: CheckpointOption = "best", config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Score every slide with all its tiles: predictions.parquet, and the attention of every tile.

    \b
    Example: python -m evaluate predict runs/breast --set splits='["test"]'
    """
    from evaluate.whole import EvaluateConfig, predict_run
    from ingest.config import load_config

    resolved = load_config(EvaluateConfig, "evaluate", config, set_ or [])
    path = predict_run(run_folder, checkpoint, resolved)
    print(f"predictions: {path}")


@app.command()
def report(
    run_folder: RunArgument, checkpoint: CheckpointOption = "best", config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Metrics with intervals, figures and one HTML page, from the predictions of a run.

    \b
    Example: python -m evaluate report runs/breast --set metrics.num_resamples=5000
    """
    from evaluate.whole import EvaluateConfig, report_run
    from ingest.config import load_config

    print(report_run(run_folder, checkpoint, load_config(EvaluateConfig, "evaluate", config, set_ or [])).headline)


@app.command()
def export(
    run_folder: RunArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the encoder.")],
    license_: LicenseOption,
    checkpoint: CheckpointOption = "best",
    base_license: Annotated[
        str | None, typer.Option(help="Licence of the weights that training started from, if they do not say it.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also an ONNX program of the encoder; needs the extra export.")
    ] = False,
    torch_export: Annotated[bool, typer.Option("--torch-export", help="Also a torch.export program (.pt2).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; touch nothing.")] = False,
) -> None:
    """The trained encoder as a folder that plain timm loads, checked on real tiles; aggregator and cards beside it.

    \b
    Example: python -m evaluate export runs/breast exports/breast --license cc-by-nc-4.0 --onnx
    """
    from evaluate.export import ExportOptions
    from evaluate.export_run import checks, export_run, plan_export

    options = ExportOptions(onnx=onnx, torch_export=torch_export)
    plan = plan_export(run_folder, folder, license_, checkpoint, base_license, options)
    print(plan.describe())
    if not dry_run:
        exported = export_run(plan)
        print(checks(plan, exported))
        print(f"open {exported.folder / 'README.md'}")


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders or prediction tables; all are compared with the first.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("comparison"),
    split: Annotated[str, typer.Option(help="Part to compare on.")] = "test",
    level: Annotated[str, typer.Option(help="slide, specimen or patient.")] = "slide",
) -> None:
    """Paired differences of runs on the same slides, with patient-clustered intervals and p-values after Holm.

    \b
    Example: python -m evaluate compare runs/end_to_end runs/frozen
    """
    from evaluate.compare import compare_runs, comparison_text, read_runs, write_comparison
    from ingest.errors import ConfigError

    if level not in ("slide", "specimen", "patient"):
        raise ConfigError(f"--level {level}: choose slide, specimen or patient")
    comparisons = compare_runs(read_runs(runs), level=level, split=split)  # type: ignore[arg-type]
    print(comparison_text(comparisons))
    write_comparison(comparisons, out)
    print(f"open {out}")


@app.command()
def mccv(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Run folders of `pretrain train --scheme`, or one TOML with [[evaluate.runs]]."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: mccv in the (only) run folder.")] = None,
    checkpoint: CheckpointOption = "best",
    set_: SetOption = None,
) -> None:
    """The paper's Table 1: mean (standard deviation) over Monte Carlo splits, and the curve of AUC against tiles.

    Of run folders the test part of every finished fold counts; predictions that are missing are made.

    \b
    Example: python -m evaluate mccv runs/egfr/K700
             python -m evaluate mccv runs/egfr/K50 runs/egfr/K700 runs/egfr/K4900 --out tables/egfr
             python -m evaluate mccv egfr_table.toml        # tables of any origin: algorithm, predictions, tiles, num_tiles ...
    """
    from evaluate.mccv import MccvConfig, mccv_rows, table_text, write_mccv
    from ingest.config import load_config
    from ingest.errors import ConfigError

    folders = [source for source in sources if source.is_dir()]
    if (folders and len(folders) < len(sources)) or (not folders and len(sources) > 1):
        raise ConfigError(
            f"{len(sources)} sources, {len(folders)} of them folders: give run folders only, or one TOML file"
        )
    notes: list[str] = []
    if folders:
        from evaluate.folds import collect_folds, distinct_names
        from evaluate.whole import EvaluateConfig

        resolved = load_config(EvaluateConfig, "evaluate", None, set_ or [])
        collected = [(folder.name, collect_folds(folder, checkpoint, resolved)) for folder in folders]
        notes = [f"{name}: {note}" for name, found in collected for note in found.notes]
        rows = mccv_rows(MccvConfig(runs=distinct_names(collected)), Path())
    else:
        rows = mccv_rows(load_config(MccvConfig, "evaluate", sources[0], set_ or []), sources[0].parent)
    target = out or (folders[0] / "mccv" if len(folders) == 1 else Path("mccv"))
    print(table_text(rows))
    for note in notes:
        print(note)
    write_mccv(rows, target)
    print(f"open {target}")


@app.command()
def features(
    source: Annotated[str, typer.Argument(help="Run folder, encoder folder (timm), MODEL:random or MODEL:FILE.")],
    out: Annotated[Path, typer.Argument(help="Where to write the features.")],
    manifest: Annotated[Path | None, typer.Option(help="Slides to encode; of a run: its own.")] = None,
    vault: Annotated[Path | None, typer.Option(help="Holds their places on disk; of a run: its own.")] = None,
    checkpoint: CheckpointOption = "best",
    config: ConfigOption = None,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")] = False,
) -> None:
    """Features of every slide for other tools: TRIDENT's h5, on wish bags of torch tensors and STAMP's files. Resumable.

    \b
    Examples: python -m evaluate features runs/breast features --set features.also='["bags","stamp"]'
              python -m evaluate features exports/breast features --manifest manifests/lung --vault vault/lung
              torchrun --nproc-per-node 4 -m evaluate features runs/breast features
    """
    from evaluate.features import features_run
    from evaluate.whole import EvaluateConfig
    from ingest.config import load_config, to_toml

    resolved = load_config(EvaluateConfig, "evaluate", config, set_ or []).features
    print(to_toml("features", resolved), end="")
    features_run(source, checkpoint, manifest, vault, out, resolved, dry_run)


@app.command()
def probe(
    encoders: Annotated[
        list[str], typer.Argument(help="NAME=SOURCE or SOURCE: run folder, timm folder, MODEL:random or MODEL:FILE.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("probe"),
    tiles: Annotated[
        Path | None, typer.Option(help="Labelled tiles: patient_id, label, png; or slide_key, x, y, label.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Slides to probe on; of a run: its own.")] = None,
    vault: Annotated[Path | None, typer.Option(help="Holds their places on disk; of a run: its own.")] = None,
    checkpoint: CheckpointOption = "best",
    config: ConfigOption = None,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")] = False,
) -> None:
    """How good encoders are: linear probe and nearest neighbours on tiles, frozen against end to end on slides.

    \b
    Examples: python -m evaluate probe ours=runs/breast imagenet=weights/resnet18 --out probes/breast
              python -m evaluate probe ours=exports/breast --tiles patches.parquet
    """
    from evaluate.probe import probe_run
    from evaluate.whole import EvaluateConfig
    from ingest.config import load_config, to_toml

    resolved = load_config(EvaluateConfig, "evaluate", config, set_ or [])
    print(to_toml("probe", resolved.probe), end="")
    probe_run(encoders, tiles, manifest, vault, out, checkpoint, resolved.probe, resolved.features, dry_run)


@app.command()
def attention(
    run_folder: RunArgument,
    slides: Annotated[list[str], typer.Argument(help="slide_key of predictions.parquet.")],
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("attention"),
    checkpoint: CheckpointOption = "best",
    viewer_mpp: Annotated[float | None, typer.Option(help="Sharpness of the viewer, micrometres per pixel.")] = None,
) -> None:
    """Heat map, most and least attended tiles, QuPath GeoJSON and a viewer page for some slides.

    \b
    Example: python -m evaluate attention runs/breast 4jz2k... --out pictures --viewer-mpp 2
    """
    from evaluate.whole import attention_run

    attention_run(run_folder, slides, out, checkpoint, viewer_mpp)
    for slide in slides:
        print(f"open {out / slide / 'heatmap.png'} and {out / slide / 'viewer' / 'index.html'}")


@app.command()
def run(
    run_folder: RunArgument,
    license_: LicenseOption,
    checkpoint: CheckpointOption = "best",
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Predict, report and export in one go; the last lines say what came out and what to open.

    \b
    Example: python -m evaluate run runs/breast --license cc-by-nc-4.0
    """
    from evaluate.whole import EvaluateConfig, run_all
    from ingest.config import load_config

    run_all(run_folder, checkpoint, load_config(EvaluateConfig, "evaluate", config, set_ or []), license_)


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()
