"""Commands that make a manifest: demo, init, key, run, tiles, preview."""

from pathlib import Path
from typing import Annotated

import typer

from ingest.commands.options import ConfigOption, SetOption


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write the demo hospital.")],
    seed: Annotated[int, typer.Option(help="Same seed, same hospital.")] = 7,
    num_patients: Annotated[int, typer.Option(min=20, max=900)] = 40,
) -> None:
    """Write an invented hospital: an SQLite LIS with reports, and slides with H&E-like tissue.

    \b
    Example: python -m ingest demo build/demo/hospital --seed 7
    """
    from ingest.demo import write_demo

    print(write_demo(folder, seed, num_patients))
    print(f"next: python -m ingest run --config manifests/demo.toml --set source_folder={folder} "
          f"--set slide_folder={folder / 'slides'}")  # fmt: skip


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write cohort.toml.")],
    preset: Annotated[str, typer.Option(help="copath, powerpath, beaker, hl7 or csv.")],
) -> None:
    """Write a commented cohort definition with the SQL of your kind of LIS, to be edited.

    \b
    Example: python -m ingest init --preset copath cohorts/breast
    """
    from ingest.init import init_cohort

    path = init_cohort(preset, folder)
    print(f"{path}: edit the queries and paths, then: python -m ingest run -c {path} --dry-run")


def key(path: Annotated[Path, typer.Argument(help="A new file; never replaced.")]) -> None:
    """Make a secret for pseudonyms in mode hmac. Keep it as you keep the patients' names.

    \b
    Example: python -m ingest key ~/keys/breast.key
    """
    from ingest.deidentify import write_new_secret

    write_new_secret(path)
    print(f"{path.name}: written, mode 0600; set deidentify.mode = hmac and FULLSLIDE_KEY_FILE to its path")


def run(
    config: ConfigOption,
    set_: SetOption = None,
    acknowledge_merges: Annotated[
        bool, typer.Option("--acknowledge-merges", help="Patients of different splits became one; I have read which.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the configuration; read nothing.")
    ] = False,
) -> None:
    """Build and publish the manifest of a cohort.

    \b
    Example: python -m ingest run --config manifests/breast.toml --set tiles.mpp=0.5
    Exit codes: 2 configuration or rules, 3 input, 4 a gate or a merge, 5 an identifier in an output.
    """
    from ingest.cohort import CohortConfig
    from ingest.config import load_config, to_toml

    resolved = load_config(CohortConfig, "ingest", config, set_ or [])
    print(to_toml("ingest", resolved))
    if dry_run:
        print("dry run: nothing was read, nothing was written")
        return
    from ingest.run import run as run_cohort

    summary = run_cohort(resolved, acknowledge_merges)
    for tally in summary.tallies:
        lost = ", ".join(f"{reason} {count}" for reason, count in tally.left_out.items())
        print(f"{tally.entity}s: {tally.num_in:,} in, {tally.num_used:,} used; left out: {lost or 'none'}")
    for split, labels in summary.counts.items():
        print(f"{split}: " + ", ".join(f"{count} {label}" for label, count in labels.items()))
    print(f"manifest: {summary.manifest}; read {summary.manifest / 'card.md'}, "
          f"or run `python -m ingest show {summary.manifest}`")  # fmt: skip


def tiles(
    config: ConfigOption,
    set_: SetOption = None,
    executor: Annotated[str, typer.Option(help="tcp://host:8786 of a Dask scheduler; empty: processes here.")] = "",
) -> None:
    """Count the tissue tiles of a whole cohort ahead of `run`, which takes the counts over. Can be stopped and repeated.

    \b
    Example: python -m ingest tiles --config manifests/breast.toml --executor tcp://scheduler:8786
    """
    from ingest.cohort import CohortConfig
    from ingest.config import load_config
    from ingest.run import count_only
    from ingest.tiles import summarise

    rows = count_only(load_config(CohortConfig, "ingest", config, set_ or []), executor)
    for status, reason, num in summarise(rows):
        print(f"{status} {reason}: {num:,} slides".replace(" :", ":"))
    for row in rows:
        if row.status == "failed":
            print(f"slide {row.slide_key}: {row.message}")
    print(f"{sum(row.num_tiles or 0 for row in rows):,} tiles; next: python -m ingest run -c {config}")


def preview(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("preview.png"),
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the scan, if the file does not say.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of [ingest.tiles], for example size_px=256.")
    ] = None,
) -> None:
    """A picture of what would be read: thumbnail, tissue outline, tiles, counts.

    \b
    Example: python -m ingest preview slide.svs --out preview.png --set size_px=224 --set mpp=0.5
    """
    from ingest.config import load_config
    from ingest.preview import write_preview
    from ingest.tiles import TilesConfig

    found = write_preview(slide, out, load_config(TilesConfig, "ingest", None, set_ or []), mpp)
    print(found.description)
    print(f"{found.num_tiles:,} of {found.num_cells:,} tiles hold tissue, {found.tissue_mm2:.1f} mm2")
    print(f"open {found.path}")
