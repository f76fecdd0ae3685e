"""Counting a cohort: right counts, resumable, and never stopped by one slide."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ingest.errors import ConfigError
from ingest.geometry import unpack_mask
from ingest.svs import write_svs
from ingest.tiles import SlideFile, TileCount, TilesConfig, count_slide, count_tiles, summarise
from tests.slides import REAL_SLIDES, damage_tile, stained_texture, write_textured_svs

CONFIG = TilesConfig()


def section_on_glass(width_px: int, height_px: int, mpp: float) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Glass whose left half, but for a margin of a tile at the top, is tissue."""
    stride = round(224 * 0.5 / mpp)
    pixels = np.full((height_px, width_px, 3), 243, np.uint8)
    texture = stained_texture(max(width_px // 2, height_px), mpp)
    pixels[stride:, : width_px // 2] = texture[: height_px - stride, : width_px // 2]
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cohort")
    write_svs(path / "half.svs", section_on_glass(4 * 448, 4 * 448, 0.25), mpp=0.25)
    write_svs(path / "no_mpp.svs", section_on_glass(4 * 224, 4 * 224, 0.5), mpp=None)
    write_svs(path / "blank.svs", np.full((1000, 1000, 3), 243, np.uint8), mpp=0.5)
    write_svs(path / "small.svs", np.full((200, 3000, 3), 180, np.uint8), mpp=0.5)
    write_svs(path / "coarse.svs", np.full((600, 600, 3), 180, np.uint8), mpp=1.0)
    dark = np.full((1000, 1000, 3), 6, np.uint8)
    dark[300:500, 300:500] = (20, 60, 220)
    write_svs(path / "fluorescence.svs", dark, mpp=0.5)
    write_textured_svs(path / "damaged.svs", (1200, 1200), 0.5, texture_px=512)
    for file_tile in range(12):
        damage_tile(path / "damaged.svs", file_tile, "random")
    write_textured_svs(path / "unreadable.svs", (600, 600), 0.5, texture_px=512, downsamples=(1,))
    for file_tile in range(9):
        damage_tile(path / "unreadable.svs", file_tile, "random")
    (path / "cut.svs").write_bytes((path / "half.svs").read_bytes()[:20_000])
    (path / "text.svs").write_bytes(b"no slide")
    return path


EXPECTED = {
    "half": ("counted", ""),
    "no_mpp": ("excluded", "no_mpp"),
    "blank": ("excluded", "blank"),
    "small": ("excluded", "too_small"),
    "coarse": ("excluded", "coarse_scan"),
    "fluorescence": ("excluded", "not_brightfield"),
    "damaged": ("failed", "damaged_tiles"),
    "unreadable": ("failed", "cannot_read"),
    "cut": ("failed", "truncated"),
    "text": ("failed", "cannot_open"),
    "missing": ("failed", "cannot_open"),
}


def cohort(folder: Path) -> list[SlideFile]:
    return [SlideFile(name, str(folder / f"{name}.svs")) for name in EXPECTED]


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[TileCount]:
    return count_tiles(cohort(folder), CONFIG, num_processes=2)


def test_every_slide_ends_as_a_row_with_its_reason(rows: list[TileCount]) -> None:
    assert {row.slide_key: (row.status, row.reason) for row in rows} == EXPECTED
    assert [row.slide_key for row in rows] == sorted(EXPECTED)
    assert summarise(rows)[0] == ("failed", "cannot_open", 2)
    for row in rows:
        assert (row.message == "") == (row.status == "counted")


def test_no_message_carries_a_path_or_a_file_name(rows: list[TileCount], folder: Path) -> None:
    for row in rows:
        assert str(folder) not in row.message
        assert ".svs" not in row.message


def test_the_counted_tiles_are_those_that_hold_tissue(rows: list[TileCount]) -> None:
    row = next(row for row in rows if row.status == "counted")
    assert (row.width_px, row.height_px, row.slide_mpp, row.num_rows, row.num_columns) == (1792, 1792, 0.25, 4, 4)
    assert row.mask is not None
    tiles = unpack_mask(row.mask, 4, 4)
    assert tiles.tolist() == [[False] * 4] + [[True, True, False, False]] * 3
    assert row.num_tiles == 6
    assert row.tissue_mm2 == pytest.approx(6 * 0.112**2, rel=0.05)
    assert row.reader == "tiff"


def test_an_mpp_given_with_the_slide_is_used(folder: Path) -> None:
    row = count_slide(SlideFile("key", str(folder / "no_mpp.svs"), mpp_override=0.5), CONFIG)
    assert (row.status, row.num_tiles, row.slide_mpp) == ("counted", 6, 0.5)


def test_one_damaged_tile_does_not_exclude_a_slide(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    write_textured_svs(path, (2300, 2300), 0.5, texture_px=512)
    damage_tile(path, 0, "random")
    row = count_slide(SlideFile("key", str(path)), CONFIG)
    assert (row.status, row.num_tiles) == ("counted", 100)


def test_copies_of_a_scan_have_one_content_hash(rows: list[TileCount], folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.svs"
    copy.write_bytes((folder / "half.svs").read_bytes())
    hashes = {row.slide_key: row.content_hash for row in rows}
    assert count_slide(SlideFile("other", str(copy)), CONFIG).content_hash == hashes["half"]
    assert len(set(hashes.values())) == len(hashes)


@pytest.mark.parametrize(
    ("setting", "value"), [("size_px", 112), ("mpp", 1.0), ("min_tissue", 1.0), ("thumbnail_mpp", 60.0)]
)
def test_every_setting_changes_the_count_or_the_mask(folder: Path, setting: str, value: float) -> None:
    slide = SlideFile("half", str(folder / "half.svs"))
    changed = count_slide(slide, TilesConfig.model_validate({setting: value}))
    assert (
        changed.mask != count_slide(slide, CONFIG).mask or changed.tissue_mm2 != count_slide(slide, CONFIG).tissue_mm2
    )


def test_the_settings_reader_and_max_damaged_are_obeyed(folder: Path) -> None:
    half, damaged = (SlideFile(name, str(folder / f"{name}.svs")) for name in ("half", "damaged"))
    row = count_slide(half, TilesConfig(reader="openslide"))
    assert (row.reader, row.num_tiles) == ("openslide", 6)
    assert count_slide(damaged, TilesConfig(max_damaged=0.9)).status == "counted"


# Resuming


def test_a_second_run_takes_finished_slides_from_the_journal_and_tries_failed_ones_again(
    folder: Path, tmp_path: Path, rows: list[TileCount]
) -> None:
    journal = tmp_path / "tiles.jsonl"
    first = count_tiles(cohort(folder), CONFIG, journal, num_processes=1)
    assert first == rows
    lines = journal.read_text().splitlines()
    marked = [line.replace('"tissue_mm2": 0.07', '"tissue_mm2": 9.07') for line in lines]  # only the journal says so
    assert marked != lines
    journal.write_text("\n".join(marked) + '\n{"half a li')  # and a kill cut off the last line
    second = count_tiles(cohort(folder), CONFIG, journal, num_processes=1)
    areas = {row.slide_key: row.tissue_mm2 for row in second}
    assert areas["half"] is not None
    assert areas["half"] > 9
    assert {row.slide_key: (row.status, row.reason) for row in second} == EXPECTED
    added = journal.read_text().splitlines()[len(marked) + 1 :]
    assert {json.loads(line)["row"]["status"] for line in added if line} == {"failed"}


def test_another_configuration_or_a_changed_file_is_counted_anew(folder: Path, tmp_path: Path) -> None:
    journal, path = tmp_path / "tiles.jsonl", tmp_path / "slide.svs"
    path.write_bytes((folder / "half.svs").read_bytes())
    slides = [SlideFile("key", str(path))]
    assert count_tiles(slides, CONFIG, journal, num_processes=1)[0].num_tiles == 6
    assert count_tiles(slides, TilesConfig(size_px=112), journal, num_processes=1)[0].num_tiles == 24
    path.write_bytes((folder / "blank.svs").read_bytes())
    assert count_tiles(slides, CONFIG, journal, num_processes=1)[0].reason == "blank"


def test_a_key_that_comes_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="1 slide keys come twice"):
        count_tiles([SlideFile("a", "x"), SlideFile("a", "y")], CONFIG)


# Crashes


def test_a_slide_whose_reading_hangs_loses_its_process_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "hangs.svs"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes, as a dead network share does
    slides = [SlideFile("b", str(pipe)), *(SlideFile(f"a{n}", str(folder / "half.svs")) for n in range(5))]
    started_at = time.monotonic()
    rows = count_tiles(slides, TilesConfig(timeout_seconds=2.0), num_processes=2)
    assert time.monotonic() - started_at < 25  # 2 s among the others, 2 s alone, and new processes
    assert [(row.slide_key, row.reason) for row in rows] == [
        *((f"a{n}", "") for n in range(5)),
        ("b", "reader_crashed"),
    ]
    assert "took more than 2 s" in rows[-1].message


def test_a_fault_of_ours_becomes_a_row_and_the_other_slides_go_on(folder: Path) -> None:
    odd = SlideFile("b", 1_000_000)  # type: ignore[arg-type]
    rows = count_tiles([odd, SlideFile("a", str(folder / "half.svs"))], CONFIG, num_processes=1)
    assert [(row.slide_key, row.reason) for row in rows] == [("a", ""), ("b", "reader_error")]
    assert rows[1].message.startswith("unexpected TypeError")


def test_a_damaged_index_ends_in_a_reason_and_in_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    write_textured_svs(path, (700, 500), 0.5, texture_px=512, downsamples=(1, 4))
    with tifffile.TiffFile(path) as tiff:
        directories = [page.offset for page in tiff.pages]
    sound, rng, reasons = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(3):
            place = int(rng.choice(directories)) + int(rng.integers(0, 330))
            damaged[min(place, len(sound) - 1)] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        row = count_slide(SlideFile("key", str(path)), TilesConfig(reader="tiff"))
        reasons.add(row.reason)
    assert {"cannot_open", "truncated"} <= reasons


# Dask


@pytest.fixture
def dask_address() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("default")  # Dask's own, while it shuts down
def test_a_dask_cluster_gives_the_same_rows(folder: Path, rows: list[TileCount], dask_address: str) -> None:
    assert count_tiles(cohort(folder), CONFIG, executor=dask_address) == rows


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    pytest.importorskip("distributed", reason="Dask is an extra")
    with pytest.raises(ConfigError, match="no Dask scheduler answers there"):
        count_tiles([SlideFile("a", "x")], CONFIG, executor="nonsense://nowhere:1")


# Real files


@pytest.mark.skipif(not REAL_SLIDES.exists(), reason="needs the real slides in ../shared/data/slides")
def test_real_slides_are_counted_or_refused_with_the_right_reason() -> None:
    expected = {
        "CMU-1-Small-Region.svs": "",
        "boxes.tiff": "no_mpp",
        "small.svs": "too_small",
        "unopenable.tiff": "cannot_open",
        "unreadable.svs": "cannot_read",
        "dicom_camelyon/multiframe_camelyon_challenge_image.dcm": "coarse_scan",
    }
    rows = [count_slide(SlideFile(name, str(REAL_SLIDES / name)), CONFIG) for name in expected]
    assert {row.slide_key: row.reason for row in rows} == expected
    assert rows[0].num_tiles is not None
    assert 55 <= rows[0].num_tiles <= 75  # of 117, by eye on the preview
