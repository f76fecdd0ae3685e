"""The data set behind an export as counts: the manifest's own card, and the split that this run was trained by.

Nothing here names a patient, a case or a slide, and cells of few patients are not shown.
"""

from pathlib import Path

from ingest.card import MIN_CELL_PATIENTS, write_card
from ingest.manifest import read_footer
from pretrain.cohort import Cohort, CohortSlide
from pretrain.config import DataConfig

PARTS = ("train", "tune", "test")
HIDDEN = "not shown"


def write_dataset_card(manifest: Path, cohort: Cohort, data: DataConfig, folder: Path) -> None:
    """`folder/README.md` with its two figures.

    Raises:
        ManifestError: a table of the manifest or its dataset.json is missing or damaged.
    """
    write_card(manifest, folder)
    written = folder / "card.md"
    footer = read_footer(manifest, "slides")
    text = (
        "# What the encoder was trained on\n\n"
        "The data are not part of this folder, and cannot be rebuilt from it.\n\n"
        f"Label rules `{_short(footer['rules_digest'])}`, label policy `{_short(footer['policy_digest'])}`, made by fullslide "
        f"{footer['code_version']} from records of {footer['snapshot_at'] or 'a date that is not stated'}; whole digests at the "
        f"end.\n\n## The split of this run\n\n{split_table(cohort)}\n\nScheme {data.scheme}, fold {data.fold}; slides with "
        f"tissue tiles and a known target only. A patient is on one side. Classes of fewer than {MIN_CELL_PATIENTS} patients "
        f"are not shown.\n\n"
    )
    text += written.read_text(encoding="utf-8").replace("# Data card", "## The manifest", 1)
    (folder / "README.md").write_text(text, encoding="utf-8")
    written.unlink()


def split_table(cohort: Cohort) -> str:
    """Markdown: slides, specimens and patients per part, and slides (patients) per class of each task."""
    lines = ["| part | patients | specimens | slides | tiles | classes |", "|---|---|---|---|---|---|"]
    for part in PARTS:
        slides = cohort.part(part)
        patients, specimens = ({getattr(slide, key) for slide in slides} for key in ("patient_key", "specimen_key"))
        classes = "; ".join(f"{task}: {_classes(slides, position)}" for position, task in enumerate(cohort.tasks))
        num_tiles = sum(slide.num_tiles for slide in slides)
        lines.append(
            f"| {part} | {len(patients):,} | {len(specimens):,} | {len(slides):,} | {num_tiles:,} | {classes} |"
        )
    return "\n".join(lines)


def _classes(slides: tuple[CohortSlide, ...], task: int) -> str:
    """`0 in 120 slides (40 patients), ...`; all hidden if one has too few patients, which the totals would give away."""
    patients: dict[str, set[str]] = {}
    num_slides: dict[str, int] = {}
    for slide in slides:
        target = slide.targets[task]
        name = "unknown" if target != target else f"{target:g}"
        patients.setdefault(name, set()).add(slide.patient_key)
        num_slides[name] = num_slides.get(name, 0) + 1
    if not patients:
        return "none"
    if min(len(found) for found in patients.values()) < MIN_CELL_PATIENTS:
        return HIDDEN
    if len(patients) > 10:
        return "a number"
    return ", ".join(
        f"{name} in {num_slides[name]:,} slides ({len(patients[name]):,} patients)" for name in sorted(patients)
    )


def _short(digest: str) -> str:
    return digest[:12] or "none"
