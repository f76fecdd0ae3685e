"""Is what we need installed, does it load, and is `evaluate` ours?"""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from pretrain.doctor.finding import REINSTALL, Finding, Wanted

# Distributions whose module has another name.
MODULES = {
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
    "openslide-python": "openslide",
    "tomli-w": "tomli_w",
}
NO_MODULE = {"openslide-bin"}  # only a library, loaded by openslide
OPTIONAL = ("cucim-cu13", "cucim-cu12", "distributed", "psycopg", "striprtf", "openpyxl")
MARK = '__distribution__ = "fullslide"'  # in our package evaluate


def packages(wanted: Wanted) -> Iterator[Finding]:
    try:
        requirements = importlib.metadata.requires("fullslide") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "fullslide", "problem", "not installed in this environment", f"in the folder of pyproject.toml: {REINSTALL}"
        )
        return
    yield Finding("fullslide", "ok", importlib.metadata.version("fullslide"))
    for requirement in requirements:
        found = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if found and "extra ==" not in requirement:
            yield _package(found[1], found[2])
    extras = ", ".join(f"{name} {version}" for name in OPTIONAL if (version := installed_version(name)))
    yield Finding("extras", "ok", extras or "none installed (gpu, lis, dask)")


def evaluate_clash(wanted: Wanted) -> Iterator[Finding]:
    """Hugging Face's `evaluate` writes its files over ours; looked up without importing either."""
    fix = "pip uninstall evaluate, then install fullslide again, in an environment of its own"
    spec = importlib.util.find_spec("evaluate")
    ours = spec is not None and spec.origin is not None and MARK in Path(spec.origin).read_text(encoding="utf-8")
    try:
        version = importlib.metadata.version("evaluate")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if version:
        yield Finding("evaluate", "problem", f"Hugging Face's package evaluate {version} is installed beside ours", fix)
    elif not ours:
        yield Finding("evaluate", "problem", "`import evaluate` does not find the package of fullslide", fix)
    else:
        yield Finding("evaluate", "ok", "is the package of fullslide")


def _package(name: str, least: str) -> Finding:
    fix = f"{REINSTALL}, or pip install '{name}>={least}'"
    try:
        version = importlib.metadata.version(name)
        if name not in NO_MODULE:
            importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "problem", "not installed", fix)
    except (ImportError, OSError) as error:  # a wheel for another system, a library that is missing
        return Finding(name, "problem", f"{version} is installed but does not load: {error}", fix)
    if _numbers(version) < _numbers(least):
        return Finding(name, "problem", f"{version}, needed is {least} or newer", fix)
    return Finding(name, "ok", version)


def installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
