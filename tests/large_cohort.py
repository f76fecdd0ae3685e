"""An invented LIS as CSV exports of any size, written in constant memory: what a run over a whole archive reads.

Patients have several numbers, some of them merged; some rows are damaged, repeated, or name nobody. One case in
`CASES_PER_SLIDE` has a scan; the files are not there, but their tile counts are, as after `python -m ingest tiles`.
"""

import base64
import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ingest.cohort import CohortConfig
from ingest.config import config_digest
from ingest.deidentify import Pseudonymiser
from ingest.geometry import pack_mask

SECRET = b"0123456789abcdefghijklmnopqrstuv"
CASES_PER_SLIDE = 13  # 77,000 scans of a million cases: the paper's breast cohort has 77,768
PATIENTS_PER_CASE = 0.55
COLUMNS = {
    "patients": ("patient_id", "mrn", "issuer", "merged_into"),
    "cases": ("accession", "mrn", "issuer", "case_class", "accessioned_at", "signed_at", "client"),
    "parts": ("accession", "part", "description", "part_type"),
    "blocks": ("accession", "part", "block"),
    "reports": ("accession", "text"),
    "slides": ("slide_id", "accession", "part", "block", "stain", "barcode", "path", "scanner", "objective"),
}
SIDES = ("LEFT", "RIGHT")


def write_large_cohort(folder: Path, num_cases: int, report_text: Callable[[int, int], str]) -> CohortConfig:
    """Write the exports and the tile counts; returns the configuration of the run.

    Args:
        report_text: (case, number of parts) -> text of its report.
    """
    exports = folder / "exports"
    exports.mkdir(parents=True)
    num_patients = max(1, int(num_cases * PATIENTS_PER_CASE))
    rows: dict[str, Iterator[Sequence[str]]] = {
        "patients": _patients(num_patients),
        "cases": _cases(num_cases, num_patients),
        "parts": _parts(num_cases),
        "blocks": _blocks(num_cases),
        "reports": ((_accession(case), report_text(case, _num_parts(case))) for case in range(num_cases)),
        "slides": _slides(num_cases),
    }
    for name, columns in COLUMNS.items():
        with (exports / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for number, row in enumerate(rows[name]):
                writer.writerow(row)
                if number % 997 == 5:
                    writer.writerow([*row, "a column too many"])
                if number % 499 == 7:
                    writer.writerow(row)
    key_file = folder / "pseudonym.key"
    key_file.write_bytes(SECRET)
    key_file.chmod(0o600)
    config = large_cohort_config(folder)
    _write_tile_counts(folder / "vault", num_cases, config)
    return config


def large_cohort_config(folder: Path) -> CohortConfig:
    return CohortConfig.model_validate({
        "source": {"tables": {name: {"file": f"exports/{name}.csv"} for name in COLUMNS}},
        "source_folder": folder, "slide_folder": folder / "slides",
        "deidentify": {"mode": "hmac", "key_file": str(folder / "pseudonym.key")},
        "output": {"manifest": folder / "manifest", "vault": folder / "vault"},
    })  # fmt: skip


def _write_tile_counts(vault: Path, num_cases: int, config: CohortConfig) -> None:
    """The journal that `python -m ingest tiles` leaves; of a file that is not there the mark is "missing"."""
    vault.mkdir(mode=0o700)
    digest = config_digest(config.tiles)
    pseudonymiser = Pseudonymiser(SECRET, record=False)
    mask = np.zeros((12, 10), dtype=np.bool_)
    mask[2:9, 3:8] = True
    size_px = config.tiles.size_px
    counted = {"width_px": 10 * size_px, "height_px": 12 * size_px, "slide_mpp": config.tiles.mpp, "tile_size_px": size_px,
               "tile_mpp": config.tiles.mpp, "num_columns": 10, "num_rows": 12, "num_tiles": int(mask.sum()),
               "mask": base64.b64encode(pack_mask(mask)).decode(), "tissue_mm2": 0.4, "reader": "tiff",
               "status": "counted", "reason": "", "scanner": "", "message": ""}  # fmt: skip
    with (vault / "tile_counts.jsonl").open("w", encoding="utf-8") as file:
        for slide_id, *_ in _slides(num_cases):
            row = {"slide_key": pseudonymiser.key("slide", slide_id), "content_hash": f"hash of {slide_id}", **counted}
            file.write("\n" + json.dumps({"config": digest, "mark": "missing", "row": row}))


def _patients(num_patients: int) -> Iterator[Sequence[str]]:
    for patient in range(num_patients):
        yield f"P{patient}", _mrn(patient), "NORTH", f"P{patient + 1}" if patient % 211 == 3 else ""
        if patient % 5 == 1:  # the same person in the other house, without padding zeros
            yield f"P{patient}", str(50_000_000 + patient), "SOUTH", ""


def _cases(num_cases: int, num_patients: int) -> Iterator[Sequence[str]]:
    for case in range(num_cases):
        patient = random.Random(case).randrange(num_patients)
        mrn, issuer = _mrn(patient), "NORTH"
        if patient % 5 == 1 and case % 2:
            mrn, issuer = f"0{50_000_000 + patient}", "SOUTH"
        if case % 101 == 50:
            mrn = "UNKNOWN"
        year = 2005 + case % 19
        dates = f"{year}-03-{1 + case % 28:02}", f"{year}-04-{1 + case % 28:02} 10:00:00"
        yield _accession(case), mrn, issuer, "S", *dates, ("North", "South", "East")[case % 3]
        if case % 1009 == 500:
            yield _accession(case), _mrn(patient + 1), "NORTH", "S", *dates, "North"  # two patients for one accession


def _parts(num_cases: int) -> Iterator[Sequence[str]]:
    for case in range(num_cases):
        for part in range(_num_parts(case)):
            yield _accession(case), chr(65 + part), f"BREAST, {SIDES[part % 2]}", "BREAST; CORE"


def _blocks(num_cases: int) -> Iterator[Sequence[str]]:
    for case in range(num_cases):
        for part in range(_num_parts(case)):
            yield _accession(case), chr(65 + part), f"{chr(65 + part)}1"


def _slides(num_cases: int) -> Iterator[Sequence[str]]:
    for number, case in enumerate(range(0, num_cases, CASES_PER_SLIDE)):
        stain = ("H&E", "H&E", "H&E", "H&E", "HER2 IHC", "H&E FROZEN")[number % 6 if number % 4 else 0]
        name = f"img{number:07}"
        yield name, _accession(case), "A", "A1", stain, f"{_accession(case)};A1;{number}", f"{name}.svs", "GT450", "40x"


def _num_parts(case: int) -> int:
    return 1 + (case % 4 == 0)


def _mrn(patient: int) -> str:
    return f"{10_000_000 + patient * 7:09}"


def _accession(case: int) -> str:
    return f"S{case % 90 + 10}-{case:07}"
