"""What people see of a manifest: right counts, the figures, and nothing that identifies a patient."""

import re
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ingest.balance import BalanceConfig
from ingest.card import MIN_CELL_PATIENTS, funnel_svg, hidden_cells, write_card
from ingest.errors import ManifestError
from ingest.figures import histogram_svg
from ingest.resplit import resplit
from ingest.show import Cell, count_histogram, print_summary, summarise
from ingest.split import SplitConfig
from ingest.verify import verify
from tests.invented_cohort import invented_slides, write_manifest


@pytest.fixture
def slides() -> pd.DataFrame:
    """60 patients; of the 15 with cancer five get DCIS only."""
    slides = invented_slides(60)
    slides.loc[slides["patient_key"].isin([f"p{number:05d}" for number in range(5)]), "label"] = "in_situ"
    return slides


@pytest.fixture
def manifest(tmp_path: Path, slides: pd.DataFrame) -> Path:
    write_manifest(tmp_path / "cohort", slides)
    return tmp_path / "cohort"


def test_the_counts_are_those_of_the_rows(manifest: Path, slides: pd.DataFrame) -> None:
    summary = summarise(manifest)
    assert summary.totals == {"patients": 60, "cases": 60, "specimens": len(slides), "slides": len(slides)}
    assert {label: counts["patients"] for label, counts in summary.labels.items()} == {
        "cancer": 10, "in_situ": 5, "benign": 45}  # fmt: skip
    assert sum(cell.num_slides for cell in summary.cells) == len(slides)
    num_cancer = int((slides["label"] == "cancer").sum())
    assert sum(cell.num_slides for cell in summary.cells if cell.label == "cancer") == num_cancer
    assert summary.left_out == {"slide": {"tiles/unreadable_slide": 3}}


def test_prevalence_is_told_for_three_ways_to_count_in_situ_disease(manifest: Path) -> None:
    patients = {
        row.in_situ: (row.num_positive, row.num) for row in summarise(manifest).prevalence if row.level == "patients"
    }
    assert patients == {"positive": (15, 60), "negative": (10, 60), "excluded": (10, 55)}


def test_the_histogram_of_tiles_tells_the_largest_the_99th_and_the_90th_percentile() -> None:
    tiles = count_histogram(np.arange(1, 1001), 224, 0.5)
    assert (tiles.max_tiles, tiles.p99, tiles.p90, tiles.median) == (1000, 990, 900, 500)
    assert sum(tiles.counts) == 1000
    assert tiles.edges[0] == 0
    assert tiles.edges[-1] > 1000
    assert len(tiles.edges) == len(tiles.counts) + 1


@pytest.mark.parametrize("num_tiles", [[0], [7, 7, 7], [1, 50_578]])
def test_histograms_of_few_slides_hold_every_slide(num_tiles: list[int]) -> None:
    tiles = count_histogram(np.array(num_tiles), 224, 0.5)
    assert sum(tiles.counts) == len(num_tiles)
    ElementTree.fromstring(histogram_svg(tiles.edges, tiles.counts, [("max", tiles.max_tiles)], "x", "y"))


def test_the_terminal_shows_labels_splits_prevalence_tiles_and_losses(manifest: Path) -> None:
    buffer = StringIO()
    print_summary(summarise(manifest), Console(file=buffer, width=140))
    text = buffer.getvalue()
    for expected in ("60 patients", "in_situ", "train", "25.0 % (15 of 60)", "16.7 % (10 of 60)", "Tiles per slide (224 px",
                     "99 % have at most", "tiles/unreadable_slide 3"):  # fmt: skip
        assert expected in text


def test_a_manifest_without_tiles_says_how_to_count_them(manifest: Path) -> None:
    (manifest / "tiles.parquet").unlink()
    buffer = StringIO()
    print_summary(summarise(manifest), Console(file=buffer, width=140))
    assert "python -m ingest tiles" in buffer.getvalue()
    write_card(manifest)
    assert "Tiles are not counted yet." in (manifest / "card.md").read_text()


def test_a_folder_without_dataset_json_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"dataset\.json is missing"):
        summarise(tmp_path)


def test_the_card_and_its_figures_hold_no_key_of_a_patient_case_specimen_or_slide(manifest: Path) -> None:
    slides = pq.read_table(manifest / "slides.parquet").to_pandas()
    written = [manifest / name for name in ("card.md", "funnel.svg", "tile_counts.svg")]
    text = "".join(path.read_text(encoding="utf-8") for path in written)
    for column in ("patient_key", "case_key", "specimen_key", "slide_key", "content_hash"):
        assert not any(key in text for key in slides[column])
    assert str(manifest.parent) not in text


