from pathlib import Path

import pytest

from ingest.atomic import atomic_file, atomic_folder, recover_folder


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "manifest"
    for text in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / f"{text}.txt").write_text(text)
    assert [file.name for file in folder.iterdir()] == ["second.txt"]
    with pytest.raises(RuntimeError, match="half way"):
        fill_half(folder)
    assert [file.name for file in folder.iterdir()] == ["second.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["manifest"]


def write_half(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")


def fill_half(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "third.txt").write_text("third")
        raise RuntimeError("half way")


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "manifest"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    folder.rename(tmp_path / ".manifest.old")  # where a kill would leave it
    recover_folder(folder)
    assert (folder / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["manifest"]
