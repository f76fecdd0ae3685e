"""A run over invented exports with damaged, repeated and nameless rows: every one is accounted for, and a rerun agrees."""

import csv
from pathlib import Path

import pytest

from ingest.manifest import read_dataset_card
from ingest.run import run
from ingest.verify import verify
from tests.benchmarks.bench_ingest import small_report
from tests.large_cohort import COLUMNS, large_cohort_config, write_large_cohort

NUM_CASES = 1100


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "cohort"
    run(write_large_cohort(folder, NUM_CASES, small_report).model_copy(update={"num_workers": 1}))
    return folder


def test_every_row_and_case_of_the_exports_is_used_or_has_its_reason(cohort: Path) -> None:
    ledger = read_dataset_card(cohort / "manifest")["ledger"]
    num_rows = 0
    for name in COLUMNS:
        with (cohort / "exports" / f"{name}.csv").open(newline="") as file:
            num_rows += sum(1 for _ in csv.reader(file)) - 1
    lost = ledger["row"]["left_out"]
    # A report of several lines with a column too many is one record for csv; each of its lines is a row for the ledger,
    # but for empty ones.
    num_lines = sum(len(text.replace("\n\n", "\n").split("\n")) - 1 for text in damaged_reports(cohort))
    assert ledger["row"]["in"] == num_rows + num_lines == ledger["row"]["used"] + sum(lost.values())
    assert lost["source_cases/wrong_number_of_columns"] == len(range(5, NUM_CASES, 997))
    assert lost["source_cases/duplicate_row"] == len(range(7, NUM_CASES, 499))
    case = ledger["case"]
    assert case["left_out"]["identity/patient_unresolved"] == len(range(50, NUM_CASES, 101))
    assert case["left_out"]["identity/accession_two_patients"] == len(range(500, NUM_CASES, 1009))
    assert case["in"] == case["used"] + sum(case["left_out"].values())
    assert [finding for finding in verify(cohort / "manifest") if finding.severity == "error"] == []


def damaged_reports(cohort: Path) -> list[str]:
    with (cohort / "exports" / "reports.csv").open(newline="") as file:
        return [row[1] for row in csv.reader(file) if len(row) > 2]


def test_a_run_that_finds_the_vault_of_an_earlier_one_gives_the_same_bytes(cohort: Path) -> None:
    before = {path.name: path.read_bytes() for path in (cohort / "manifest").iterdir()}
    crosswalk = (cohort / "vault" / "crosswalk.parquet").read_bytes()
    run(large_cohort_config(cohort).model_copy(update={"num_workers": 1}))
    assert {path.name: path.read_bytes() for path in (cohort / "manifest").iterdir()} == before
    assert (cohort / "vault" / "crosswalk.parquet").read_bytes() == crosswalk
