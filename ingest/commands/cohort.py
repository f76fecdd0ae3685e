"""Commands about a finished manifest: show, verify, split, relabel, import, export."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ingest.commands.options import ConfigOption, ManifestArgument, SetOption
from ingest.errors import ConfigError


def show(
    manifest: ManifestArgument,
    card: Annotated[bool, typer.Option("--card", help="Write card.md and its figures anew as well.")] = False,
) -> None:
    """Labels by split and site, tiles per slide, prevalence, what was left out and why.

    \b
    Example: python -m ingest show manifests/breast
    """
    from ingest.card import write_card
    from ingest.show import print_summary, summarise

    print_summary(summarise(manifest))
    if card:
        write_card(manifest)
        print(f"open {manifest / 'card.md'}")


def verify(
    manifest: Annotated[Path, typer.Argument(help="Folder of a manifest, or a split table (CSV) of someone else.")],
    splits: Annotated[Path | None, typer.Option(help="A split table of someone else to check against it.")] = None,
) -> None:
    """Check schema, digests, ledger and leakage; ends with exit code 4 if anything is wrong.

    \b
    Example: python -m ingest verify manifests/breast --splits published_splits.csv
    """
    from ingest.split_table import verify_split_table
    from ingest.verify import require_sound
    from ingest.verify import verify as verify_manifest

    findings = verify_manifest(manifest, splits) if manifest.is_dir() else verify_split_table(manifest)
    for finding in findings:
        print(f"{finding.severity}: {finding.check}: {finding.message}")
    require_sound(findings)
    print(f"{manifest.name}: sound")


def split(
    manifest: ManifestArgument,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Its [ingest.split] and [ingest.balance].")
    ] = None,
    set_: SetOption = None,
    external: Annotated[Path | None, typer.Option(help="A split table (CSV) to take over instead.")] = None,
    val_is: Annotated[str, typer.Option(help="What val means in that table: tune or test.")] = "tune",
    new_places: Annotated[bool, typer.Option("--new-places", help="Forget where patients stood before.")] = False,
) -> None:
    """Split and balance anew; patients that have a place keep it.

    \b
    Example: python -m ingest split manifests/egfr --set split.schemes='["mccv"]' --set split.num_repeats=20
    """
    from ingest.config import load_config
    from ingest.resplit import ResplitConfig, resplit

    resolved = load_config(ResplitConfig, "ingest", config, set_ or [], only_known=config is not None)
    resplit(manifest, resolved.split, resolved.balance, external=external, val_is=_meaning(val_is),
            keep_places=not new_places)  # fmt: skip
    print(f"split anew: read {manifest / 'card.md'}, check with `python -m ingest verify {manifest}`")


def import_(
    table: Annotated[
        Path, typer.Argument(help="CSV of CLAM or TRIDENT (case_id, slide_id, label) or OPAL (slide_data.csv).")
    ],
    manifest: Annotated[Path, typer.Argument(help="Folder to write.")],
    vault: Annotated[Path, typer.Argument(help="Folder for the places of the slides; apart from the manifest.")],
    task: Annotated[str, typer.Option(help="The target becomes y_TASK.")] = "cancer",
    class_: Annotated[list[str] | None, typer.Option("--class", help="WORD=0 or WORD=1; may be repeated.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="The column that names the patient.")] = None,
    val_is: Annotated[str, typer.Option(help="What val means in its split columns: tune or test.")] = "tune",
    tile_data: Annotated[Path | None, typer.Option(help="tile_data.csv of OPAL.")] = None,
    tile_px: Annotated[int, typer.Option(min=16)] = 224,
    mpp: Annotated[float, typer.Option(min=0.01)] = 0.5,
    public_ids: Annotated[
        bool, typer.Option("--public-ids", help="Identifiers name no one: keep them as they are.")
    ] = False,
) -> None:
    """A manifest from a table that the field already has; its splits are kept if they do not leak.

    \b
    Example: python -m ingest import tumor_vs_normal.csv manifests/camelyon vault/camelyon --public-ids
    """
    from ingest.balance import BalanceConfig
    from ingest.deidentify import DeidentifyConfig, open_pseudonymiser, open_vault, read_crosswalk, write_crosswalk
    from ingest.exchange import import_table, public_key
    from ingest.imported import imported_tiles, publish_import
    from ingest.privacy import PrivacyConfig, crosswalk_identifiers, identifier_index
    from ingest.split import SplitConfig

    opened = open_vault(vault, manifest)
    pseudonymiser = open_pseudonymiser(DeidentifyConfig(), Path(), read_crosswalk(opened))
    key_for = public_key if public_ids else pseudonymiser.key
    classes = {word: int(value) for word, _, value in (item.partition("=") for item in class_)} if class_ else None
    imported = import_table(table, key_for, task=task, classes=classes, patient_column=patient_column,
                            val_is=_meaning(val_is))  # fmt: skip
    tiles: dict[str, dict[str, Any]] = {}
    if tile_data is not None:
        tiles, counts = imported_tiles(tile_data, imported, key_for, tile_px, mpp)
        for reason, count in sorted(counts.items()):
            print(f"{reason}: {count:,}")
    identifiers = None
    if not public_ids:
        write_crosswalk(opened, pseudonymiser)
        identifiers = identifier_index(crosswalk_identifiers(pseudonymiser.crosswalk()), PrivacyConfig())
    publish_import(imported, manifest, opened, "public" if public_ids else pseudonymiser.fingerprint, task=task,
                   split=SplitConfig(), balancing=BalanceConfig(target=f"y_{task}"), tiles=tiles,
                   identifiers=identifiers)  # fmt: skip
    print(f"{imported.num_rows:,} rows in, {len(imported.slides):,} slides; read {manifest / 'card.md'}")


def relabel(manifest: ManifestArgument, config: ConfigOption, set_: SetOption = None) -> None:
    """Apply another policy (label -> y) without reading a report again.

    \b
    Example: python -m ingest relabel manifests/breast -c manifests/breast.toml --set labels.policy.in_situ=negative
    """
    from ingest.cohort import CohortConfig
    from ingest.config import load_config
    from ingest.relabel import relabel as relabel_manifest
    from ingest.rulefile import load_rules

    resolved = load_config(CohortConfig, "ingest", config, set_ or [])
    task = load_rules(resolved.labels.rules).task
    changes = relabel_manifest(manifest, task, resolved.labels.policy, resolved.split, resolved.balance)
    print(
        "slides changed: " + (", ".join(f"{change} {count:,}" for change, count in sorted(changes.items())) or "none")
    )


def export(
    manifest: ManifestArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the CSV files.")],
    layout: Annotated[str, typer.Option(help="clam or opal.")] = "clam",
    task: Annotated[str, typer.Option(help="Target: cancer stands for y_cancer.")] = "cancer",
) -> None:
    """The manifest as tables that others' training code reads; pseudonyms only.

    \b
    Example: python -m ingest export manifests/breast exports/clam --layout clam
    """
    from ingest.errors import ConfigError
    from ingest.exchange import export_csv

    if layout not in ("clam", "opal"):
        raise ConfigError(f"--layout {layout}: choose clam or opal")
    for path in export_csv(manifest, folder, layout, task):  # type: ignore[arg-type]
        print(path)


def _meaning(val_is: str) -> Literal["tune", "test"]:
    if val_is not in ("tune", "test"):
        raise ConfigError(f"--val-is {val_is}: choose tune or test")
    return "test" if val_is == "test" else "tune"
