"""Command line of pretraining. Imports no torch until a command needs it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ingest.command import new_app, run_app

app = new_app("""Train an encoder and an aggregator end to end on every tissue tile of each slide.

\b
One process:        python -m pretrain train --config manifests/breast.toml
12 on one machine:  torchrun --nproc-per-node 12 -m pretrain train --config manifests/breast.toml
Go on after a stop: add --resume
All 20 repeats:     python -m pretrain train --config manifests/egfr.toml --scheme mccv20
Only look:          add --dry-run
Will it fit?        python -m pretrain plan --help
Is it ready?        python -m pretrain doctor
""")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; its tables [pretrain.*] are read.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, over the file; may be repeated.")
]


@app.callback()
def _commands() -> None:
    """Keeps `train` a command of its own."""


@app.command()
def train(
    config: ConfigOption = None,
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of the run folder.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Resolve and check everything, train nothing, write nothing.")] = False,
    scheme: Annotated[
        str, typer.Option(help="Train every fold of this split scheme, each in its own run folder, for example mccv20.")
    ] = "",
    folds: Annotated[str, typer.Option(help="With --scheme: only these folds, for example 0-4,7.")] = "",
) -> None:
    """Train. Start it under torchrun to use several processes; each rank takes its role from its number.

    \b
    Example: torchrun --nproc-per-node 3 -m pretrain train -c manifests/demo.toml
             python -m pretrain train -c manifests/breast.toml --set step.layout=single --resume
             python -m pretrain train -c manifests/egfr.toml --scheme mccv20     # all 20 repeats; again: goes on
    Exit codes: 1 some folds failed, 2 configuration, 3 input, 6 another rank was lost, 75 stopped by a signal after saving.
    """
    from ingest.config import load_config, to_toml
    from ingest.errors import ConfigError
    from pretrain.config import PretrainConfig

    settings = [*(set_ or []), *([f"data.scheme={scheme}"] if scheme else [])]
    resolved = load_config(PretrainConfig, "pretrain", config, settings)
    if folds and not scheme:
        raise ConfigError(f"--folds {folds}: say of which scheme, for example --scheme {resolved.data.scheme}")
    if os.environ.get("RANK", "0") == "0":
        print(to_toml("pretrain", resolved), flush=True)
    if scheme:
        from pretrain.folds import chosen_folds, describe_folds, scheme_folds, train_folds

        chosen = chosen_folds(folds, scheme_folds(resolved.data.manifest, scheme))
        if dry_run:
            print(describe_folds(resolved, scheme, chosen))
            print("dry run: nothing was trained, nothing was written")
            return
        options = [*(["-c", str(config)] if config is not None else []),
                   *(word for setting in set_ or [] for word in ("--set", setting))]  # fmt: skip
        raise typer.Exit(train_folds(resolved, options, scheme, chosen))
    from pretrain.start import describe, open_cohort, open_run

    if dry_run:
        print(describe(resolved, open_cohort(resolved)))
        print("dry run: nothing was trained, nothing was written")
        return
    from pretrain.loop import train as train_run

    with open_run(resolved, resume) as run:
        run.say(describe(resolved, run.cohort))
        train_run(run)
        run.say(f"run folder {resolved.run.folder}: look at it with `tensorboard --logdir {resolved.run.folder}`, "
                f"evaluate it with `python -m evaluate run {resolved.run.folder} --license ...`")  # fmt: skip


@app.command()
def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    tiles: Annotated[
        str, typer.Option(help="Tiles per slide, for example 50578,27219; empty: those of the manifest.")
    ] = "",
    tile_size_px: Annotated[int, typer.Option(min=16)] = 224,
    device_gib: Annotated[float, typer.Option(help="Memory of one device, GiB.")] = 80.0,
    encoders: Annotated[int, typer.Option(min=1, help="Encoder devices.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps of the training.")] = 200_000,
    encode_tiles_per_second: Annotated[
        float, typer.Option(help="Forward, per device; 0: measured on this machine.")
    ] = 0.0,
    decode_tiles_per_second: Annotated[
        float, typer.Option(help="Per encoder device; see `make bench PART=slides`.")
    ] = 2000.0,
    attention: Annotated[
        str, typer.Option(help="ViT only: fused, or plain as in older code and in the paper.")
    ] = "fused",
) -> None:
    """Will it fit? Tiles per device, devices per slide, tiles that run twice, seconds per step, hours, disk. Needs no GPU.

    \b
    The paper's figures: python -m pretrain plan --tiles 50578,27219,18766 --set encoder.name=vit_base_patch16_224 \\
                           --set step.precision=bfloat16 --attention plain
    Your cohort:         python -m pretrain plan -c manifests/breast.toml --device-gib 24 --encoders 4
    """
    from ingest.config import load_config
    from ingest.errors import ConfigError
    from pretrain.config import PretrainConfig

    resolved = load_config(PretrainConfig, "pretrain", config, set_ or [])
    if attention not in ("fused", "plain"):
        raise ConfigError(f"--attention {attention}: choose fused or plain")
    try:
        given = [int(number) for number in tiles.split(",") if number]
    except ValueError:
        raise ConfigError(f"--tiles {tiles}: write numbers with commas between, for example 50578,27219") from None
    from pretrain.plan import describe, manifest_tile_counts, measure_encode_speed, sampled_counts
    from pretrain.plan import plan as make_plan

    speed = encode_tiles_per_second or measure_encode_speed(resolved.encoder, tile_size_px)
    counts = given or sampled_counts(manifest_tile_counts(resolved.data.manifest), resolved.sample)
    made = make_plan(
        resolved.encoder, counts, tile_size_px=tile_size_px,
        precision=resolved.step.precision, device_gib=device_gib, num_encoders=encoders, num_steps=steps,
        encode_tiles_per_second=speed, decode_tiles_per_second=decode_tiles_per_second,
        attention="plain" if attention == "plain" else "fused",
    )  # fmt: skip
    print(describe(made))


@app.command()
def cluster(
    features: Annotated[
        Path, typer.Argument(help="Folder of SLIDE_KEY.h5 files that `python -m evaluate features` wrote.")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    num_clusters: Annotated[int, typer.Option(min=2, max=256, help="Kinds of tissue, common to all slides.")] = 16,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table for sample.clusters.")] = Path("clusters.parquet"),
    dry_run: Annotated[bool, typer.Option(help="Check everything, write nothing.")] = False,
) -> None:
    """Sort tiles into kinds of tissue by their features, for training with sample.mode = cluster.

    \b
    Example: python -m pretrain cluster features/20x_224px_0px_overlap/features_mine -c manifests/breast.toml -o clusters.parquet
             python -m pretrain train -c manifests/breast.toml --set sample.mode=cluster --set sample.num_tiles=512 \\
                 --set sample.clusters=clusters.parquet
    Exit codes: 2 configuration, 3 no features for the training slides.
    """
    from ingest.config import load_config
    from ingest.progress import track
    from pretrain.cohort import load_cohort
    from pretrain.config import PretrainConfig

    resolved = load_config(PretrainConfig, "pretrain", config, set_ or [])
    from pretrain.clusters import cluster_slides, read_features, write_clusters

    data = resolved.data
    cohort = load_cohort(data.manifest, data.vault, [task.name for task in resolved.tasks], data.scheme, data.fold)
    train_slides = cohort.part("train")
    print(f"{len(train_slides)} training slides, {num_clusters} clusters, seed {resolved.run.seed}")
    if dry_run:
        num_found = sum((features / f"{slide.slide_key}.h5").is_file() for slide in train_slides)
        print(f"{num_found} of {len(train_slides)} have a feature file; dry run: nothing was written")
        return
    made = cluster_slides(
        train_slides, lambda slide: read_features(features / f"{slide.slide_key}.h5", slide), num_clusters,
        resolved.run.seed, lambda slides, title: track(slides, len(slides), title),
    )  # fmt: skip
    facts = {
        "num_clusters": str(num_clusters),
        "seed": str(resolved.run.seed),
        "manifest_digest": cohort.manifest_digest,
    }
    write_clusters(out, made.clusters, facts)
    for slide_key, reason in sorted(made.left_out.items()):
        print(f"left out: slide {slide_key}: {reason}")
    print(f"{len(made.clusters)} slides clustered, {len(made.left_out)} left out, {len(train_slides)} in all; "
          f"train with --set sample.mode=cluster --set sample.clusters={out} --set sample.num_tiles=...")  # fmt: skip


@app.command()
def doctor(
    slides: Annotated[list[Path] | None, typer.Argument(help="Slides to open and read.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of slides: measure how fast it is read.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
    min_shm_gib: Annotated[float, typer.Option(help="/dev/shm; NCCL needs it between GPUs of one node.")] = 1.0,
    min_ram_gib: Annotated[float, typer.Option(help="Free memory.")] = 8.0,
    min_open_files: Annotated[int, typer.Option(help="Limit of open files.")] = 4096,
    min_mb_per_second: Annotated[float, typer.Option(help="Reading of --folder in one thread.")] = 100.0,
) -> None:
    """Look at this machine: packages, devices, NCCL and gloo, slide readers, disk, memory, limits; and what to fix.

    \b
    Example: python -m pretrain doctor
             python -m pretrain doctor slides/a.svs --folder slides --json
    Exit codes: 0 no problem (warnings may be), 1 at least one problem.
    """
    import json
    from contextlib import nullcontext

    from ingest.errors import InputError
    from pretrain.doctor.examine import examine, stdout_to_stderr
    from pretrain.doctor.finding import Wanted, describe, document

    for path in [*(slides or []), *([folder] if folder is not None else [])]:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give one that exists")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--folder {folder}: is a file; name the folder it lies in")
    wanted = Wanted(slides=slides or [], folder=folder, min_shm_gib=min_shm_gib, min_ram_gib=min_ram_gib,
                    min_open_files=min_open_files, min_mb_per_second=min_mb_per_second)  # fmt: skip
    findings = []
    with stdout_to_stderr() if as_json else nullcontext():
        for finding in examine(wanted):
            findings.append(finding)
            if not as_json:
                print(describe(finding), flush=True)
    summary = document(findings)
    print(json.dumps(summary, indent=2) if as_json else
          f"{summary['ok']} ok, {summary['warning']} warnings, {summary['problem']} problems")  # fmt: skip
    raise typer.Exit(1 if summary["problem"] else 0)


@app.command()
def equivalence(
    network: Annotated[str, typer.Option(help="toy (the paper's), resnet18 or resnet50.")] = "toy",
    tiles: Annotated[int, typer.Option(help="Rows of the toy, tiles of a ResNet; 0: 800 and 12.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("build/equivalence"),
) -> None:
    """The paper's Fig. 3: plain torch in one process against N ranks over 5 steps, in float64, on this machine.

    \b
    Example: python -m pretrain equivalence --network resnet18
    """
    from ingest.errors import ConfigError

    if network not in ("toy", "resnet18", "resnet50"):
        raise ConfigError(f"--network {network}: choose toy, resnet18 or resnet50")
    from pretrain.equivalence import Experiment, default_spreads, measure, write_equivalence

    num_tiles = tiles or (800 if network == "toy" else 12)
    experiment = Experiment(network=network, num_tiles=num_tiles)  # type: ignore[arg-type]
    differences = measure(experiment, default_spreads(num_tiles))
    for quantity in ("parameter", "gradient", "loss"):
        largest = max(item.distance for item in differences if item.quantity == quantity)
        print(f"largest normalised L1 distance, {quantity}: {largest:.1e}")
    out.mkdir(parents=True, exist_ok=True)
    for path in write_equivalence(out, experiment, differences):
        print(f"open {path}")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].startswith("-") and sys.argv[1] not in ("-h", "--help"):
        sys.argv.insert(
            1, "train"
        )  # `python -m pretrain --scheme mccv20`: training is what one means without a command
    run_app(app)


if __name__ == "__main__":
    main()
