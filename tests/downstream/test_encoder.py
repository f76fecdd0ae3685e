"""The exported encoder in other people's software, each installed from PyPI into an environment of its own.

`make downstream TOOL=timm-oldest` runs one of them, `make downstream` all. The tiles and the slide are invented; what must
come back are the features of the training code. The control for each tool is a copy of the export with another mean: a tool
that did not take its constants from the export would not notice.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluate.export import ExportOptions
from evaluate.export_run import export_run, plan_export
from evaluate.parity import training_features
from ingest.slide import open_slide
from pretrain.config import PretrainConfig
from pretrain.encoder import build_encoder
from pretrain.forward import plain_view
from pretrain.loop import train
from pretrain.start import open_cohort, open_run
from pretrain.trained import open_trained
from tests.downstream.environment import ROOT, environment, folder_digest, run_script, versions
from tests.small_cohort import with_settings, write_small_cohort

pytestmark = [pytest.mark.downstream, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
SCRIPTS = Path(__file__).parent / "scripts"
LAZYSLIDE = "lazyslide==0.13.0"  # an API that moves: the script follows this version
ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Export:
    """An export of a small run, with what to compare on."""

    config: PretrainConfig
    folder: Path
    other_mean: Path
    tiles: Path
    features_KF: NDArray[np.float32]

    def features_of(self, tiles_KHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[K, F] of the training code."""
        encoder = build_encoder(self.config.encoder)
        encoder.load_state_dict(open_trained(self.config.run.folder).parts["encoder"])
        features_KF = training_features(encoder, tiles_KHW3, plain_view(self.config), channels_last=False)
        return np.asarray(features_KF.numpy(), np.float32)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    folder = tmp_path_factory.mktemp("downstream")
    config = with_settings(write_small_cohort(folder), run={"num_epochs": 1}, data={"slides_per_epoch": 0.25},
                           encoder={"name": "resnet18"})  # fmt: skip
    with open_run(config, resume=False) as run:
        train(run)
    options = ExportOptions(torch_export=True)
    exported = export_run(plan_export(config.run.folder, folder / "export", "cc0-1.0", options=options)).folder
    tiles_KHW3 = np.random.default_rng(8).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "tiles.npy", tiles_KHW3)
    other = folder / "other_mean"
    shutil.copytree(exported, other)
    document = json.loads((other / "config.json").read_text())
    document["pretrained_cfg"]["mean"] = [0.7, 0.6, 0.7]
    (other / "config.json").write_text(json.dumps(document))
    made = Export(config, exported, other, folder / "tiles.npy", np.empty(0, np.float32))
    before = folder_digest(exported)
    yield Export(config, exported, other, folder / "tiles.npy", made.features_of(tiles_KHW3))
    assert folder_digest(exported) == before, "a tool wrote into the export"


@pytest.mark.parametrize(
    ("requirements", "script"),
    [
        pytest.param(["timm==1.0.26"], "with_timm.py", id="timm-oldest"),
        pytest.param(["--upgrade", "timm"], "with_timm.py", id="timm-newest"),
        pytest.param(["timm==0.9.12"], "with_early_timm.py", id="timm-early"),
        pytest.param(["timm==1.0.15"], "with_early_timm.py", id="timm-last-early"),
        pytest.param(["--upgrade", "transformers"], "with_transformers.py", id="transformers"),
    ],
)
def test_the_features_are_those_of_the_training_code(
    export: Export, tmp_path: Path, requirements: list[str], script: str, request: pytest.FixtureRequest
) -> None:
    tool = request.node.callspec.id
    python = environment(tool, *requirements)
    run_script(python, SCRIPTS / script, export.folder, export.tiles, tmp_path / "features.npy")
    run_script(python, SCRIPTS / script, export.other_mean, export.tiles, tmp_path / "control.npy")
    found = versions(python, *(name for name in ("timm", "transformers", "torch") if name in f"{tool} timm torch"))
    print(f"{tool}: {found}")
    assert np.array_equal(np.load(tmp_path / "features.npy"), export.features_KF)
    assert relative_difference(np.load(tmp_path / "control.npy"), export.features_KF) > 0.01


