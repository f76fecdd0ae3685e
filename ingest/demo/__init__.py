"""A hospital that never was: an LIS database and slides with planted truth, made from a seed."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """What was written; `num_slide_files` counts files, `num_scans` the rows that name them (one file is missing)."""

    num_patients: int
    num_cases: int
    num_parts: int
    num_scans: int
    num_slide_files: int
    num_usable_slides: int
    num_usable_cancer_slides: int

    def __str__(self) -> str:
        return (
            f"{self.num_patients} patients, {self.num_cases} cases, {self.num_parts} parts, {self.num_scans} scans "
            f"({self.num_slide_files} files); "
            f"{self.num_usable_slides} usable slides, {self.num_usable_cancer_slides} of them with cancer"
        )


def write_demo(folder: Path, seed: int, num_patients: int = 40, num_workers: int = 2) -> DemoSummary:
    """Write `lis.sqlite`, `slides/*.svs`, `truth.json` and `pseudonym.key` into `folder`.

    Same seed, same bytes of every slide and same rows of the database, whatever `num_workers`. `truth.json` is for
    tests: "specimens" maps "accession/part" to its label, "slides" maps file names to their specimen, label and use
    ("usable", or why it must not be used). The key is a function of the seed, so that the demo gives the same
    pseudonyms and splits each time; a real one comes from `python -m ingest key`.

    Raises:
        ConfigError: `num_patients` is outside 20..900.
    """
    from ingest.demo.hospital import plan_hospital
    from ingest.demo.lis import write_lis
    from ingest.demo.slides import write_slides
    from ingest.demo.truth import planted_truth

    hospital = plan_hospital(seed, num_patients)
    folder.mkdir(parents=True, exist_ok=True)
    write_lis(hospital, folder / "lis.sqlite")
    num_files = write_slides(hospital, folder / "slides", num_workers)
    truth = planted_truth(hospital)
    key = folder / "pseudonym.key"
    key.write_text(hashlib.sha256(f"demo hospital {seed}".encode()).hexdigest() + "\n", encoding="ascii")
    key.chmod(0o600)
    (folder / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="ascii")
    usable = [slide for slide in truth["slides"].values() if slide["use"] == "usable"]
    return DemoSummary(
        num_patients=num_patients,
        num_cases=len(hospital.cases),
        num_parts=sum(len(case.parts) for case in hospital.cases),
        num_scans=len(truth["slides"]),
        num_slide_files=num_files,
        num_usable_slides=len(usable),
        num_usable_cancer_slides=sum(slide["label"] in ("cancer", "in_situ") for slide in usable),
    )
