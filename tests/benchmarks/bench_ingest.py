"""How fast reports become labels, how well negation is read, and in how little memory a whole archive becomes a manifest.

python -m tests.benchmarks.bench_ingest      writes build/bench/ingest.json

The memory figure is of the whole `python -m ingest run` over a million cases with a report each (tests/large_cohort.py),
exports on disk to published manifest: the largest process, and the largest worker apart. That takes about 20 minutes of two
cores that have nothing else to do and 4 GB of disk; --num-cases 50000 gives an idea in two minutes and says so in the JSON.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import psutil

from ingest.case import ReportVersion
from ingest.config import to_toml
from ingest.label import label_case
from ingest.manifest import read_dataset_card
from ingest.rulefile import compiled, load_rules
from tests.large_cohort import write_large_cohort
from tests.unit.test_context import KIT, is_negated, kit_rows

LIMITS = {
    "reports_per_second_4kb": 600,
    "reports_per_second_500b": 2500,
    "million_reports_peak_mb": 1000,
    "negex_f1": 0.955,
}
NUM_TIMED = 400
NUM_REPEATS = 3  # the best counts: the machine may be shared
DIAGNOSES = (
    "INVASIVE DUCTAL CARCINOMA, GRADE 2", "FIBROADENOMA", "NO EVIDENCE OF CARCINOMA OR ATYPIA",
    "DUCTAL CARCINOMA IN SITU, HIGH GRADE", "FIBROCYSTIC CHANGES WITH USUAL DUCTAL HYPERPLASIA",
    "SCLEROSING ADENOSIS; NEGATIVE FOR CARCINOMA", "ATYPICAL DUCTAL HYPERPLASIA, SEE COMMENT",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-cases", type=int, default=1_000_000, help="of the run whose memory is measured")
    parser.add_argument("--out", type=Path, default=Path("build/bench/ingest.json"))
    arguments = parser.parse_args()
    results = {
        "reports_per_second_4kb": reports_per_second(4_096, num_parts=6),
        "reports_per_second_500b": reports_per_second(500, num_parts=2),
        **measure_run(arguments.num_cases, arguments.out.parent),
    }
    if KIT.exists():
        results["negex_f1"] = negex_f1()
    report = {
        **{name: round(value, 4) for name, value in results.items()},
        **{f"limit_{name}": limit for name, limit in LIMITS.items()},
        "num_cases_run": arguments.num_cases,
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def reports_per_second(num_characters: int, num_parts: int) -> float:
    """Reports per second of CPU on one core, the best of a few runs, after the regexes and caches are warm."""
    rules = load_rules("breast")
    texts = [invented_report(seed, num_characters, num_parts) for seed in range(NUM_TIMED)]
    best = 0.0
    for _ in range(NUM_REPEATS + 1):
        started_at = time.process_time()
        for text in texts:
            label_case([ReportVersion(text=text)], rules=rules)
        best = max(best, NUM_TIMED / (time.process_time() - started_at))
    return best


def measure_run(num_cases: int, folder: Path) -> dict[str, float]:
    """Peak resident megabytes of the largest process of `ingest run` and of its largest worker, and seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        config = write_large_cohort(Path(name), num_cases, small_report)
        path = Path(name) / "cohort.toml"
        path.write_text(to_toml("ingest", config))
        started_at = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "ingest", "run", "-c", path], stdout=subprocess.DEVNULL
        ) as process:
            peaks = watch(process)
        seconds = time.perf_counter() - started_at
        if process.returncode:
            raise SystemExit(f"ingest run ended with code {process.returncode}")
        ledger = read_dataset_card(config.output.manifest)["ledger"]
        assert ledger["case"]["in"] >= num_cases, "every case is in the ledger"
    workers = [peak for pid, peak in peaks.items() if pid != process.pid]
    return {"million_reports_peak_mb": max(peaks.values()), "million_reports_worker_peak_mb": max(workers, default=0.0),
            "million_reports_seconds": seconds}  # fmt: skip


def watch(process: "subprocess.Popen[bytes]") -> dict[int, float]:
    """Megabytes that a process and each of its descendants had resident at most, by process id, until it ends."""
    peaks: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in family:
            try:
                status = Path(f"/proc/{member.pid}/status").read_text()
            except OSError:
                continue  # it has just ended
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):  # the peak so far, so that a sample misses little
                peaks[member.pid] = int(found.group(1)) / 1024
        time.sleep(0.2)
    return peaks


def negex_f1() -> float:
    """F1 of `negated` on the NegEx kit; sentences in which the target cannot be found (11) are left out."""
    engine = compiled(load_rules("breast"))
    pairs = [(is_negated(target, sentence, engine), gold) for target, sentence, gold in kit_rows()]
    hits = sum(bool(found) and gold for found, gold in pairs)
    misses = sum(found is False and gold for found, gold in pairs)
    alarms = sum(bool(found) and not gold for found, gold in pairs)
    return 2 * hits / (2 * hits + misses + alarms)


def invented_report(seed: int, num_characters: int, num_parts: int) -> str:
    """A report with history, diagnosis, gross and microscopic text; no two seeds share their filler words."""
    generator = random.Random(seed)
    lines = ["CLINICAL HISTORY: Breast mass, history of invasive carcinoma.", "", "FINAL DIAGNOSIS:"]
    for part in range(num_parts):
        side, clock = generator.choice(("LEFT", "RIGHT")), generator.randint(1, 12)
        lines.append(f"{chr(65 + part)}. BREAST, {side}, {clock}:00, CORE BIOPSY: {generator.choice(DIAGNOSES)}.")
        if num_parts > 2:
            lines.append(f"   - {generator.choice(DIAGNOSES)}, {generator.randint(1, 30)} MM.")
    lines += ["", "GROSS DESCRIPTION:"]
    text = "\n".join(lines) + "\n"
    while len(text) < num_characters - 180:
        size = " x ".join(f"{generator.uniform(0.3, 4):.1f}" for _ in range(3))
        word = "".join(generator.choices("abcdefghij", k=7))
        text += f'{generator.choice("ABC")}. Received in formalin labeled "{word}" is a {size} cm portion of fibrofatty tissue.\n'
        text += f"Serially sectioned, {word} cut surface, entirely submitted in cassettes {generator.randint(1, 9)}.\n"
    text += "\nMICROSCOPIC DESCRIPTION:\nSections show breast tissue with a proliferation of epithelial cells"
    return text[: num_characters - 1] + "."


@lru_cache(4096)
def _invented_report(seed: int, num_parts: int) -> str:
    return invented_report(seed, 420, num_parts)


def small_report(case: int, num_parts: int) -> str:
    """About 500 characters, made faster than they are read; every case has a word of its own."""
    word = "".join(chr(97 + int(digit)) for digit in str(case))
    return f'{_invented_report(case % 1999, num_parts)}\nSlides labeled "{word}".'


if __name__ == "__main__":
    main()
