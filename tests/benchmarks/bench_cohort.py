"""Cohorts at the size of a large hospital: 370,000 patients split 20 times, and a manifest of 1 M slides.

python -m tests.benchmarks.bench_cohort      writes build/bench/cohort.json
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from ingest.ledger import Ledger, Loss, facts
from ingest.manifest import Provenance, write_dataset_card, write_table
from ingest.split import SplitConfig, default_split, patient_table, split_patients
from ingest.verify import verify

NUM_PATIENTS = 370_000  # MSK: 369,000 patients with surgical accessions
LIMITS = {"split_370k_patients_20_times_seconds": 30, "manifest_1m_slides_write_seconds": 5, "manifest_1m_slides_mb": 100,
          "manifest_1m_slides_verify_seconds": 10}  # fmt: skip
PROVENANCE = Provenance(config_digest="c" * 64, rules_digest="r" * 64, policy_digest="p" * 64, key_fingerprint="f" * 16,
                        snapshot_at="2020-01-01T00:00:00")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-slides", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("build/bench/cohort.json"))
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}  # of all threads: tells a slow program from a busy machine
    patients = invented_patients(NUM_PATIENTS)
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    splits = split_patients(patients, SplitConfig(schemes=("mccv",), num_repeats=20))
    results["split_370k_patients_20_times_seconds"] = time.perf_counter() - started_at
    cpu_seconds["split_370k_patients_20_times_seconds"] = time.process_time() - cpu_started_at
    assert len(splits) == 20 * NUM_PATIENTS

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables, slides = manifest_tables(arguments.num_slides)
        losses = [Loss("slide", key(f"lost{number}"), "join", "excluded", "not_he") for number in range(10_000)]
        ledger = Ledger(losses)
        tally = ledger.balance("slide", arguments.num_slides + len(losses), arguments.num_slides)
        tables["quarantine"] = ledger.rows.table()
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        digests = {table: write_table(folder, table, rows, PROVENANCE) for table, rows in tables.items()}
        write_dataset_card(folder, PROVENANCE, digests, {"ledger": facts([tally])})
        results["manifest_1m_slides_write_seconds"] = time.perf_counter() - started_at
        cpu_seconds["manifest_1m_slides_write_seconds"] = time.process_time() - cpu_started_at
        results["manifest_1m_slides_mb"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        del tables, slides
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        findings = verify(folder)
        results["manifest_1m_slides_verify_seconds"] = time.perf_counter() - started_at
        cpu_seconds["manifest_1m_slides_verify_seconds"] = time.process_time() - cpu_started_at
        assert not findings, findings[:3]
        print({path.name: round(path.stat().st_size / 1e6, 1) for path in sorted(folder.iterdir())})
    report = {
        **{name: round(value, 2) for name, value in results.items()},
        **{f"limit_{name}": limit for name, limit in LIMITS.items()},
        "held": all(results[name] < limit for name, limit in LIMITS.items()),
        "num_slides": arguments.num_slides,
        **{f"cpu_{name}": round(value, 2) for name, value in cpu_seconds.items()},
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def key(identifier: str) -> str:
    """26 characters that do not compress, like the pseudonyms of a real manifest."""
    return hashlib.blake2b(identifier.encode(), digest_size=13).hexdigest()


def invented_patients(num_patients: int) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame({
        "patient_key": [key(f"patient{number}") for number in range(num_patients)],
        "label": generator.choice(["cancer", "in_situ", "benign"], num_patients, p=[0.12, 0.03, 0.85]),
        "site": generator.choice(["breast", "skin", "colon", "lymph_node"], num_patients),
        "num_slides": generator.geometric(0.3, num_patients),
    })  # fmt: skip


def manifest_tables(num_slides: int) -> tuple[dict[str, pa.Table], pd.DataFrame]:
    """slides, specimens and splits of a manifest in its final form; tiles are left out, as before counting."""
    generator = np.random.default_rng(1)
    num_patients = num_slides // 5
    patient_of_case = generator.integers(0, num_patients, num_slides * 2 // 5)
    case_of_specimen = generator.integers(0, len(patient_of_case), num_slides * 3 // 5)
    specimen_of_slide = np.sort(np.concatenate([np.arange(len(case_of_specimen)),
                                generator.integers(0, len(case_of_specimen), num_slides - len(case_of_specimen))]))  # fmt: skip
    names = {name: np.array([key(f"{name}{number}") for number in range(count)], dtype=object)
             for name, count in (("patient", num_patients), ("case", len(patient_of_case)),
                                 ("specimen", len(case_of_specimen)), ("slide", num_slides))}  # fmt: skip
    specimens = pd.DataFrame({
        "patient_key": names["patient"][patient_of_case[case_of_specimen]],
        "case_key": names["case"][case_of_specimen],
        "specimen_key": names["specimen"],
        "label": generator.choice(["cancer", "in_situ", "benign"], len(case_of_specimen), p=[0.12, 0.03, 0.85]),
        "finding": generator.choice(["idc", "ilc", "dcis", "benign"], len(case_of_specimen)),
        "evidence_source": generator.choice(["text", "discrete", "code"], len(case_of_specimen)),
        "rule_id": generator.choice([f"rule{number}" for number in range(60)], len(case_of_specimen)),
        "site": generator.choice(["breast", "skin", "colon", "lymph_node"], len(case_of_specimen)),
        "laterality": generator.choice(["left", "right"], len(case_of_specimen)),
        "procedure": generator.choice(["biopsy", "excision", "mastectomy"], len(case_of_specimen)),
    })  # fmt: skip
    specimens["y_cancer"] = (specimens["label"] != "benign").astype("int8")
    slides = specimens.loc[specimen_of_slide].reset_index(drop=True).assign(
        slide_key=names["slide"], block_key=None, label_scope="part", stain="h&e",
        exclude_reason=None, centre=generator.choice(["north", "south"], num_slides),
        scanner=generator.choice(["a", "b", "c"], num_slides), year=generator.integers(2000, 2025, num_slides),
        num_slides_in_part=3, width_px=generator.integers(20_000, 120_000, num_slides),
        height_px=generator.integers(20_000, 90_000, num_slides), mpp=generator.choice([0.2528, 0.5021], num_slides),
        num_tiles=None, tissue_mm2=None, content_hash=[key(f"scan{number}") for number in range(num_slides)],
        duplicate_of=None, weight=1.0)  # fmt: skip
    specimens = specimens.assign(exclude_reason=None, atypia=False, num_slides=2)
    splits = split_patients(patient_table(slides), SplitConfig())
    slides["split"] = default_split(slides, splits)
    frames = {"slides": slides, "specimens": specimens, "splits": splits}
    return {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in frames.items()}, slides


if __name__ == "__main__":
    main()
