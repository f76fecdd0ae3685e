from pathlib import Path

import pytest

from ingest.config import Section, config_digest, load_config, to_toml
from ingest.errors import ConfigError


class Inner(Section):
    size_px: int = 224
    mpp: float = 0.5


class Outer(Section):
    inner: Inner = Inner()
    name: str = "breast"
    kinds: tuple[str, ...] = ()


def write(folder: Path, text: str) -> Path:
    path = folder / "cohort.toml"
    path.write_text(text)
    return path


def test_defaults_are_overruled_by_the_file_and_the_file_by_set(tmp_path: Path) -> None:
    path = write(tmp_path, '[ingest]\nname = "lung"\n[ingest.inner]\nsize_px = 256\nmpp = 1.0\n[pretrain]\nother = 1\n')
    config = load_config(Outer, "ingest", path, ["inner.mpp=0.25", "kinds=['a', 'b']"])
    assert config == Outer(inner=Inner(size_px=256, mpp=0.25), name="lung", kinds=("a", "b"))


def test_a_bare_word_after_set_is_a_string_and_a_toml_trap_stays_text(tmp_path: Path) -> None:
    assert load_config(Outer, "ingest", None, ["name=no"]).name == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ingest.inner]\nsize = 3\n", "inner.size: unknown key; did you mean size_px"),
        ("[ingest]\ninnner = 3\n", "innner: unknown key; did you mean inner"),
        ('[ingest.inner]\nsize_px = "large"\n', "inner.size_px"),
        ("[inner]\nsize_px = 3\n", r"unknown table \[inner\]"),
        ("[ingest\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, "ingest", write(tmp_path, text))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[ingest]\nnme = "x"\n[ingest.inner]\nsize_px = "large"\n')
    with pytest.raises(ConfigError) as fault:
        load_config(Outer, "ingest", path)
    assert "nme" in str(fault.value)
    assert "size_px" in str(fault.value)


@pytest.mark.parametrize("override", ["inner.mpp", "=3", "name.x=3"])
def test_a_broken_override_is_refused(override: str, tmp_path: Path) -> None:
    path = write(tmp_path, '[ingest]\nname = "lung"\n')
    with pytest.raises(ConfigError):
        load_config(Outer, "ingest", path, [override])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Outer, "ingest", tmp_path / "none.toml")


def test_the_resolved_text_reads_back_and_the_digest_covers_every_value(tmp_path: Path) -> None:
    config = Outer(inner=Inner(mpp=0.25))
    assert load_config(Outer, "ingest", write(tmp_path, to_toml("ingest", config))) == config
    assert config_digest(config) != config_digest(Outer())
    assert config_digest(config) == config_digest(Outer(inner=Inner(mpp=0.25)))
