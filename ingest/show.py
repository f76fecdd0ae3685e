"""What is in a manifest, as a person wants to see it: labels, splits, prevalence, tiles per slide, what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.manifest import TARGET_PREFIX, read_dataset_card, read_footer, read_table
from ingest.split import LABELS_WORST_FIRST, PARTS, worst_labels

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

LEVELS = ("patients", "specimens", "slides")
IN_SITU_POLICIES = ("positive", "negative", "excluded")
NUM_BINS = 40
POOLED_SITE = "other sites"
UNPLACED_PART = "none"  # slides whose patient has no place in the default split


@dataclass(frozen=True, slots=True)
class Cell:
    """One site and label in one part of the default split."""

    site: str
    label: str
    split: str
    num_patients: int
    num_slides: int


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Tissue tiles per slide; `max_tiles`, `p99`, `p90` as in Campanella et al. 2024, Figure 1c (50,578 / 27,219 / 18,766).

    Attributes:
        edges, counts: [B + 1] tiles and [B] slides of the histogram.
        p99, p90, median: the smallest count that this share of the slides does not exceed.
        tile_size_px, tile_mpp: what a tile is.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    num_slides: int
    max_tiles: int
    p99: int
    p90: int
    median: int
    tile_size_px: int
    tile_mpp: float


@dataclass(frozen=True, slots=True)
class Prevalence:
    """Share of positives at one level when in-situ disease counts as `in_situ` says; indeterminate ones never count."""

    in_situ: str
    level: str
    num_positive: int
    num: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts only: nothing here names a patient, a case or a slide.

    Attributes:
        totals: patients, cases, specimens, slides.
        labels: label -> level -> count; a patient counts under the worst label.
        targets: y column -> value ("unknown" for empty) -> slides.
        left_out: entity -> stage/reason -> count, most frequent first.
        facts: dataset.json.
    """

    totals: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    cells: tuple[Cell, ...]
    targets: Mapping[str, Mapping[str, int]]
    prevalence: tuple[Prevalence, ...]
    tiles: TileCounts | None
    left_out: Mapping[str, Mapping[str, int]]
    facts: Mapping[str, Any]
    provenance: Mapping[str, str]


def summarise(folder: Path, min_site_patients: int = 1) -> Summary:
    """Read a manifest and count.

    Args:
        min_site_patients: sites with fewer patients are counted together, under POOLED_SITE.
    Raises:
        ManifestError: a table or dataset.json is missing or damaged.
    """
    facts = read_dataset_card(folder)
    slides = _plain(read_table(folder, "slides").to_pandas())
    specimens = _plain(read_table(folder, "specimens", ["label"]).to_pandas())  # the widest table of a large archive
    labels = {
        "patients": worst_labels(slides).value_counts(),
        "specimens": specimens["label"].value_counts(),
        "slides": slides["label"].value_counts(),
    }
    return Summary(
        totals={name: int(slides[f"{name[:-1]}_key"].nunique()) for name in ("patients", "cases")}
        | {"specimens": len(specimens), "slides": len(slides)},
        labels={
            label: {level: int(labels[level].get(label, 0)) for level in LEVELS}
            for label in LABELS_WORST_FIRST
            if any(label in labels[level] for level in LEVELS)
        },
        cells=_cells(slides, min_site_patients),
        targets={name: _values(slides[name]) for name in slides.columns if name.startswith(TARGET_PREFIX)},
        prevalence=tuple(_prevalence(policy, level, labels[level]) for policy in IN_SITU_POLICIES for level in LEVELS),
        tiles=_tile_counts(folder),
        left_out={entity: dict(row["left_out"]) for entity, row in facts.get("ledger", {}).items()},
        facts=facts,
        provenance=read_footer(folder, "slides"),
    )


