"""Files of features as other tools read them: each reader below is written from what the tool's documentation says of its
files, not from our writer.
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from evaluate.feature_layout import (
    FeatureStore,
    geometry_folder,
    is_finished,
    nominal_magnification,
    read_features,
    write_bag,
    write_bags_config,
    write_features,
    write_stamp,
)
from evaluate.tile_blocks import Scan
from ingest.errors import SlideError
from ingest.geometry import TileGrid, pack_mask

# 2,700 x 1,800 px at 0.2528 mpp: tiles of 224 px at 0.5 mpp are 443.04 level-0 pixels, 6 columns x 4 rows.
GRID = TileGrid(width_px=2700, height_px=1800, slide_mpp=0.2528, tile_size_px=224, tile_mpp=0.5)
TISSUE = (0, 1, 8, 23)
COORDS = [[0, 0], [443, 0], [886, 443], [2215, 1329]]  # by hand: floor(index * 443.038 + 0.5)


def scan(key: str = "slide1", tissue: tuple[int, ...] = TISSUE) -> Scan:
    mask = np.isin(np.arange(GRID.num_cells), tissue).reshape(GRID.num_rows, GRID.num_columns)
    return Scan(
        slide_key=key, patient_key="p", path=Path("nowhere.svs"), grid=GRID, mask=pack_mask(mask), num_tiles=len(tissue)
    )


def store(out: Path, dtype: Any = "float16", digest: str = "ab" * 32, **changes: Any) -> FeatureStore:
    values = {"name": "resnet18_abab", "precision": "float32", "num_features": 5, **changes}
    return FeatureStore(folder=geometry_folder(out, 224, 0.5), encoder_sha256=digest, dtype=dtype, **values)


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (len(TISSUE), 5)).astype(np.float32)


def trident_reader(job_folder: Path, encoder: str, slide: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """TRIDENT: `{mag}x_{size}px_{overlap}px_overlap/features_{encoder}/{slide}.h5`; coordinates are level-0 pixels."""
    with h5py.File(job_folder / "20x_224px_0px_overlap" / f"features_{encoder}" / f"{slide}.h5", "r") as file:
        return file["features"][:], file["coords"][:], dict(file["coords"].attrs)


def stamp_reader(path: Path) -> tuple[torch.Tensor, torch.Tensor, float, int]:
    """STAMP 2: `feats`, and `coords` in micrometres if the root says `tile_size_um`; newer writers are refused."""
    with h5py.File(path, "r") as file:
        assert file.attrs.get("feat_type", "tile") == "tile"
        assert "encoder" not in file.attrs  # this attribute marks features of whole slides or patients
        assert tuple(int(part) for part in file.attrs["stamp_version"].split(".")) <= (2, 5, 0)
        size_um, size_px = float(file.attrs["tile_size_um"]), int(file.attrs["tile_size_px"])
        feats, coords = torch.from_numpy(file["feats"][:]).float(), torch.from_numpy(file["coords"][:]).float()
    return feats, coords, size_um, size_px


def clam_reader(path: Path) -> torch.Tensor:
    """CLAM: `pt_files/{slide}.pt` is a tensor that goes into a float32 layer as it is."""
    bag = torch.load(path, weights_only=True)
    assert isinstance(bag, torch.Tensor)
    scores: torch.Tensor = torch.nn.Linear(bag.shape[1], 2)(bag)
    return scores


def test_trident_finds_features_coordinates_and_attributes(tmp_path: Path) -> None:
    write_features(store(tmp_path), scan(), features())
    found, coords, attributes = trident_reader(tmp_path, "resnet18_abab", "slide1")
    assert np.array_equal(found, features().astype(np.float16))
    assert coords.dtype == np.int64
    assert coords.tolist() == COORDS
    assert attributes == {
        "patch_size": 224, "patch_size_level0": 443, "level0_magnification": 40, "target_magnification": 20, "overlap": 0,
        "name": "slide1", "savetodir": "20x_224px_0px_overlap", "level0_width": 2700, "level0_height": 1800,
    }  # fmt: skip


def test_the_patches_file_repeats_the_coordinates_with_their_attributes(tmp_path: Path) -> None:
    write_features(store(tmp_path), scan(), features())
    _, _, attributes = trident_reader(tmp_path, "resnet18_abab", "slide1")
    with h5py.File(tmp_path / "20x_224px_0px_overlap" / "patches" / "slide1_patches.h5", "r") as file:
        assert file["coords"][:].tolist() == COORDS
        assert dict(file["coords"].attrs) == attributes


def test_features_are_contiguous_and_carry_what_made_them_and_no_path(tmp_path: Path) -> None:
    path = write_features(store(tmp_path), scan(), features(), num_damaged=1)
    with h5py.File(path, "r") as file:
        assert file["features"].chunks is None
        assert file["coords"].chunks is None
        attributes = dict(file.attrs)
        texts = [value for item in (file, file["features"], file["coords"]) for value in item.attrs.values()]
    assert attributes["encoder_sha256"] == "ab" * 32
    assert (attributes["mpp"], attributes["tile_px"], attributes["format_version"]) == (0.5, 224, 1)
    assert attributes["stride_px"] == pytest.approx(224 * 0.5 / 0.2528)
    assert attributes["num_damaged_tiles"] == 1
    assert not [text for text in texts if isinstance(text, str) and ("/" in text or "nowhere" in text)]


@pytest.mark.parametrize("link", [True, False])
def test_stamp_reads_micrometres_and_the_same_features(tmp_path: Path, link: bool) -> None:
    at = store(tmp_path)
    write_features(at, scan(), features())
    path = write_stamp(at, scan(), link)
    feats, coords, size_um, size_px = stamp_reader(path)
    assert torch.equal(feats, torch.from_numpy(features().astype(np.float16)).float())
    assert coords.numpy() == pytest.approx(np.array(COORDS) * 0.2528, rel=1e-6)
    assert (size_um, size_px) == (112.0, 224)
    at.features_path("slide1").unlink()
    if link:
        with h5py.File(path, "r") as file, pytest.raises(KeyError):
            file["feats"]
    else:
        assert torch.equal(stamp_reader(path)[0], feats)


def test_stamps_link_still_holds_when_the_whole_folder_has_moved(tmp_path: Path) -> None:
    at = store(tmp_path / "here")
    write_features(at, scan(), features())
    path = write_stamp(at, scan(), link=True)
    (tmp_path / "here").rename(tmp_path / "there")
    feats, *_ = stamp_reader(tmp_path / "there" / path.relative_to(tmp_path / "here"))
    assert torch.equal(feats, torch.from_numpy(features().astype(np.float16)).float())


def test_bags_are_float32_tensors_whatever_is_stored(tmp_path: Path) -> None:
    at = store(tmp_path)
    write_features(at, scan(), features())
    path = write_bag(at, "slide1")
    assert path.parts[-3:] == ("bags_resnet18_abab", "pt_files", "slide1.pt")
    assert clam_reader(path).shape == (4, 2)
    assert torch.equal(torch.load(path, weights_only=True), torch.from_numpy(features().astype(np.float16)).float())
    exact = store(tmp_path / "exact", dtype="float32")
    write_features(exact, scan(), features())
    assert torch.equal(torch.load(write_bag(exact, "slide1"), weights_only=True), torch.from_numpy(features()))


def test_slideflow_finds_the_tile_size_beside_the_bags(tmp_path: Path) -> None:
    at = store(tmp_path)
    write_bags_config(at, 224, 0.5)
    config = json.loads((at.bag_path("x").parent / "bags_config.json").read_text())
    assert config["extractor"]["class"] == "resnet18_abab"
    assert (config["tile_px"], config["tile_um"], config["num_features"], config["normalizer"]) == (224, 112.0, 5, None)


def test_only_a_whole_file_of_the_same_encoder_grid_type_and_precision_counts_as_finished(tmp_path: Path) -> None:
    at = store(tmp_path)
    assert not is_finished(at, scan())
    path = write_features(at, scan(), features())
    assert is_finished(at, scan())
    assert not is_finished(store(tmp_path, digest="cd" * 32), scan())
    assert not is_finished(store(tmp_path, dtype="float32"), scan())
    assert not is_finished(store(tmp_path, precision="bfloat16"), scan())
    assert not is_finished(at, scan(tissue=(0, 1, 8, 22)))  # as many tiles, another one of them
    assert not is_finished(at, scan(tissue=(0, 1)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_finished(at, scan())
    path.write_bytes(whole)
    at.patches_path("slide1").unlink()
    assert not is_finished(at, scan())


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not_finite"), (np.inf, "not_finite"), (70_000.0, "out_of_range")]
)
def test_features_that_cannot_be_stored_are_refused_and_leave_no_file(
    tmp_path: Path, value: float, reason: str
) -> None:
    bad = features()
    bad[2, 3] = value
    with pytest.raises(SlideError) as caught:
        write_features(store(tmp_path), scan(), bad)
    assert caught.value.reason == reason
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    if value == 70_000.0:
        exact = store(tmp_path, dtype="float32")
        write_features(exact, scan(), bad)
        assert read_features(exact, "slide1")[2, 3] == value


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = store(tmp_path)
    path = write_features(at, scan(), features())
    before = path.read_bytes()

    replace = os.replace

    def full_disk(source: Path, target: Path) -> None:
        if target == path:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_features(at, scan(), features(seed=1))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["slide1.h5"]


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.25, 40), (0.2528, 40), (0.2208, 40), (0.499, 20), (0.465, 20), (1.0, 10), (4.0, 2.5), (0.125, 80)],
)
def test_scanners_have_nominal_magnifications(mpp: float, magnification: float) -> None:
    assert nominal_magnification(mpp) == pytest.approx(magnification)


@pytest.mark.parametrize(
    ("size_px", "mpp", "name"),
    [(224, 0.5, "20x_224px_0px_overlap"), (256, 0.25, "40x_256px_0px_overlap"), (50, 4.0, "2.5x_50px_0px_overlap")],
)
def test_the_folder_is_named_as_trident_names_it(size_px: int, mpp: float, name: str) -> None:
    assert geometry_folder(Path("out"), size_px, mpp) == Path("out") / name
