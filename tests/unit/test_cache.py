"""The cache of decoded tiles: what comes back is what was stored, or nothing; and it never takes more than its budget."""

import fcntl
import os
import threading
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.geometry import TileGrid
from pretrain.cache import STALE_SECONDS, TileCache, cache_key

GRID = TileGrid(width_px=640, height_px=640, slide_mpp=0.5, tile_size_px=64, tile_mpp=0.5)
GENEROUS = 2**30


def tiles_of(seed: int, num_tiles: int = 2, size_px: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_tiles, size_px, size_px, 3), dtype=np.uint8)


def fetched(cache: TileCache, key: str, like: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    out = np.zeros_like(like)
    return out if cache.fetch(key, out) else None


def test_what_was_stored_comes_back_and_nothing_else_is_found(tmp_path: Path) -> None:
    cache, tiles = TileCache(tmp_path / "cache", GENEROUS), tiles_of(1)
    cache.store("a", tiles)
    found = fetched(cache, "a", tiles)
    assert found is not None
    assert np.array_equal(found, tiles)
    assert fetched(cache, "b", tiles) is None
    assert oct((tmp_path / "cache").stat().st_mode)[-3:] == "700"  # pixels of patients


@pytest.mark.parametrize("damage", ["pixel", "header", "cut", "longer", "empty", "number"])
def test_a_damaged_file_is_not_believed_and_makes_room_for_a_new_one(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cache, tiles = TileCache(tmp_path, GENEROUS), tiles_of(1)
    cache.store("a", tiles)
    file = tmp_path / "a.tiles"
    content = bytearray(file.read_bytes())
    if damage in ("pixel", "header"):
        content[-5 if damage == "pixel" else 12] ^= 1
    cut = {"cut": bytes(content[:-7]), "longer": bytes(content) + b"0", "empty": b"", "number": b"3\n"}
    file.write_bytes(cut.get(damage, bytes(content)))
    assert fetched(cache, "a", tiles) is None
    assert "damaged; deleted and decoded again" in capfd.readouterr().err
    assert not file.exists()
    cache.store("a", tiles)
    assert fetched(cache, "a", tiles) is not None


def test_tiles_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    cache = TileCache(tmp_path, GENEROUS)
    cache.store("a", tiles_of(1, num_tiles=4, size_px=16))
    assert fetched(cache, "a", tiles_of(1, num_tiles=1, size_px=32)) is None  # as many bytes


def test_at_the_budget_it_keeps_what_it_has_and_takes_no_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiles = tiles_of(1)  # 1,536 bytes and a header
    cache = TileCache(tmp_path, 3_500)
    for key in "abcd":
        cache.store(key, tiles)
    assert [key for key in "abcd" if fetched(cache, key, tiles) is not None] == ["a", "b"]
    assert capfd.readouterr().err.count("takes no more") == 1


def write_many(folder: str, budget_bytes: int, offset: int) -> None:
    cache = TileCache(Path(folder), budget_bytes)
    for number in range(40):
        seed = (number + offset) % 40
        out = np.zeros_like(tiles_of(seed))
        if cache.fetch(f"{seed:02d}", out):
            assert np.array_equal(out, tiles_of(seed))
        else:
            cache.store(f"{seed:02d}", tiles_of(seed))


def test_four_processes_share_a_folder_and_its_budget(tmp_path: Path) -> None:
    budget_bytes = 30 * 1_600
    context = get_context("spawn")
    workers = [context.Process(target=write_many, args=(str(tmp_path), budget_bytes, 10 * n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    files = sorted(tmp_path.glob("*.tiles"))
    assert sum(file.stat().st_size for file in files) <= budget_bytes
    assert len(files) == budget_bytes // files[0].stat().st_size  # full, and no room was lost
    cache = TileCache(tmp_path, budget_bytes)
    for file in files:
        found = fetched(cache, file.stem, tiles_of(0))
        assert found is not None
        assert np.array_equal(found, tiles_of(int(file.stem)))
    assert list(tmp_path.glob(".*.tmp")) == []


def test_no_process_takes_room_while_another_one_counts_it(tmp_path: Path) -> None:
    cache, tiles = TileCache(tmp_path, GENEROUS), tiles_of(1)
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = threading.Thread(target=cache.store, args=("a", tiles))
        writer.start()
        writer.join(0.3)
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    writer.join()
    assert fetched(cache, "a", tiles) is not None


def test_what_a_killed_writer_left_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.1.tmp", tmp_path / ".b.2.tmp"
    for file in (old, fresh):
        file.write_bytes(b"half")
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    TileCache(tmp_path, GENEROUS)
    assert not old.exists()
    assert fresh.exists()


def test_the_key_changes_with_all_that_decides_the_pixels(tmp_path: Path) -> None:
    slide, indices = tmp_path / "slide.svs", np.arange(5)
    slide.write_bytes(b"one")
    os.utime(slide, ns=(1, 1))
    first = cache_key("S-1", slide, GRID, indices, "auto")
    others = {
        cache_key("S-2", slide, GRID, indices, "auto"), cache_key("S-1", slide, GRID, indices[1:], "auto"),
        cache_key("S-1", slide, replace(GRID, tile_mpp=1.0), indices, "auto"),
        cache_key("S-1", slide, GRID, indices, "openslide"),
    }  # fmt: skip
    assert cache_key("S-1", slide, GRID, indices, "auto") == first
    os.utime(slide, ns=(2, 2))
    others.add(cache_key("S-1", slide, GRID, indices, "auto"))
    slide.write_bytes(b"other")
    os.utime(slide, ns=(1, 1))
    others.add(cache_key("S-1", slide, GRID, indices, "auto"))
    assert len(others) == 6
    assert first not in others
    assert cache_key("S-1", tmp_path / "missing.svs", GRID, indices, "auto") is None
