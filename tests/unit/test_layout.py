"""The house: imports point one way, ingest and every --help run without torch, and `evaluate` is ours."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "ingest": {"pretrain", "evaluate", "torch", "torchvision", "timm", "tests"},
    "pretrain": {"evaluate", "tests"},
    "evaluate": {"tests"},
}


def imported_packages(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import; imports are absolute here"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        (str(file.relative_to(ROOT)), name)
        for file in files
        for name in imported_packages(file)
        if name in FORBIDDEN[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_help_needs_neither_torch_nor_pandas(package: str) -> None:
    code = (
        f"import sys; sys.argv = ['{package}', '--help']\n"
        f"from {package}.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_package_evaluate_is_ours_and_not_the_one_of_hugging_face() -> None:
    import evaluate

    assert getattr(evaluate, "__distribution__", None) == "fullslide", (
        "the package `evaluate` of Hugging Face overwrote ours: give fullslide an environment of its own "
        "(pip uninstall evaluate, then pip install --force-reinstall --no-deps fullslide)"
    )


def test_no_file_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils.py", "util.py", "common.py", "base.py", "helpers.py", "misc.py"}
    assert [str(file) for package in FORBIDDEN for file in (ROOT / package).rglob("*.py") if file.name in drawers] == []
