"""The reader process: same tiles as reading directly, and every way it can fail ends in an error that names the slide."""

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.errors import ConfigError, SlideError
from ingest.geometry import TileGrid
from ingest.slide import open_slide
from pretrain.feeder import ReadRequest, SlideFeeder
from tests.slides import damage_tile, write_textured_svs

TILE_PX = 64


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feeder") / "slide.svs"
    write_textured_svs(path, (1_300, 1_100), 0.5, texture_px=512, downsamples=(1,))
    return path


@pytest.fixture(scope="module")
def grid(slide_path: Path) -> TileGrid:
    with open_slide(slide_path) as slide:
        return slide.grid(TILE_PX, 0.5)


@pytest.fixture(scope="module")
def tiles(slide_path: Path, grid: TileGrid) -> NDArray[np.uint8]:
    out = np.empty((grid.num_cells, TILE_PX, TILE_PX, 3), np.uint8)
    with open_slide(slide_path) as slide:
        slide.read_tiles(grid, np.arange(grid.num_cells), out)
    return out


def request(slide_path: Path, grid: TileGrid, indices: NDArray[np.int64], key: str = "S-1") -> ReadRequest:
    return ReadRequest(key, str(slide_path), grid, indices)


def feeder(num_slots: int = 2, tiles_per_slot: int = 400, timeout_seconds: float = 30.0) -> SlideFeeder:
    return SlideFeeder(
        tiles_per_slot=tiles_per_slot, tile_size_px=TILE_PX, num_slots=num_slots, timeout_seconds=timeout_seconds
    )


def is_running(pid: int | None) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slots_hold_the_tiles_of_direct_reading_in_the_order_of_the_requests(
    slide_path: Path, grid: TileGrid, tiles: NDArray[np.uint8]
) -> None:
    runs = np.array_split(np.arange(grid.num_cells), 7)  # more requests than slots: each slot is used again
    with feeder() as source:
        for number, run in enumerate(runs):
            source.submit(request(slide_path, grid, run, f"S-{number}"))
        for number, run in enumerate(runs):
            slot = source.get()
            assert slot.request.slide_key == f"S-{number}"
            assert slot.error is None
            assert slot.report.bad == ()
            assert (slot.tiles == tiles[run]).all()
            assert slot.decode_seconds > 0
            source.release(slot)
        assert source.num_pending == 0


def test_a_slot_keeps_its_tiles_until_it_is_released(
    slide_path: Path, grid: TileGrid, tiles: NDArray[np.uint8]
) -> None:
    with feeder(num_slots=2) as source:
        for first in (0, 50, 100, 150):
            source.submit(request(slide_path, grid, np.arange(first, first + 50)))
        one, two = source.get(), source.get()
        with pytest.raises(RuntimeError, match="every slot is in use; release one first"):
            source.get()
        time.sleep(0.3)
        assert (one.tiles == tiles[:50]).all()
        assert (two.tiles == tiles[50:100]).all()
        source.release(one)
        assert (source.get().tiles == tiles[100:150]).all()
        with pytest.raises(RuntimeError, match="was released before"):
            source.release(one)


def test_the_next_slide_is_read_while_this_one_is_in_use(slide_path: Path, grid: TileGrid) -> None:
    with feeder(num_slots=2) as source:
        for _ in range(2):
            source.submit(request(slide_path, grid, np.arange(300)))
        source.get()
        time.sleep(1.0)  # the trainer works
        started_at = time.monotonic()
        source.get()
        assert time.monotonic() - started_at < 0.1


def test_a_slide_that_cannot_be_read_comes_back_as_an_error_and_the_reader_goes_on(
    slide_path: Path, grid: TileGrid, tmp_path: Path
) -> None:
    other = replace(grid, width_px=grid.width_px + 1)
    with feeder() as source:
        source.submit(request(tmp_path / "missing.svs", grid, np.arange(5), "S-missing"))
        source.submit(request(slide_path, other, np.arange(5), "S-replaced"))
        source.submit(request(slide_path, grid, np.arange(5), "S-good"))
        missing = source.get()
        assert missing.error is not None
        assert (missing.error.reason, len(missing.tiles)) == ("cannot_open", 0)
        assert str(missing.error).startswith("slide S-missing: no such file")
        source.release(missing)
        replaced = source.get()
        assert replaced.error is not None
        assert replaced.error.reason == "changed_file"
        source.release(replaced)
        good = source.get()
        assert good.error is None
        assert len(good.tiles) == 5


