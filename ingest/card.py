"""The data card: card.md with funnel.svg and tile_counts.svg, made from the manifest and nothing else.

It can travel with the manifest or a paper: it holds counts only. Sites with fewer patients than MIN_CELL_PATIENTS are
pooled, and smaller cells are not shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.atomic import atomic_file
from ingest.figures import funnel_svg, histogram_svg
from ingest.show import IN_SITU_POLICIES, LEVELS, UNPLACED_PART, Cell, Summary, cell_parts, share_text, summarise
from ingest.split import PARTS

__all__ = ["funnel_steps", "funnel_svg", "write_card"]

MIN_CELL_PATIENTS = 11  # the smallest cell that US public-use health tables show (CMS cell size policy)
STAGES = ("source", "identity", "report", "label", "join", "tiles", "policy")  # the order in which rows are left out


def write_card(manifest: Path, folder: Path | None = None) -> None:
    """Write card.md, funnel.svg and, when tiles are counted, tile_counts.svg.

    Args:
        folder: where to; None is the manifest's own folder.
    Raises:
        ManifestError: as `summarise`.
    """
    folder = folder or manifest
    summary = summarise(manifest, min_site_patients=MIN_CELL_PATIENTS)
    _write(folder / "funnel.svg", funnel_svg(funnel_steps(summary)))
    if summary.tiles is not None:
        tiles = summary.tiles
        marks = [("max", tiles.max_tiles), ("99 %", tiles.p99), ("90 %", tiles.p90)]
        x_label = f"tissue tiles per slide ({tiles.tile_size_px} px at {tiles.tile_mpp:g} mpp)"
        _write(folder / "tile_counts.svg", histogram_svg(tiles.edges, tiles.counts, marks, x_label, "slides"))
    _write(folder / "card.md", card_text(summary))


def funnel_steps(summary: Summary) -> list[tuple[str, int]]:
    """From what came in to what training draws: "funnel" of dataset.json if it is there, else from the ledger."""
    facts = summary.facts
    if facts.get("funnel"):
        steps = [(str(name), int(count)) for name, count in facts["funnel"]]
    else:
        steps = []
        for entity, row in facts.get("ledger", {}).items():
            steps.append((f"{entity}s that came in", remaining := int(row["in"])))
            by_stage: dict[str, int] = {}
            for reason, count in row["left_out"].items():
                stage = reason.split("/")[0]
                by_stage[stage] = by_stage.get(stage, 0) + int(count)
            for stage in sorted(by_stage, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES)):
                remaining -= by_stage[stage]
                steps.append((f"{entity}s after {stage}", remaining))
    parts = facts.get("cohort", {}).get("balance", {}).get("parts", {})
    return steps + [
        ("drawn in training", _known(row["drawn_by_class"])) for part, row in parts.items() if part == "train"
    ]


def card_text(summary: Summary) -> str:
    """card.md as text."""
    sections = [
        "# Data card",
        ", ".join(f"{number:,} {name}" for name, number in summary.totals.items()) + ".",
        "A label is what the pathologist signed out for a specimen (part). Where `label_scope` is `part`, a slide "
        "of a positive specimen may itself show no tumour.",
        "![funnel](funnel.svg)",
        _section("Labels", _labels(summary), "A patient counts under the worst label of its slides."),
        _section(
            "Prevalence",
            _prevalence(summary),
            "By what in-situ disease counts as. Indeterminate and not assessable specimens never count.",
        ),
        _section("Targets", _targets(summary), "Unknown is masked in the loss, never negative."),
        _section(
            "Sites and splits",
            _sites(summary),
            f"Slides (patients) of the default split. Sites with fewer than "
            f"{MIN_CELL_PATIENTS} patients are pooled; cells with fewer are not shown.",
        ),
        _section(
            "Split and balance",
            _balance(summary.facts.get("cohort", {})),
            "`train` is learned from, `tune` "
            "selects checkpoints, `test` is reported. The same patient is never in two of them.",
        ),
        _section("Tiles", _tiles(summary), ""),
        _section("Left out", _left_out(summary), "Excluded by a rule, or failed; `quarantine.parquet` has every row."),
        _section("Gates", _gates(summary.facts.get("gates", {})), ""),
        _section("Made by", _provenance(summary), "Manifests with different key fingerprints must not be joined."),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, body: str, note: str) -> str:
    return "\n\n".join(part for part in (f"## {title}", note, body) if part) if body else ""


def _labels(summary: Summary) -> str:
    return _table(
        ["label", *LEVELS],
        [[label, *(f"{counts[level]:,}" for level in LEVELS)] for label, counts in summary.labels.items()],
    )


def _prevalence(summary: Summary) -> str:
    return _table(
        ["in situ is", *LEVELS],
        [
            [policy, *(share_text(row.num_positive, row.num) for row in summary.prevalence if row.in_situ == policy)]
            for policy in IN_SITU_POLICIES
        ],
    )


def _targets(summary: Summary) -> str:
    return "\n".join(
        f"- `{name}`: " + ", ".join(f"{value} in {number:,}" for value, number in values.items()) + " slides"
        for name, values in summary.targets.items()
    )


def _sites(summary: Summary) -> str:
    parts = cell_parts(summary.cells)
    hidden = hidden_cells(summary.cells)
    by_place = {(cell.site, cell.label, cell.split): cell for cell in summary.cells}
    rows = [
        [site, label, *(_cell_text(by_place.get((site, label, part)), hidden) for part in parts)]
        for site, label in dict.fromkeys((cell.site, cell.label) for cell in summary.cells)
    ]
    return _table(["site", "label", *parts], rows)


def hidden_cells(cells: Sequence[Cell]) -> set[Cell]:
    """Cells of fewer than MIN_CELL_PATIENTS patients; where a label has only one such cell, which its total would give
    away, also the next smallest of that label."""
    hidden = {cell for cell in cells if cell.num_patients < MIN_CELL_PATIENTS}
    for label in {cell.label for cell in hidden}:
        mine = sorted((cell for cell in cells if cell.label == label), key=lambda cell: cell.num_patients)
        hidden |= set(mine[: 2 if len(hidden & set(mine)) == 1 else 0])
    return hidden


def _cell_text(cell: Cell | None, hidden: set[Cell]) -> str:
    if cell is None:
        return "0"
    return "not shown" if cell in hidden else f"{cell.num_slides:,} ({cell.num_patients:,})"


def _balance(cohort: Mapping[str, Any]) -> str:
    if not cohort:
        return ""
    split, balance = cohort["split"], cohort["balance"]
    lines = [f"- {name}: {num} fold{'s' if num != 1 else ''}" for name, num in split["num_folds"].items()]
    lines.append(f"- digest of the split: `{split['digest']}`")
    classes = balance["slides_by_class"]
    total = _known(classes)
    lines.append(
        f"- balance `{balance['mode']}` on `{balance['target']}`: {total:,} slides = "
        + " + ".join(f"{number:,} with {name}" for name, number in classes.items() if name != "unknown")
    )
    drawn, left_out = balance["drawn_by_class"], balance["left_out_by_class"]
    if balance["mode"] == "paper":
        lines.append(
            f"- balanced before the split, as in Campanella et al. 2024: {_known(drawn):,} slides = "
            + " + ".join(f"{drawn.get(name, 0):,} with {name}" for name in classes if name != "unknown")
            + f"; {left_out.get('1', 0):,} positive slides are left out"
        )
        lines.append(
            "- the paper reports the best epoch on the part that chose it, here `tune`: such a figure is optimistic"
        )
    else:
        lines.append(f"- never drawn: {_known(left_out):,} slides of the parts that are balanced")
    rows = [
        [
            part,
            f"{row['patients']:,}",
            f"{row['slides']:,}",
            f"{_known(row['drawn_by_class']):,}",
            *(f"{row['drawn_by_class'].get(name, 0):,}" for name in classes if name != "unknown"),
        ]
        for part in (*PARTS, UNPLACED_PART)  # dataset.json sorts by name
        if (row := balance["parts"].get(part)) is not None
    ]
    header = ["part", "patients", "slides", "drawn", *(f"drawn, {name}" for name in classes if name != "unknown")]
    return "\n".join(lines) + "\n\n" + _table(header, rows)


def _tiles(summary: Summary) -> str:
    tiles = summary.tiles
    if tiles is None:
        return "Tiles are not counted yet."
    return (
        f"![tiles per slide](tile_counts.svg)\n\nOf {tiles.num_slides:,} slides the largest has {tiles.max_tiles:,} "
        f"tiles of {tiles.tile_size_px} px at {tiles.tile_mpp:g} mpp, 99 % have at most {tiles.p99:,}, 90 % at most "
        f"{tiles.p90:,}, half at most {tiles.median:,}."
    )


def _left_out(summary: Summary) -> str:
    return _table(
        ["of", "stage/reason", "rows"],
        [
            [entity, reason, f"{number:,}"]
            for entity, reasons in summary.left_out.items()
            for reason, number in reasons.items()
        ],
    )


def _gates(gates: Mapping[str, Any]) -> str:
    lines = []
    for name, gate in gates.items():
        if isinstance(gate, Mapping):
            state = "held" if gate.get("passed", True) else "**did not hold**"
            shown = ", ".join(f"{key} {_number(gate[key])}" for key in ("value", "low", "high") if key in gate)
            lines.append(f"- {name}: {state}" + (f" ({shown})" if shown else ""))
        else:
            lines.append(f"- {name}: {_number(gate)}")
    return "\n".join(lines)


def _provenance(summary: Summary) -> str:
    keys = (
        "schema_version",
        "code_version",
        "snapshot_at",
        "config_digest",
        "rules_digest",
        "policy_digest",
        "key_fingerprint",
        "content_digest",
    )
    return "\n".join(
        f"- {key.replace('_', ' ')}: `{summary.provenance[key]}`" for key in keys if key in summary.provenance
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _known(by_class: Mapping[str, int]) -> int:
    return sum(number for name, number in by_class.items() if name != "unknown")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
