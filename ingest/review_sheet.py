"""`review export` and `review import`: the sheet that a pathologist fills in, and what comes of it.

The sheet is blind: it holds the report text and an empty column, never the label that the rules gave. Report text is
kept nowhere between runs; the sheet reads it from the source again, is written to the vault (0600), and stays there.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from ingest.atomic import atomic_file
from ingest.deidentify import read_vault_table, split_composite, write_vault_table
from ingest.errors import InputError
from ingest.manifest import read_table
from ingest.report.normalise import UnreadableReport, normalise
from ingest.review import LABELS, ReviewConfig, ReviewResult, assess, draw_sample
from ingest.source.canonical import CaseRecord, CaseReport
from ingest.source.config import SourceConfig
from ingest.source.read import read_source

SHEET_COLUMNS = ("review_id", "specimen_key", "part", "text", "gold_label", "comment")
SAMPLE_NAME, SHEET_NAME, RESULT_NAME = "review_sample", "review.csv", "review.json"


def export_review(source: SourceConfig, source_folder: Path, manifest: Path, vault: Path, config: ReviewConfig) -> Path:
    """Draw the sample of a manifest and write its sheet to the vault.

    Raises:
        ManifestError: no manifest; InputError: the vault is not the manifest's, or the source has changed.
    """
    specimens = read_table(manifest, "specimens")
    crosswalk = read_vault_table(vault, "crosswalk")
    if crosswalk is None:
        raise InputError(f"vault {vault.name}: no crosswalk; give the vault that the manifest was built with")
    sample = draw_sample(specimens, config.num_specimens, config.stratify, config.seed)
    wanted = set(sample["specimen_key"].to_pylist())
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)  # accession -> (part, specimen_key)
    for row in crosswalk.to_pylist():
        if row["domain"] == "specimen" and row["key"] in wanted:
            accession, part = split_composite(row["identifier"])
            places[accession].append((part, row["key"]))
    with read_source(source, source_folder, vault) as opened:
        texts = collect_texts(opened.case_records(), places)
    path = write_sheet(vault, sample, texts)
    write_vault_table(vault, SAMPLE_NAME, sample)
    return path


def import_review(sheet: Path, vault: Path, config: ReviewConfig) -> ReviewResult:
    """Read the filled-in sheet back; the figures, which hold no patient data, are also written to the vault.

    Raises:
        InputError: no sample was drawn, or the file is no review sheet.
    """
    sample = read_vault_table(vault, SAMPLE_NAME)
    if sample is None:
        raise InputError(f"vault {vault.name}: no sample was drawn; run review export first")
    gold, rejected = read_sheet(sheet, sample)
    result = assess(sample, gold, rejected, config.seed)
    with atomic_file(vault / RESULT_NAME) as temporary:
        temporary.write_text(result.to_json() + "\n", encoding="utf-8")
    return result


def collect_texts(
    records: Iterable[CaseRecord], places: Mapping[str, list[tuple[str, str]]]
) -> dict[str, tuple[str, str]]:
    """specimen_key -> (part, text of its whole case): the pathologist has to see what the rules saw."""
    texts: dict[str, tuple[str, str]] = {}
    for record in records:
        if record.accession in places:
            text = case_text(record.reports)
            for part, key in places[record.accession]:
                texts[key] = (part, text)
    return texts


def case_text(reports: Iterable[CaseReport]) -> str:
    """Every text of a case in order of version, each under a line that says what it is."""
    pieces = []
    for report in sorted(reports, key=lambda report: (report.version or "", report.section or "", report.part or "")):
        names = [report.version_kind or "version unknown", report.section or "report"]
        if report.part is not None:
            names.append(f"part {report.part}")
        try:
            text = normalise(report.text, report.format).text  # type: ignore[arg-type]
        except UnreadableReport as error:
            text = f"(unreadable: {error.reason})"
        pieces.append(f"=== {', '.join(names)} ===\n{text.strip()}")
    return "\n\n".join(pieces)


def write_sheet(vault: Path, sample: pa.Table, texts: Mapping[str, tuple[str, str]]) -> Path:
    """review.csv in the vault, mode 0600: one row per specimen, gold_label empty, without the label of the rules.

    Args:
        texts: specimen_key -> (part as printed, text that the pathologist reads).
    Raises:
        InputError: a sampled specimen has no text.
    """
    missing = sum(key not in texts for key in sample["specimen_key"].to_pylist())
    if missing:
        raise InputError(
            f"review: {missing} of {sample.num_rows} sampled specimens have no text in the vault; rebuild it"
        )
    path = vault / SHEET_NAME
    with atomic_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8-sig", newline="") as file:  # Excel needs the mark to see UTF-8
            writer = csv.writer(file)
            writer.writerow(SHEET_COLUMNS)
            for number, key in enumerate(sample["specimen_key"].to_pylist(), start=1):
                part, text = texts[key]
                writer.writerow([number, key, part, _no_formula(text), "", ""])
    return path


def read_sheet(path: Path, sample: pa.Table) -> tuple[dict[str, str], Counter[str]]:
    """specimen_key -> gold label, and how many rows were refused for which reason.

    Raises:
        InputError: no such file, or no column specimen_key or gold_label.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"review sheet {path.name}: no such file; give the sheet that review export wrote") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"review sheet {path.name}: no UTF-8 CSV; save it as CSV UTF-8") from None
    if not rows or not {"specimen_key", "gold_label"} <= rows[0].keys():
        raise InputError(
            f"review sheet {path.name}: needs the columns specimen_key and gold_label and at least one row"
        )
    sampled = set(sample["specimen_key"].to_pylist())
    labels: dict[str, str] = {}
    rejected: Counter[str] = Counter()
    read_twice: set[str] = set()
    for row in rows:
        key = (row["specimen_key"] or "").strip()
        label = (row["gold_label"] or "").strip().lower().replace(" ", "_").replace("-", "_")
        if key not in sampled:
            rejected["not_in_sample"] += 1
        elif not label:
            rejected["not_read"] += 1
        elif label not in LABELS:
            rejected["unknown_label"] += 1
        elif key in labels and labels[key] != label:
            rejected["read_twice_differently"] += 1
            read_twice.add(key)
        elif key in labels:
            rejected["read_twice"] += 1
        else:
            labels[key] = label
    for key in read_twice:
        rejected["read_twice_differently"] += 1
        del labels[key]
    return labels, rejected


def _no_formula(text: str) -> str:
    """A spreadsheet runs a cell that starts like a formula; a space in front keeps it text."""
    return f" {text}" if text[:1] in ("=", "+", "-", "@") else text
