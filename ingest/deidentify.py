"""Pseudonyms, years for dates, and the vault: what identifies a patient stays there and nowhere else.

Two ways to make a key. `random`: drawn, remembered in the crosswalk of the vault; nothing in it derives from the
patient (45 CFR 164.514(c)). `hmac`: HMAC-SHA-256 with a secret; derived, so no Safe Harbor code, but the same on every
machine that has the secret. A plain hash of an MRN falls to trying all 10^8 numbers in minutes and is not offered.
"""

import base64
import hmac
import os
import re
import secrets
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.atomic import atomic_file
from ingest.config import Section
from ingest.errors import ConfigError, InputError
from ingest.scratch import open_scratch

Domain: TypeAlias = Literal["patient", "case", "specimen", "block", "slide", "row", "content"]
MIN_KEY_BYTES = 32
KEY_CHARACTERS = 26  # 128 bits in base32
CROSSWALK_BATCH_ROWS = 8192
CROSSWALK_GROUP_BATCHES = 128  # of a row group: 1,048,576 rows, as pyarrow writes a whole table
CROSSWALK_SCHEMA = pa.schema([(name, pa.string()) for name in ("domain", "identifier", "key")])


class DeidentifyConfig(Section):
    mode: Literal["random", "hmac"] = "random"  # random for data that leaves the site
    key_file: str | None = None  # path of the secret, relative to the configuration; needed for hmac
    key_file_env: str = "FULLSLIDE_KEY_FILE"  # environment variable with the path, when key_file is not given
    dates: Literal["year"] = "year"  # the only form of a date outside the vault


class Pseudonymiser:
    """Keys for identifiers; the same identifier in the same domain has the same key, in another domain another one.

    What was asked for is kept in an SQLite table, the crosswalk: a million cases have several million identifiers.

    Attributes:
        fingerprint: names the secret (hmac) or the way (random) without giving it away; manifests with different
            fingerprints cannot be joined by key.
    """

    def __init__(
        self,
        secret: bytes | None,
        previous: Iterable[pa.RecordBatch] = (),
        *,
        record: bool = True,
        scratch: sqlite3.Connection | None = None,
    ) -> None:
        """Args:
        secret: None draws random keys.
        previous: crosswalk of an earlier run; its keys stay. Without it, random keys are new ones.
        record: False keeps no crosswalk in hmac mode, for cohorts whose crosswalk is written elsewhere.
        scratch: where the crosswalk is kept meanwhile.
        """
        self._secret = secret
        self._record = record or secret is None
        self._rows = scratch if scratch is not None else open_scratch()
        self._rows.execute(
            "CREATE TABLE crosswalk (domain, identifier, key, PRIMARY KEY (domain, identifier)) WITHOUT ROWID"
        )
        for batch in previous:
            columns = (batch.column(name).to_pylist() for name in CROSSWALK_SCHEMA.names)
            self._rows.executemany("INSERT OR REPLACE INTO crosswalk VALUES (?, ?, ?)", zip(*columns, strict=True))
        self.fingerprint = "random" if secret is None else _digest(secret, "fingerprint").hex()[:16]

    def key(self, domain: Domain, *identifiers: str) -> str:
        """26 lower-case characters for one or more identifiers, for example ("specimen", accession, part)."""
        identifier = composite(*identifiers)
        known = self.known(domain, identifier)
        if known is not None:
            return known
        # 128 random bits: among 10^8 keys two are equal with a probability of 10^-23.
        raw = secrets.token_bytes(16) if self._secret is None else _digest(self._secret, f"{domain}|{identifier}")
        key = _base32(raw)
        if self._record:
            self._rows.execute("INSERT INTO crosswalk VALUES (?, ?, ?)", (domain, identifier, key))
        return key

    def known(self, domain: Domain, identifier: str) -> str | None:
        """The key of an identifier that was asked for before, in this run or in an earlier one."""
        query = "SELECT key FROM crosswalk WHERE domain = ? AND identifier = ?"
        row = self._rows.execute(query, (domain, identifier)).fetchone()
        return None if row is None else str(row[0])

    def adopt(self, domain: Domain, identifier: str, key: str) -> None:
        """Give an identifier a key that exists already, for example every MRN of a patient the patient's key."""
        self._rows.execute("INSERT OR REPLACE INTO crosswalk VALUES (?, ?, ?)", (domain, composite(identifier), key))

    def crosswalk(self) -> Iterator[pa.RecordBatch]:
        """domain, identifier, key, sorted, some thousands at a time: for the vault only."""
        cursor = self._rows.execute("SELECT domain, identifier, key FROM crosswalk ORDER BY domain, identifier")
        while rows := cursor.fetchmany(CROSSWALK_BATCH_ROWS):
            arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=CROSSWALK_SCHEMA)


def open_pseudonymiser(
    config: DeidentifyConfig, base_folder: Path, previous: Iterable[pa.RecordBatch] = (),
    scratch: sqlite3.Connection | None = None,
) -> Pseudonymiser:  # fmt: skip
    """The pseudonymiser of a configuration; `previous` and `scratch` as of `Pseudonymiser`.

    Raises:
        ConfigError: hmac without a key file, or a key file that is missing, too short or open to others.
    """
    if config.mode == "random":
        return Pseudonymiser(None, previous, scratch=scratch)
    if config.key_file is not None:
        secret = read_secret(base_folder / config.key_file, "ingest.deidentify.key_file")
        return Pseudonymiser(secret, previous, scratch=scratch)
    path = os.environ.get(config.key_file_env)
    if not path:
        raise ConfigError(
            f"ingest.deidentify.mode = hmac: no key; set ingest.deidentify.key_file or {config.key_file_env} to the path "
            "of a file that `python -m ingest key PATH` made"
        )
    return Pseudonymiser(read_secret(Path(path), f"variable {config.key_file_env}"), previous, scratch=scratch)


