import shutil
from pathlib import Path

import pytest
import torch

from ingest.errors import InputError
from pretrain.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint


def parts(value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((3,), value)}, "training": {"step": 7, "auc": 0.5}}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 7, parts(1.5), keep=2)
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded["model"]["weight"], torch.full((3,), 1.5))
    assert loaded["training"] == {"step": 7, "auc": 0.5}


def test_one_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 7, parts(1.5), keep=2)
    file = folder / "model.pt"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"model\.pt is missing or damaged"):
        load_checkpoint(folder)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, parts(1.0), keep=5)
    second = save_checkpoint(tmp_path, 2, parts(2.0), keep=5)
    assert find_checkpoint(tmp_path, "last") == second
    (second / "training.pt").write_bytes(b"cut")
    assert find_checkpoint(tmp_path, "last") == first


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, parts(step), keep=2, best=step == 2)
    left = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step_*"))
    assert left == ["step_00000002", "step_00000004", "step_00000005"]
    assert find_checkpoint(tmp_path, "best") == tmp_path / "checkpoints" / "step_00000002"


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "last") is None
    assert find_checkpoint(tmp_path, "best") is None


def test_a_folder_without_sums_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, parts(1.0), keep=1)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "copy")