def test_small_cells_are_not_in_the_card(tmp_path: Path, slides: pd.DataFrame) -> None:
    slides["site"] = slides["site"].where(slides["patient_key"] != "p00059", "secret_site")
    write_manifest(tmp_path, slides)
    text = (tmp_path / "card.md").read_text()
    assert "secret_site" not in text
    shown = re.findall(r"\| [\d,]+ \((\d+)\)", text.split("## Sites and splits")[1].split("##")[0])
    assert shown
    assert all(int(number) >= MIN_CELL_PATIENTS for number in shown)


def test_a_single_small_cell_takes_the_next_smallest_of_its_label_along() -> None:
    cells = [Cell("a", "cancer", "train", 3, 5), Cell("a", "cancer", "test", 40, 50), Cell("b", "cancer", "test", 20, 50),
             Cell("a", "benign", "train", 90, 99)]  # fmt: skip
    assert hidden_cells(cells) == {cells[0], cells[2]}


def test_the_card_tells_the_paper_order_and_what_it_left_out(tmp_path: Path, slides: pd.DataFrame) -> None:
    write_manifest(tmp_path, slides, balancing=BalanceConfig(mode="paper", paper_slides_per_class=10))
    text = (tmp_path / "card.md").read_text()
    num_positive = int(slides["y_cancer"].sum())
    assert "20 slides = 10 with 0 + 10 with 1" in text
    assert f"{num_positive - 10} positive slides are left out" in text
    assert {finding.severity for finding in verify(tmp_path)} <= {"warning"}


def test_the_same_manifest_gives_the_same_card(manifest: Path) -> None:
    names = ("card.md", "funnel.svg", "tile_counts.svg")
    before = [(manifest / name).read_bytes() for name in names]
    write_card(manifest)
    assert [(manifest / name).read_bytes() for name in names] == before


def test_the_funnel_is_svg_with_a_bar_for_each_step() -> None:
    root = ElementTree.fromstring(funnel_svg([("slides <in>", 200), ("H&E", 150), ("none", 0)]))
    text = "".join(root.itertext())
    assert "slides <in>" in text
    assert "150 (75.0 %)" in text
    bars = [float(element.get("width", "0")) for element in root if element.tag.endswith("rect")][1:]
    assert bars[1] == pytest.approx(bars[0] * 0.75, abs=0.1)
    assert bars[2] == 0
    ElementTree.fromstring(funnel_svg([]))


def test_splitting_a_finished_manifest_anew_keeps_it_sound_and_keeps_places(manifest: Path) -> None:
    before = pq.read_table(manifest / "splits.parquet").to_pandas()
    resplit(manifest, SplitConfig(schemes=("holdout", "mccv"), num_repeats=2, seed=99), BalanceConfig(mode="weight"))
    assert [finding for finding in verify(manifest) if finding.severity == "error"] == []
    after = pq.read_table(manifest / "splits.parquet").to_pandas()
    both = before.merge(after[after["scheme"] == "holdout"], on="patient_key")
    assert (both["split_x"].astype(str) == both["split_y"].astype(str)).all()
    assert set(after["scheme"]) == {"holdout", "mccv2"}
    assert "mccv2: 2 folds" in (manifest / "card.md").read_text()
    resplit(manifest, SplitConfig(seed=99), BalanceConfig(), keep_places=False)
    moved = before.merge(pq.read_table(manifest / "splits.parquet").to_pandas(), on="patient_key")
    assert (moved["split_x"].astype(str) != moved["split_y"].astype(str)).any()


def test_an_external_split_replaces_ours_or_leaves_everything_as_it_was(manifest: Path, tmp_path: Path) -> None:
    keys = sorted(set(pq.read_table(manifest / "slides.parquet").column("patient_key").to_pylist()))
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(
        "patient_id,split\n" + "".join(f"{key},{'train' if n % 2 else 'test'}\n" for n, key in enumerate(keys))
    )
    bad.write_text(f"patient_id,split\n{keys[0]},train\n{keys[0]},test\n")
    before = (manifest / "slides.parquet").read_bytes()
    with pytest.raises(ValueError, match="in more than one part"):
        resplit(manifest, SplitConfig(), BalanceConfig(), external=bad)
    assert (manifest / "slides.parquet").read_bytes() == before
    resplit(manifest, SplitConfig(), BalanceConfig(), external=good)
    slides = pq.read_table(manifest / "slides.parquet").to_pandas()
    assert set(slides["split"][slides["patient_key"] == keys[0]]) == {"test"}
    assert set(slides["split"][slides["patient_key"] == keys[1]]) == {"train"}
    assert [finding for finding in verify(manifest) if finding.severity == "error"] == []
