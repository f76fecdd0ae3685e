"""torchmil from PyPI reads the folder that `evaluate features` writes, as the folder of TRIDENT that it expects."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluate.feature_layout import FeatureStore, geometry_folder, write_features
from evaluate.tile_blocks import Scan
from ingest.geometry import TileGrid, pack_mask
from tests.downstream.environment import environment, run_script

pytestmark = pytest.mark.downstream

SCRIPT = Path(__file__).parent / "scripts" / "read_with_torchmil.py"
GRID = TileGrid(width_px=6 * 448 + 10, height_px=4 * 448, slide_mpp=0.25, tile_size_px=224, tile_mpp=0.5)
TISSUE = {"one": (0, 1, 2, 7, 23), "two": (3, 9, 10)}  # rows of 6 cells


def test_features_labels_coordinates_and_neighbours_are_those_that_were_written(tmp_path: Path) -> None:
    python = environment("torchmil", "torchmil==1.0.2")
    store = FeatureStore(folder=geometry_folder(tmp_path, 224, 0.5), name="mine", encoder_sha256="ab" * 32, num_features=8,
                         dtype="float16", precision="float32")  # fmt: skip
    written = {}
    for seed, (name, tissue) in enumerate(TISSUE.items()):
        mask = np.isin(np.arange(24), tissue).reshape(4, 6)
        scan = Scan(
            slide_key=name,
            patient_key="p",
            path=Path("none.svs"),
            grid=GRID,
            mask=pack_mask(mask),
            num_tiles=len(tissue),
        )
        written[name] = np.random.default_rng(seed).normal(size=(len(tissue), 8)).astype(np.float32)
        write_features(store, scan, written[name])
    (tmp_path / "labels.csv").write_text("slide,label\none.svs,1\ntwo.svs,0\n")
    output = run_script(python, SCRIPT, store.folder, "mine", tmp_path / "labels.csv", "448").stdout
    bags = {bag["name"]: bag for bag in json.loads(output.strip().splitlines()[-1])}
    assert {name: bag["Y"] for name, bag in bags.items()} == {"one": [1], "two": [0]}
    for name, bag in bags.items():
        assert bag["dtype"] == "torch.float16"
        assert np.array_equal(np.array(bag["X"], np.float32), written[name].astype(np.float16).astype(np.float32))
        cells = [divmod(index, 6) for index in TISSUE[name]]
        assert bag["coords"] == [[column, row] for row, column in cells]
        neighbours = {
            (i, j)
            for i, (a, b) in enumerate(cells)
            for j, (c, d) in enumerate(cells)
            if i != j and max(abs(a - c), abs(b - d)) == 1
        }
        assert {(i, j) for i, j in bag["edges"] if i != j} == neighbours
        assert np.isfinite(bag["score"])