def read_secret(path: Path, where: str) -> bytes:
    """The bytes of a key file without its last line break.

    Raises:
        ConfigError: missing, shorter than 32 bytes, no secret, or readable for everybody.
    """
    try:
        secret = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: the key file cannot be read ({type(error).__name__})") from None
    if path.stat().st_mode & stat.S_IRWXO:
        raise ConfigError(
            f"{where}: the key file is open to every user; chmod 600 it, and make a new key if that matters"
        )
    if len(secret) < MIN_KEY_BYTES:
        raise ConfigError(f"{where}: the key has {len(secret)} bytes, at least {MIN_KEY_BYTES} are needed")
    if len(set(secret)) < 8:
        raise ConfigError(f"{where}: the key repeats a few bytes; make one with `python -m ingest key PATH`")
    return secret


def write_new_secret(path: Path) -> None:
    """A new random secret of 32 bytes (64 hexadecimal digits) that only the owner can read; never replaces a file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"key file {path.name}: exists; a replaced key would orphan every manifest made with it"
        ) from None
    except OSError as error:
        raise ConfigError(f"key file {path.name}: cannot be written ({type(error).__name__})") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())


def composite(*identifiers: str) -> str:
    """One text for several identifiers; with lengths, so that ("1", "23") and ("12", "3") differ."""
    if len(identifiers) == 1:
        return identifiers[0]
    return "|".join(f"{len(identifier)}:{identifier}" for identifier in identifiers)


def split_composite(text: str) -> tuple[str, ...]:
    """The identifiers that `composite` put together."""
    found = []
    rest = text
    while match := re.match(r"(\d+):", rest):
        end = match.end() + int(match.group(1))
        found.append(rest[match.end() : end])
        if not rest[end:]:
            return tuple(found)
        rest = rest[end:].removeprefix("|")
    return (text,)


def year_of(text: str | None) -> int | None:
    """The year of a date in ISO, HL7, US or `05-JAN-2023` form; None when the text has no four-digit year."""
    if text is None:
        return None
    text = text.strip()
    match = (
        re.match(r"((?:19|20)\d{2})(?=$|-\d{2}|/\d{1,2}|(?:\d{2})+(?!\d))", text)
        or re.match(r"\d{1,2}[/.-]\d{1,2}[/.-]((?:19|20)\d{2})\b", text)
        or re.match(r"(?i)\d{1,2}[- ][a-z]{3,9}[- ]((?:19|20)\d{2})\b", text)
    )
    return int(match.group(1)) if match else None


def open_vault(path: Path, manifest: Path) -> Path:
    """The vault folder, made with mode 0700.

    Raises:
        ConfigError: vault and manifest lie in each other, or an existing vault is open to others.
    """
    vault, shared = path.resolve(), manifest.resolve()
    if vault == shared or shared in vault.parents or vault in shared.parents:
        raise ConfigError("vault and manifest must be apart: whoever copies the manifest must not copy the vault")
    vault.mkdir(mode=0o700, parents=True, exist_ok=True)
    if vault.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"vault {path.name}: open to other users; chmod 700 it")
    return vault


def write_vault_table(vault: Path, name: str, table: pa.Table) -> Path:
    """`name`.parquet in the vault, mode 0600, whole or not at all."""
    path = vault / f"{name}.parquet"
    with atomic_file(path) as temporary:
        temporary.touch(mode=0o600)
        pq.write_table(table, temporary, compression="zstd")
    return path


def write_crosswalk(vault: Path, pseudonymiser: Pseudonymiser) -> None:
    """`write_vault_table` of the crosswalk, a row group in memory at a time."""
    with atomic_file(vault / "crosswalk.parquet") as temporary:
        temporary.touch(mode=0o600)
        batches = pseudonymiser.crosswalk()
        with pq.ParquetWriter(temporary, CROSSWALK_SCHEMA, compression="zstd") as writer:
            while group := list(islice(batches, CROSSWALK_GROUP_BATCHES)):
                writer.write_table(pa.Table.from_batches(group).combine_chunks())


def read_vault_table(vault: Path, name: str) -> pa.Table | None:
    """A table of the vault, or None when it was never written.

    Raises:
        InputError: the file is damaged.
    """
    path = vault / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError):
        raise InputError(f"vault table {name}: damaged; restore it, or keys and splits cannot be kept") from None


def read_crosswalk(vault: Path) -> Iterator[pa.RecordBatch]:
    """The crosswalk of an earlier run, some thousands of rows at a time; nothing when there was none.

    Raises:
        InputError: the file is damaged.
    """
    path = vault / "crosswalk.parquet"
    if not path.exists():
        return
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=CROSSWALK_BATCH_ROWS)
    except (pa.ArrowInvalid, OSError):
        raise InputError("vault table crosswalk: damaged; restore it, or keys and splits cannot be kept") from None


def _digest(secret: bytes, message: str) -> bytes:
    return hmac.digest(secret, b"fullslide v1|" + message.encode(), "sha256")[:16]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()
