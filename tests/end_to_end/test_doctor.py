"""`pretrain doctor` on this machine, and on machines where something is really missing, damaged or too small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.svs import write_svs
from pretrain.doctor.software import MARK

ROOT = Path(__file__).parents[2]
# Python runs a module of this name at its start: here it makes modules unavailable as if they were not installed.
BLOCKER = """
import os, sys
from importlib.abc import MetaPathFinder
class Blocker(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in os.environ["BLOCKED"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def doctor(*options: str | Path, **environment: str) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    done = subprocess.run([sys.executable, "-m", "pretrain", "doctor", "--json", *map(str, options)], cwd=ROOT,
                          env=os.environ | environment, capture_output=True, text=True, timeout=600)  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    return done.returncode, summary, {finding["name"]: finding for finding in summary["findings"]}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    for number in range(3):
        write_svs(folder / f"{number}.svs", pixels, mpp=0.5, quality=95, subsampling="444", downsamples=(1,))
    (folder / "2.svs").write_bytes((folder / "2.svs").read_bytes()[:100_000])
    return folder


def test_a_machine_that_runs_these_tests_has_no_problem(slides: Path) -> None:
    options = (
        "--min-ram-gib",
        "0.1",
        "--min-open-files",
        "100",
        "--min-mb-per-second",
        "0.01",
        "--min-shm-gib",
        "0.01",
    )
    code, summary, findings = doctor(slides / "0.svs", "--folder", slides, *options)
    assert code == 0, summary
    assert summary["problem"] == 0
    assert summary["ok"] + summary["warning"] == len(summary["findings"])
    assert findings["evaluate"]["what"] == "is the package of fullslide"
    assert "3,000 x 2,000 px at 0.5 mpp" in findings["slide 1"]["what"]
    assert "MB/s in one thread" in findings["reading"]["what"]
    for name in ("torch", "gloo", "reader tiff", "reader openslide"):
        assert findings[name]["verdict"] == "ok"
    assert str(slides.parent) not in json.dumps(summary)


def test_what_is_missing_damaged_or_too_small_is_told_with_what_to_fix(slides: Path, tmp_path: Path) -> None:
    """Everything at once, because a start takes seconds: two modules, a cut slide, limits, and the other package evaluate."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    theirs = tmp_path / "evaluate-0.4.6.dist-info"
    theirs.mkdir()
    (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: evaluate\nVersion: 0.4.6\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    options = (
        "--min-shm-gib",
        "1e6",
        "--min-ram-gib",
        "1e6",
        "--min-open-files",
        str(2**62),
        "--min-mb-per-second",
        "1e9",
    )
    code, summary, findings = doctor("--folder", slides, *options, PYTHONPATH=path, BLOCKED="simplejpeg,cucim")
    assert code == 1
    problems = {name for name, finding in findings.items() if finding["verdict"] == "problem"}
    assert {"simplejpeg", "readers", "evaluate", "reading", "/dev/shm", "memory", "open files"} <= problems
    assert "No module named 'simplejpeg'" in findings["simplejpeg"]["what"]
    assert "pip install" in findings["simplejpeg"]["fix"]
    assert "Hugging Face's package evaluate 0.4.6" in findings["evaluate"]["what"]
    assert "--shm-size" in findings["/dev/shm"]["fix"]
    assert findings["gloo"]["verdict"] == "ok", "what does not depend on the missing modules is still looked at"
    assert all(findings[name]["fix"] for name in problems)
    assert summary["problem"] == len(problems)


def test_without_torch_the_rest_is_still_told(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code, _, findings = doctor(slides / "2.svs", slides / "0.svs", PYTHONPATH=path, BLOCKED="torch")
    assert code == 1
    assert "truncated" in findings["slide 1"]["what"]
    assert findings["slide 2"]["verdict"] == "ok"
    for name in ("torch", "timm", "devices", "communication", "slide 1"):
        assert findings[name]["verdict"] == "problem"
    assert findings["reader tiff"]["verdict"] == "ok"
    assert findings["open files"]["what"].startswith("limit")


def test_the_mark_that_tells_our_package_evaluate_is_in_it() -> None:
    assert MARK in (ROOT / "evaluate" / "__init__.py").read_text()