def print_summary(summary: Summary, console: "Console | None" = None) -> None:
    """The summary as tables on a terminal; plain text when the output is no terminal."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    totals = summary.totals
    console.print(", ".join(f"{number:,} {name}" for name, number in totals.items()), highlight=False)
    parts = cell_parts(summary.cells)
    table = Table(title="Slides (patients) by label, split and site", title_justify="left")
    for column in ("site", "label", *parts):
        table.add_column(column, justify="left" if column in ("site", "label") else "right")
    by_place = {(cell.site, cell.label, cell.split): cell for cell in summary.cells}
    for site, label in dict.fromkeys((cell.site, cell.label) for cell in summary.cells):
        found = [by_place.get((site, label, part)) for part in parts]
        table.add_row(site, label, *(f"{cell.num_slides:,} ({cell.num_patients:,})" if cell else "-" for cell in found))
    console.print(table)

    table = Table(title="Prevalence, if in-situ disease is", title_justify="left")
    for column in ("", *LEVELS):
        table.add_column(column, justify="right")
    for policy in IN_SITU_POLICIES:
        rows = [row for row in summary.prevalence if row.in_situ == policy]
        table.add_row(policy, *(share_text(row.num_positive, row.num) for row in rows))
    console.print(table)

    for target, values in summary.targets.items():
        counts = ", ".join(f"{value}: {number:,}" for value, number in values.items())
        console.print(f"{target}: {counts} slides", highlight=False)
    for part, row in summary.facts.get("cohort", {}).get("balance", {}).get("parts", {}).items():
        if part == "train":
            counts = ", ".join(f"{value}: {number:,}" for value, number in row["drawn_by_class"].items())
            console.print(f"Drawn in training: {counts} of {row['slides']:,} slides", highlight=False)
    if summary.tiles is None:
        console.print("Tiles are not counted yet: run `python -m ingest tiles`", highlight=False)
    else:
        _print_tiles(summary.tiles, console)
    for entity, reasons in summary.left_out.items():
        listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.items()) or "none"
        console.print(f"Left out, {entity}: {listed}", highlight=False)


def share_text(num_positive: int, num: int) -> str:
    """`13.0 % (10,114 of 77,768)`."""
    return f"{100 * num_positive / num:.1f} % ({num_positive:,} of {num:,})" if num else "-"


def _print_tiles(tiles: TileCounts, console: "Console") -> None:
    console.print(
        f"Tiles per slide ({tiles.tile_size_px} px at {tiles.tile_mpp:g} mpp, {tiles.num_slides:,} slides): "
        f"max {tiles.max_tiles:,}, 99 % have at most {tiles.p99:,}, 90 % at most {tiles.p90:,}, median {tiles.median:,}",
        highlight=False,
    )
    groups = np.array_split(np.arange(len(tiles.counts)), min(10, len(tiles.counts)))
    heights = [sum(tiles.counts[position] for position in group) for group in groups]
    for group, height in zip(groups, heights, strict=True):
        bar = "#" * max(int(height > 0), round(50 * height / max(heights)))
        console.print(
            f"{tiles.edges[group[0]]:>8,} - {tiles.edges[group[-1] + 1] - 1:>8,} {height:>8,} {bar}", highlight=False
        )


def _cells(slides: "pd.DataFrame", min_site_patients: int) -> tuple[Cell, ...]:
    named = slides.assign(site=slides["site"].fillna("unknown"), split=slides["split"].fillna(UNPLACED_PART))
    num_patients = named.groupby("site")["patient_key"].nunique()
    named["site"] = named["site"].where(named["site"].map(num_patients) >= min_site_patients, POOLED_SITE)
    groups = named.groupby(["site", "label", "split"], sort=True)
    counts = groups.agg(num_patients=("patient_key", "nunique"), num_slides=("slide_key", "size")).reset_index()
    cells = [
        Cell(row.site, row.label, row.split, row.num_patients, row.num_slides)  # type: ignore[arg-type]
        for row in counts.itertuples(index=False)
    ]
    severity = {label: rank for rank, label in enumerate(LABELS_WORST_FIRST)}
    return tuple(sorted(cells, key=lambda cell: (cell.site, severity.get(cell.label, 99), cell.split)))


def cell_parts(cells: tuple[Cell, ...]) -> list[str]:
    """The parts that occur, in the order of PARTS."""
    found = {cell.split for cell in cells}
    return [part for part in (*PARTS, UNPLACED_PART) if part in found]


def _values(column: "pd.Series[Any]") -> dict[str, int]:
    known = column.dropna()
    if known.nunique() > NUM_BINS:
        counts = {"known": len(known)}
    else:
        counts = {f"{float(value):g}": int(number) for value, number in known.value_counts().sort_index().items()}  # type: ignore[arg-type]
    return counts | ({"unknown": int(column.isna().sum())} if column.isna().any() else {})


def _prevalence(policy: str, level: str, labels: "pd.Series[int]") -> Prevalence:
    cancer, in_situ, benign = (int(labels.get(name, 0)) for name in ("cancer", "in_situ", "benign"))
    positive = cancer + (in_situ if policy == "positive" else 0)
    negative = benign + (in_situ if policy == "negative" else 0)
    return Prevalence(policy, level, positive, positive + negative)


def _tile_counts(folder: Path) -> TileCounts | None:
    if not (folder / "tiles.parquet").exists():
        return None
    tiles = read_table(folder, "tiles", ["num_tiles", "tile_size_px", "tile_mpp"])
    num_tiles = tiles.column("num_tiles").to_numpy()
    if not len(num_tiles):
        return None
    return count_histogram(num_tiles, tiles.column("tile_size_px")[0].as_py(), tiles.column("tile_mpp")[0].as_py())


def count_histogram(num_tiles: "np.ndarray[Any, np.dtype[Any]]", tile_size_px: int, tile_mpp: float) -> TileCounts:
    """[S] tiles of each slide (at least one slide) -> histogram and quantiles."""
    longest = int(num_tiles.max())
    width = max(1, -(-(longest + 1) // NUM_BINS))
    edges = np.arange(0, longest + 1 + width, width)
    counts, _ = np.histogram(num_tiles, bins=edges)
    p99, p90, median = (int(np.quantile(num_tiles, share, method="inverted_cdf")) for share in (0.99, 0.90, 0.50))
    return TileCounts(
        tuple(edges.tolist()), tuple(counts.tolist()), len(num_tiles), longest, p99, p90, median, tile_size_px, tile_mpp
    )


def _plain(table: "pd.DataFrame") -> "pd.DataFrame":
    """Words as objects: grouping by categories would list every combination that does not occur."""
    words = table.select_dtypes("category").columns
    return table.astype(dict.fromkeys(words, "object"))
