from pathlib import Path

import pytest

from ingest.balance import BalanceConfig
from ingest.errors import ManifestError
from ingest.manifest import read_dataset_card, read_table
from ingest.policy import Policy
from ingest.relabel import relabel
from ingest.split import SplitConfig
from ingest.verify import verify
from tests.invented_cohort import invented_slides, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    slides = invented_slides(40)
    positive = sorted(slides.loc[slides["label"] == "cancer", "patient_key"].unique())
    slides.loc[slides["patient_key"].isin(positive[:3]), "label"] = "in_situ"
    write_manifest(tmp_path / "manifest", slides)
    return tmp_path / "manifest"


def values(folder: Path, label: str) -> set[int | None]:
    rows = read_table(folder, "slides").to_pylist()
    return {row["y_cancer"] for row in rows if row["label"] == label}


def test_another_policy_changes_y_and_keeps_labels_and_places(manifest: Path) -> None:
    before = read_table(manifest, "slides").to_pylist()
    places = {row["patient_key"]: row["split"] for row in read_table(manifest, "splits").to_pylist()}
    assert values(manifest, "in_situ") == {1}
    changes = relabel(manifest, "cancer", Policy(in_situ="negative"), SplitConfig(), BalanceConfig())
    after = read_table(manifest, "slides").to_pylist()
    assert values(manifest, "in_situ") == {0}
    assert [row["label"] for row in after] == [row["label"] for row in before]
    assert changes == {"1 -> 0": sum(row["label"] == "in_situ" for row in before)}
    again = {row["patient_key"]: row["split"] for row in read_table(manifest, "splits").to_pylist()}
    assert {key: again[key] for key in places} == places
    assert [finding for finding in verify(manifest) if finding.severity == "error"] == []


def test_excluding_a_label_moves_its_slides_into_the_ledger_and_back(manifest: Path) -> None:
    used = read_dataset_card(manifest)["ledger"]["slide"]["used"]
    num_in_situ = sum(row["label"] == "in_situ" for row in read_table(manifest, "slides").to_pylist())
    assert num_in_situ > 0
    relabel(manifest, "cancer", Policy(in_situ="exclude"), SplitConfig(), BalanceConfig())
    ledger = read_dataset_card(manifest)["ledger"]["slide"]
    assert ledger["used"] == used - num_in_situ
    assert ledger["left_out"]["policy/label_in_situ"] == num_in_situ
    assert values(manifest, "in_situ") == {None}
    relabel(manifest, "cancer", Policy(), SplitConfig(), BalanceConfig())
    assert read_dataset_card(manifest)["ledger"]["slide"]["used"] == used


def test_an_unknown_task_is_refused(manifest: Path) -> None:
    with pytest.raises(ManifestError, match="no column y_egfr"):
        relabel(manifest, "egfr", Policy(), SplitConfig(), BalanceConfig())