def test_lazyslide_gives_the_features_of_the_training_code_for_a_whole_slide(export: Export, tmp_path: Path) -> None:
    python = environment("lazyslide", LAZYSLIDE)
    slide = next(slide for slide in open_cohort(export.config).slides if slide.slide_key == "slide7")
    for folder, name in ((export.folder, "right"), (export.other_mean, "control")):
        run_script(python, SCRIPTS / "with_lazyslide.py", folder, export.tiles, tmp_path / f"{name}.npy", slide.path,
                   tmp_path / f"{name}_slide.npy")  # fmt: skip
    print(f"lazyslide: {versions(python, 'lazyslide', 'wsidata', 'timm')}")
    assert relative_difference(np.load(tmp_path / "right.npy"), export.features_KF) < 1e-5
    assert relative_difference(np.load(tmp_path / "control.npy"), export.features_KF) > 0.01

    rows = np.load(tmp_path / "right_slide.npy")
    columns, lines = rows[:, 0].astype(int) // 32, rows[:, 1].astype(int) // 32
    whole = np.flatnonzero(
        (columns < slide.grid.num_columns) & (lines < slide.grid.num_rows)
    )  # it pads beyond the border
    indices = lines[whole] * slide.grid.num_columns + columns[whole]
    assert sorted(indices) == list(range(20))  # 5 x 4 tiles
    tiles = np.empty((20, 32, 32, 3), np.uint8)
    with open_slide(slide.path) as opened:
        opened.read_tiles(slide.grid, np.arange(20), tiles)
    ours = export.features_of(tiles)[indices]
    assert relative_difference(rows[whole, 2:], ours) < 1e-3  # another JPEG decoder
    assert relative_difference(rows[whole, 2:], np.roll(ours, 1, axis=0)) > 0.01


def test_onnx_made_by_the_command_gives_the_features_in_onnxruntime(export: Export, tmp_path: Path) -> None:
    python = environment("onnx", *ONNX)
    out = tmp_path / "export"
    command = [python, "-m", "evaluate", "export", export.config.run.folder, out, "--license", "cc0-1.0", "--onnx"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parity: encoder.onnx in onnxruntime" in done.stdout
    assert "encoder.onnx in onnxruntime" in (out / "README.md").read_text()
    assert sorted(file.name for file in (out / "program").iterdir()) == ["encoder.onnx"]
    run_script(python, SCRIPTS / "with_onnxruntime.py", out, export.tiles, tmp_path / "features.npy")
    print(f"onnx: {versions(python, *ONNX)}; {done.stdout.strip().splitlines()[-2]}")
    features_KF = np.load(tmp_path / "features.npy")
    assert relative_difference(features_KF, export.features_KF) < 1e-4
    assert relative_difference(features_KF[::-1], export.features_KF) > 0.01


def test_the_torch_program_runs_without_timm(export: Export, tmp_path: Path) -> None:
    python = environment("torch-program")
    run_script(python, SCRIPTS / "with_torch_program.py", export.folder, export.tiles, tmp_path / "features.npy")
    print(f"torch-program: {versions(python, 'torch')}")
    features_KF = np.load(tmp_path / "features.npy")
    assert relative_difference(features_KF, export.features_KF) < 1e-5
    assert relative_difference(features_KF[::-1], export.features_KF) > 0.01


def relative_difference(theirs_KF: NDArray[np.float32], ours_KF: NDArray[np.float32]) -> float:
    """Largest difference as a share of the largest feature."""
    assert theirs_KF.shape == ours_KF.shape
    return float(np.abs(theirs_KF - ours_KF).max() / np.abs(ours_KF).max())


def test_the_environments_do_not_see_fullslide(tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text("import importlib.util as u\nassert u.find_spec('torch')\nassert not u.find_spec('pretrain')\n")
    run_script(environment("torch-program"), script)
    script.write_text("import pretrain\n")
    assert run_script(environment("torch-program"), script, check=False).returncode != 0