def test_damaged_tiles_are_reported_by_their_place_in_the_request(grid: TileGrid, tmp_path: Path) -> None:
    path = tmp_path / "damaged.svs"
    write_textured_svs(path, (1_300, 1_100), 0.5, texture_px=512, downsamples=(1,))
    damage_tile(path, 0, "random")  # tiles 0..3 of the first four rows
    with feeder() as source:
        source.submit(request(path, grid, np.arange(2, 12)))
        slot = source.get()
    assert slot.error is None
    assert slot.report.bad == ((0, "damaged"), (1, "damaged"))


def test_a_killed_reader_raises_with_the_slide_at_once(slide_path: Path, grid: TileGrid) -> None:
    with feeder(timeout_seconds=60.0) as source:
        source.submit(request(slide_path, grid, np.arange(10), "S-first"))
        source.release(source.get())
        assert source.reader_pid is not None
        os.kill(source.reader_pid, signal.SIGSTOP)  # it cannot have answered before it dies
        source.submit(request(slide_path, grid, np.arange(10), "S-killed"))
        os.kill(source.reader_pid, signal.SIGKILL)
        started_at = time.monotonic()
        with pytest.raises(SlideError, match="slide S-killed: the reader process ended with signal SIGKILL") as caught:
            source.get()
        assert time.monotonic() - started_at < 5
        assert caught.value.reason == "reader_died"
        with pytest.raises(SlideError, match="S-killed"):  # and every later call says so
            source.submit(request(slide_path, grid, np.arange(10), "S-next"))


def test_a_slot_that_does_not_come_in_time_raises_with_the_slide(grid: TileGrid, tmp_path: Path) -> None:
    pipe = tmp_path / "hangs.svs"
    os.mkfifo(pipe)  # opening it waits for ever, as a dead network share does
    with feeder(timeout_seconds=1.0) as source:
        pid = source.reader_pid
        source.submit(request(pipe, grid, np.arange(10), "S-hangs"))
        started_at = time.monotonic()
        with pytest.raises(SlideError, match="slide S-hangs: no tiles after 1 s") as caught:
            source.get()
        assert 1 <= time.monotonic() - started_at < 5
        assert caught.value.reason == "reader_timeout"
    assert not is_running(pid)


def test_a_reader_does_not_outlive_its_trainer(slide_path: Path) -> None:
    code = (
        "import os\n"
        "from pretrain.feeder import SlideFeeder\n"
        "if __name__ == '__main__':\n"
        "    source = SlideFeeder(tiles_per_slot=10, tile_size_px=64)\n"
        "    print(source.reader_pid, flush=True)\n"
        "    os._exit(1)\n"  # as a crash of the trainer: nothing is closed
    )
    script = slide_path.with_name("trainer.py")
    script.write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_closing_ends_the_reader_and_frees_the_memory(slide_path: Path, grid: TileGrid) -> None:
    before = mapped_rings()
    source = feeder()
    source.submit(request(slide_path, grid, np.arange(100)))
    pid = source.reader_pid
    assert is_running(pid)
    assert len(mapped_rings() - before) == 1
    source.close()
    assert not is_running(pid)
    del source
    gc.collect()
    assert mapped_rings() <= before


def mapped_rings() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "slide_feeder" in line}


def test_requests_that_do_not_fit_are_refused(slide_path: Path, grid: TileGrid) -> None:
    with feeder(tiles_per_slot=20) as source:
        with pytest.raises(ValueError, match="slide S-1: 21 tiles asked for, a slot holds 20; split the request"):
            source.submit(request(slide_path, grid, np.arange(21)))
        with pytest.raises(ValueError, match="tiles of 128 px, slots of 64 px"):
            source.submit(request(slide_path, replace(grid, tile_size_px=128), np.arange(2)))
        with pytest.raises(RuntimeError, match="no request to get"):
            source.get()


def test_a_ring_larger_than_the_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(ConfigError, match=r"3 slots of 100,000,000 tiles need 3688\.8 GB.*use fewer slots"):
        SlideFeeder(tiles_per_slot=100_000_000, tile_size_px=64)
