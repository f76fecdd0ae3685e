"""The Dockerfile as text: instructions that exist, sources that exist, locked versions, nothing private. It is not built here."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "pretrain" / "launch" / "Dockerfile"
INSTRUCTIONS = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_every_line_is_an_instruction_and_the_first_names_a_base_with_its_version() -> None:
    found = instructions()
    assert {word for word, _ in found} <= INSTRUCTIONS
    assert found[0] == ("FROM", "python:3.12-slim")


def test_all_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    passed = {
        line[1:] for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert copied == passed
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert not copied & {"manifests", "vault", "runs", ".venv", "tests", "."}


def test_versions_are_locked_and_the_extras_exist() -> None:
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert "-c requirements.lock" in install
    extras = re.search(r"'\.\[([\w,]+)\]'", install)
    assert extras is not None
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) == {"gpu", "lis"} <= set(known)


def test_it_runs_as_a_user_and_starts_modules_that_exist() -> None:
    found = instructions()
    user = [number for number, (word, rest) in enumerate(found) if word == "USER" and rest != "root"]
    entry = [number for number, (word, _) in enumerate(found) if word == "ENTRYPOINT"]
    assert user
    assert user[-1] < entry[0]
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["python", "-m"]
    assert json.loads(dict(found)["CMD"]) == ["pretrain", "doctor"]
