"""`ingest run` on the demo hospital against its planted truth: labels, ledger, privacy, the same bytes, a kill on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ingest.cohort import CohortConfig
from ingest.config import load_config
from ingest.deidentify import read_vault_table
from ingest.demo import write_demo
from ingest.errors import GateError, PrivacyError
from ingest.manifest import TABLES, read_dataset_card, read_table
from ingest.run import count_only, run
from ingest.verify import verify

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    write_demo(folder, seed=3, num_patients=20)
    return folder


def cohort(hospital: Path, out: Path, *overrides: str) -> CohortConfig:
    places = [
        f"source_folder={hospital}", f"slide_folder={hospital / 'slides'}",
        f"deidentify.key_file={hospital / 'pseudonym.key'}", f"output.manifest={out / 'manifest'}",
        f"output.vault={out / 'vault'}",
    ]  # fmt: skip
    return load_config(CohortConfig, "ingest", ROOT / "manifests" / "demo.toml", [*places, *overrides])


@pytest.fixture(scope="module")
def published(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    run(cohort(hospital, out, "num_workers=2"))
    return out


def specimen_of(vault: Path) -> dict[str, str]:
    """specimen_key -> "accession/part", from the crosswalk."""
    crosswalk = read_vault_table(vault, "crosswalk")
    assert crosswalk is not None
    rows = [row for row in crosswalk.to_pylist() if row["domain"] == "specimen"]
    return {row["key"]: "/".join(part.split(":", 1)[1] for part in row["identifier"].split("|")) for row in rows}


def test_labels_are_the_planted_ones_and_nothing_is_called_benign_wrongly(hospital: Path, published: Path) -> None:
    truth = json.loads((hospital / "truth.json").read_text())["specimens"]
    names = specimen_of(published / "vault")
    found = {
        names[row["specimen_key"]]: row["label"] for row in read_table(published / "manifest", "specimens").to_pylist()
    }
    assert found.keys() == truth.keys()
    wrong = {name: (found[name], truth[name]) for name in truth if found[name] != truth[name]}
    assert all(label == "not_assessable" for label, _ in wrong.values()), wrong  # abstaining is the only way to err
    assert len(wrong) <= 0.1 * len(truth)


def test_every_scan_ends_as_used_or_with_its_reason(hospital: Path, published: Path) -> None:
    planted = Counter(row["use"] for row in json.loads((hospital / "truth.json").read_text())["slides"].values())
    ledger = read_dataset_card(published / "manifest")["ledger"]["slide"]
    assert ledger["in"] == planted.total() == ledger["used"] + sum(ledger["left_out"].values())
    reasons = {reason.split("/")[1] for reason in ledger["left_out"]}
    assert {"blank", "cannot_open", "no_mpp", "truncated", "frozen", "ihc", "duplicate_scan"} <= reasons
    assert [finding for finding in verify(published / "manifest") if finding.severity == "error"] == []


def test_no_identifier_of_the_hospital_is_in_any_published_file(published: Path) -> None:
    crosswalk = read_vault_table(published / "vault", "crosswalk")
    assert crosswalk is not None
    names = {row["identifier"] for row in crosswalk.to_pylist() if row["domain"] in ("case", "slide")}
    assert len(names) > 20
    text = b"".join(file.read_bytes() for file in (published / "manifest").rglob("*") if file.suffix != ".parquet")
    cells = [str(value) for name in TABLES if (published / "manifest" / f"{name}.parquet").exists()
             for column in read_table(published / "manifest", name).to_pydict().values() for value in column]  # fmt: skip
    assert [name for name in names if name.encode() in text or name in cells] == []


def test_the_manifest_has_the_same_bytes_for_one_and_two_workers(hospital: Path, tmp_path: Path) -> None:
    config = cohort(hospital, tmp_path)
    files: list[dict[str, bytes]] = []
    for num_workers in (1, 2):
        run(config.model_copy(update={"num_workers": num_workers}))
        files.append({file.name: file.read_bytes() for file in config.output.manifest.iterdir()})
        shutil.rmtree(config.output.manifest)
        shutil.rmtree(config.output.vault)
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def test_counts_made_ahead_are_taken_over(hospital: Path, tmp_path: Path) -> None:
    config = cohort(hospital, tmp_path)
    rows = count_only(config)
    journal = (tmp_path / "vault" / "tile_counts.jsonl").read_text()
    run(config)
    again = (tmp_path / "vault" / "tile_counts.jsonl").read_text()
    num_failed = sum(row.status == "failed" for row in rows)
    assert again.startswith(journal)
    assert again.count("\n") - journal.count("\n") == num_failed  # only what had failed was tried again


def test_a_second_run_keeps_every_patient_in_place(hospital: Path, tmp_path: Path) -> None:
    config = cohort(hospital, tmp_path)
    run(config)
    before = read_table(tmp_path / "manifest", "splits")
    run(cohort(hospital, tmp_path, "split.seed=99"))
    assert read_table(tmp_path / "manifest", "splits") == before


def test_a_broken_gate_publishes_nothing_and_leaves_the_old_manifest(
    hospital: Path, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path / "out")
    os.chmod(tmp_path / "out" / "vault", 0o700)
    before = (tmp_path / "out" / "manifest" / "slides.parquet").read_bytes()
    with pytest.raises(GateError, match="positive_slides"):
        run(cohort(hospital, tmp_path / "out", "gates.min_positive=0.95"))
    assert (tmp_path / "out" / "manifest" / "slides.parquet").read_bytes() == before


def test_an_identifier_in_an_output_stops_the_publishing(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="nothing was published"):
        # The scanner column would carry this pattern: the lint looks at every file, whatever the column is called.
        run(cohort(hospital, tmp_path, "privacy.accession_pattern='GT450|AT2'"))
    assert not (tmp_path / "manifest").exists()


def test_a_kill_at_any_moment_leaves_the_old_manifest_or_the_new_one_and_a_rerun_finishes(
    hospital: Path, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path / "out")
    os.chmod(tmp_path / "out" / "vault", 0o700)
    config = cohort(hospital, tmp_path / "out")
    arguments = [f"{name}={value}" for name, value in (
        ("source_folder", hospital), ("slide_folder", hospital / "slides"),
        ("deidentify.key_file", hospital / "pseudonym.key"), ("output.manifest", config.output.manifest),
        ("output.vault", config.output.vault))]  # fmt: skip
    command = [sys.executable, "-m", "ingest", "run", "-c", "manifests/demo.toml"]
    command += [word for argument in arguments for word in ("--set", argument)]
    for seconds in (2.0, 4.0, 6.0):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        assert [finding for finding in verify(config.output.manifest) if finding.severity == "error"] == []
    run(config)
    assert read_table(config.output.manifest, "slides") == read_table(published / "manifest", "slides")
    left_over = [path.name for path in config.output.manifest.parent.iterdir() if path.name.endswith(".old")]
    assert left_over == []


@pytest.mark.parametrize(
    ("stated", "reason"), [("0.25", None), ("a quarter", "bad_mpp"), ("-1", "bad_mpp"), ("8.0", "coarse_scan")]
)
def test_the_slide_list_may_state_the_resolution_that_a_file_lacks(
    hospital: Path, tmp_path: Path, stated: str, reason: str | None
) -> None:
    truth = json.loads((hospital / "truth.json").read_text())["slides"]
    (name,) = [file for file, row in truth.items() if row["use"] == "no_mpp"]
    config = cohort(hospital, tmp_path)
    slides = config.source.tables["slides"]
    assert slides.query is not None
    query = f"SELECT *, CASE WHEN path = '{name}' THEN '{stated}' END AS mpp FROM ({slides.query.rstrip().rstrip(';')})"
    tables = {**config.source.tables, "slides": slides.model_copy(update={"query": query})}
    run(config.model_copy(update={"source": config.source.model_copy(update={"tables": tables})}))
    left_out = read_dataset_card(tmp_path / "manifest")["ledger"]["slide"]["left_out"]
    assert "tiles/no_mpp" not in left_out
    assert left_out.get(f"tiles/{reason}", 0) == (0 if reason is None else 1)
