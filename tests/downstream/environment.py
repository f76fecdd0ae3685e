"""Other people's software in environments of its own: build/downstream/TOOL, made once and used again.

An environment sees the packages of the project's own one through a .pth file, so that torch (5 GB with CUDA) is not
installed again; what the tool needs in another version is installed on top and found first. It does not see fullslide:
the .pth of an editable install is not followed from there, and scripts run isolated from PYTHONPATH.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "downstream"
KEPT = ("torch", "torchvision")  # never another copy of these
INSTALL_SECONDS, SCRIPT_SECONDS = 1800, 600


def environment(tool: str, *requirements: str) -> Path:
    """The Python interpreter of an environment with `requirements` (as for pip); installs them if they are not there.

    Raises:
        RuntimeError: pip could not install them beside the project's torch; its last lines are in the message.
    """
    folder = ENVIRONMENTS / tool
    python, stamp = folder / "bin" / "python", folder / "made_from.txt"
    shared = sysconfig.get_paths()["purelib"]
    kept = [f"{name}=={version(name)}" for name in KEPT]
    wanted = "\n".join([sys.version, shared, *kept, *requirements]) + "\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(
        folder, with_pip=False, symlinks=True
    )  # the shared packages have a pip, and it installs into this folder
    (packages_of(python) / "shared.pth").write_text(shared + "\n", encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n", encoding="utf-8")
    if requirements:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
        done = subprocess.run(
            [*pip, *requirements], capture_output=True, text=True, timeout=INSTALL_SECONDS, env=_plain()
        )
        if done.returncode != 0:
            raise RuntimeError(f"pip could not install {' '.join(requirements)}:\n{done.stderr[-2000:]}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run_script(
    python: Path, script: Path, *arguments: str | Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script of `tests/downstream/scripts` with the interpreter of an environment, offline and without our packages."""
    command = [str(python), "-I", str(script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SCRIPT_SECONDS, cwd=script.parent, env=_plain()
    )
    if check:
        assert done.returncode == 0, f"{script.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def versions(python: Path, *names: str) -> dict[str, str]:
    """What the environment really imports: distribution name to version."""
    code = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-I", "-c", code, *names], capture_output=True, text=True, check=True, env=_plain())
    found: dict[str, str] = json.loads(done.stdout)
    return found


def packages_of(python: Path) -> Path:
    """The site-packages folder of an environment."""
    return next((python.parents[1] / "lib").glob("python3*")) / "site-packages"


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of all files: a tool must not write into what it reads."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _plain() -> dict[str, str]:
    """The variables of this process without those that would lead Python to our packages or a hub to the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the same kernels as here
