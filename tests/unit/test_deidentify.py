"""Pseudonyms: same in, same out, per domain and secret; the secret is guarded; only years leave."""

import base64
import hashlib
import hmac
import os
import stat
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.deidentify import (
    DeidentifyConfig,
    Pseudonymiser,
    composite,
    open_pseudonymiser,
    open_vault,
    read_crosswalk,
    read_secret,
    read_vault_table,
    split_composite,
    write_crosswalk,
    write_new_secret,
    write_vault_table,
    year_of,
)
from ingest.errors import ConfigError, InputError

SECRET = bytes(range(32))


def test_hmac_key_is_the_truncated_base32_of_hmac_sha256() -> None:
    expected = hmac.new(SECRET, b"fullslide v1|case|S23-1", hashlib.sha256).digest()[:16]
    assert Pseudonymiser(SECRET).key("case", "S23-1") == base64.b32encode(expected).decode().rstrip("=").lower()


def test_keys_differ_by_domain_secret_and_identifier_and_nothing_else() -> None:
    one, other = Pseudonymiser(SECRET), Pseudonymiser(SECRET[::-1])
    keys = [one.key("case", "1"), one.key("slide", "1"), one.key("case", "2"), other.key("case", "1")]
    assert len(set(keys)) == 4
    assert Pseudonymiser(SECRET).key("case", "1") == keys[0]
    assert all(len(key) == 26 and key.isalnum() for key in keys)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=4), st.lists(st.text(max_size=5), min_size=1, max_size=4))
def test_several_identifiers_are_told_apart(one: list[str], other: list[str]) -> None:
    if len(one) > 1 and len(other) > 1:
        assert (composite(*one) == composite(*other)) == (one == other)
        assert split_composite(composite(*one)) == tuple(one)


def test_fingerprint_names_the_secret_without_being_a_key_of_it() -> None:
    assert Pseudonymiser(SECRET).fingerprint == Pseudonymiser(SECRET).fingerprint
    assert Pseudonymiser(SECRET).fingerprint != Pseudonymiser(SECRET[::-1]).fingerprint
    assert Pseudonymiser(None).fingerprint == "random"
    assert SECRET.hex()[:16] not in Pseudonymiser(SECRET).fingerprint


def test_random_keys_derive_from_nothing_and_stay_through_the_crosswalk() -> None:
    first = Pseudonymiser(None)
    keys = {name: first.key("case", name) for name in ("a", "b", "c")}
    assert first.key("case", "a") == keys["a"]
    assert Pseudonymiser(None).key("case", "a") != keys["a"]
    again = Pseudonymiser(None, first.crosswalk())
    assert {name: again.key("case", name) for name in keys} == keys
    assert list(again.crosswalk()) == list(first.crosswalk())


def test_crosswalk_is_sorted_and_holds_adopted_names() -> None:
    pseudonymiser = Pseudonymiser(SECRET)
    key = pseudonymiser.key("patient", "id|2")
    pseudonymiser.adopt("patient", "id|1", key)
    (rows,) = pseudonymiser.crosswalk()
    assert rows["identifier"].to_pylist() == ["id|1", "id|2"]
    assert set(rows["key"].to_pylist()) == {key}
    silent = Pseudonymiser(SECRET, record=False)
    silent.key("case", "S1")
    assert list(silent.crosswalk()) == []


def test_crosswalk_goes_through_the_vault_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.deidentify.CROSSWALK_BATCH_ROWS", 3)
    monkeypatch.setattr("ingest.deidentify.CROSSWALK_GROUP_BATCHES", 2)
    first = Pseudonymiser(None)
    keys = {str(number): first.key("case", str(number)) for number in range(20)}
    vault = open_vault(tmp_path / "vault", tmp_path / "manifest")
    assert list(read_crosswalk(vault)) == []
    write_crosswalk(vault, first)
    assert stat.S_IMODE((vault / "crosswalk.parquet").stat().st_mode) == 0o600
    again = Pseudonymiser(None, read_crosswalk(vault))
    assert {name: again.key("case", name) for name in keys} == keys
    assert again.known("case", "20") is None
    table = read_vault_table(vault, "crosswalk")
    assert table is not None
    assert table["identifier"].to_pylist() == sorted(keys)


def test_new_secret_is_long_random_private_and_never_replaced(tmp_path: Path) -> None:
    write_new_secret(tmp_path / "a.key")
    write_new_secret(tmp_path / "b.key")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert len(read_secret(tmp_path / "a.key", "k")) == 64
    assert read_secret(tmp_path / "a.key", "k") != read_secret(tmp_path / "b.key", "k")
    with pytest.raises(ConfigError, match="would orphan every manifest"):
        write_new_secret(tmp_path / "a.key")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"short", 0o600, "has 5 bytes, at least 32"),
        (b"a" * 40, 0o600, "repeats a few bytes"),
        (bytes(range(48, 90)), 0o644, "open to every user"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_weak_or_open_key_files_are_refused(tmp_path: Path, content: bytes | None, mode: int, message: str) -> None:
    path = tmp_path / "k"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        read_secret(path, "ingest.deidentify.key_file")


def test_secret_comes_from_the_configured_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_new_secret(tmp_path / "a.key")
    expected = Pseudonymiser(read_secret(tmp_path / "a.key", "k")).fingerprint
    named = DeidentifyConfig(mode="hmac", key_file="a.key")
    assert open_pseudonymiser(named, tmp_path).fingerprint == expected
    by_variable = DeidentifyConfig(mode="hmac")
    monkeypatch.setitem(os.environ, "FULLSLIDE_KEY_FILE", str(tmp_path / "a.key"))
    assert open_pseudonymiser(by_variable, Path("/")).fingerprint == expected
    monkeypatch.delenv("FULLSLIDE_KEY_FILE")
    with pytest.raises(ConfigError, match="python -m ingest key PATH"):
        open_pseudonymiser(by_variable, Path("/"))
    assert open_pseudonymiser(DeidentifyConfig(), Path("/")).fingerprint == "random"


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("2023-04-05 10:11:12", 2023), ("20230405101112", 2023), ("200407", 2004), ("2019", 2019), ("4/5/1999", 1999),
        ("05-JAN-2023", 2023), ("5.4.2021", 2021), ("2023/04/05", 2023), ("4/5/99", None), ("unknown", None),
        (None, None), ("", None), ("1850-01-01", None), ("20239", None),
    ],
)  # fmt: skip
def test_only_the_year_is_taken_from_a_date(text: str | None, year: int | None) -> None:
    assert year_of(text) == year


def test_vault_is_private_and_apart_from_the_manifest(tmp_path: Path) -> None:
    vault = open_vault(tmp_path / "vault", tmp_path / "manifest")
    assert stat.S_IMODE(vault.stat().st_mode) == 0o700
    path = write_vault_table(vault, "crosswalk", pa.table({"key": ["a"]}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_vault_table(vault, "crosswalk") == pa.table({"key": ["a"]})
    assert read_vault_table(vault, "absent") is None
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="vault table crosswalk: damaged"):
        read_vault_table(vault, "crosswalk")
    with pytest.raises(InputError, match="vault table crosswalk: damaged"):
        list(read_crosswalk(vault))
    for inside in ("manifest", "manifest/vault"):
        with pytest.raises(ConfigError, match="must be apart"):
            open_vault(tmp_path / inside, tmp_path / "manifest")
    with pytest.raises(ConfigError, match="must be apart"):
        open_vault(tmp_path / "vault", tmp_path / "vault" / "manifest")
    vault.chmod(0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        open_vault(tmp_path / "vault", tmp_path / "manifest")
