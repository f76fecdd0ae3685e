"""One cell or one row of a source, whatever its type, to canonical text; what cannot be kept exactly is refused.

A refusal is a `RowFault` with a reason code; it never carries the value.
"""

import datetime as dt
import decimal
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

from ingest.errors import ConfigError, InputError
from ingest.source.canonical import COLUMNS, FREE_TEXT, REQUIRED, TableName

Cells: TypeAlias = tuple[str | None, ...]
VERSION_DIGITS = 14  # of a message time 20231231235959
MAX_EXACT_FLOAT = 2**53  # an identifier that a spreadsheet kept as a number lost digits above this


class RowFault(Exception):  # noqa: N818 - a ledger entry, not an error of the program
    """This row cannot be used; `reason` is the code for the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not even be taken apart; `raw` is hashed for the ledger and never shown."""

    reason: str
    raw: bytes


def cell_text(value: object, encoding: str | None) -> str | None:
    """The value as text, without loss; null and NaN are None.

    Raises:
        RowFault: undecodable bytes, a lone surrogate, a NUL character, or a type that has no exact text.
    """
    match value:
        case None:
            return None
        case str():
            return _checked(value)
        case bytes() | bytearray() | memoryview():
            return _checked(decode(bytes(value), encoding))
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return None
            if abs(value) > MAX_EXACT_FLOAT:
                raise RowFault("number_too_long")
            return str(int(value)) if value.is_integer() else repr(value)
        case decimal.Decimal():
            if value.is_nan():
                return None
            return str(int(value)) if value == value.to_integral_value() else str(value)
        case dt.datetime() | dt.date():
            return str(value)
        case uuid.UUID():
            return str(value)
        case _:
            raise RowFault("unsupported_type")


def decode(raw: bytes, encoding: str | None) -> str:
    """Strict UTF-8, else the declared encoding, else refused: guessing a charset puts wrong letters into reports."""
    for candidate in ("utf-8", encoding):
        if candidate is None:
            continue
        try:
            return raw.decode(candidate)
        except UnicodeDecodeError:
            continue
    raise RowFault("undecodable")


def check_encoding(encoding: str | None) -> None:
    if encoding is not None:
        try:
            "".encode(encoding)
        except LookupError:
            raise ConfigError(f"ingest.source.encoding = {encoding!r}: no such encoding; for example cp1252") from None


def clean_identifier(text: str) -> str:
    """Outer white space off, inner runs of it to one space.

    Raises:
        RowFault: a control character inside, which would make two spellings of one number.
    """
    cleaned = " ".join(text.split())
    if not cleaned.isprintable():
        raise RowFault("control_character")
    return cleaned


def normal_accession(accession: str, pattern: re.Pattern[str] | None) -> str:
    """Upper case, one space for many; with named groups cls, yy and num in `pattern`, `cls + yy + "-" + num` without
    padding zeros, so that S23-00017 and S23-17 are one case.

    Raises:
        RowFault: `pattern` is given and does not match.
    """
    accession = clean_identifier(accession).upper()
    if pattern is None:
        return accession
    match = pattern.fullmatch(accession)
    if match is None:
        raise RowFault("bad_accession")
    found = match.groupdict()
    if {"cls", "yy", "num"} <= found.keys():
        return f"{found['cls']}{found['yy']}-{int(found['num'])}"
    return accession


def row_digest(cells: Sequence[object]) -> bytes:
    """128 bits over the content of a row; NUL cannot occur in a cell, so the join is unambiguous."""
    text = "\0".join("\1" if cell is None else str(cell) for cell in cells)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def row_mapper(
    table: TableName,
    header: Sequence[str],
    columns: Mapping[str, str],
    values: Mapping[str, Mapping[str, str]],
    *,
    encoding: str | None,
    null_values: frozenset[str],
    accession_pattern: re.Pattern[str] | None,
    where: str,
) -> Callable[[Sequence[Any]], Cells]:
    """A function from one source row to the canonical cells of `table`, in column order.

    Args:
        columns: canonical column -> source column, or `=constant`. What is not listed is looked up by its own name.
            Names are compared without regard to case, because databases fold them.
        values: canonical column -> source value -> canonical value; values not listed stay.
        where: what to call this source in an error.
    Raises:
        InputError: a required or named column is not in `header`.
    """
    position = {str(name).strip().casefold(): index for index, name in enumerate(header)}
    for column in (*columns, *values):
        if column not in COLUMNS[table]:
            raise ConfigError(f"{where}: no column {column!r}; {table} has {', '.join(COLUMNS[table])}")
    picks: list[int | str | None] = []
    for column in COLUMNS[table]:
        source = columns.get(column, column)
        if source.startswith("="):
            picks.append(source[1:])
        elif source.casefold() in position:
            picks.append(position[source.casefold()])
        elif column in columns or column in REQUIRED[table]:
            raise InputError(
                f"{where}: column {source!r} is missing among {len(header)} columns; name it in columns.{column}, "
                "or check the delimiter"
            )
        else:
            picks.append(None)
    required = tuple((COLUMNS[table].index(column), column) for column in REQUIRED[table])
    line_at = COLUMNS[table].index("line") if table == "reports" else None
    version_at = COLUMNS[table].index("version") if table == "reports" else None
    identifying = [column not in FREE_TEXT for column in COLUMNS[table]]
    undated = [
        column not in FREE_TEXT and column != "version" and not column.endswith("_at") for column in COLUMNS[table]
    ]
    translate = [values.get(column) for column in COLUMNS[table]]
    accession_at = COLUMNS[table].index("accession") if "accession" in COLUMNS[table] else None

    def to_cells(row: Sequence[Any]) -> Cells:
        cells: list[str | None] = []
        for pick, is_identifier, may_not_be_date, translation in zip(
            picks, identifying, undated, translate, strict=True
        ):
            if pick is None:
                cells.append(None)
                continue
            value = pick if isinstance(pick, str) else row[pick]
            if may_not_be_date and isinstance(value, dt.date):
                raise RowFault("date_in_identifier")  # a spreadsheet took 12-03 for a day
            text = cell_text(value, encoding)
            if text is not None and (is_identifier or not text.strip()):
                text = clean_identifier(text)
            if text is not None and translation is not None:
                text = translation.get(text, text)
            cells.append(None if not text or text in null_values else text)
        if line_at is not None and cells[line_at] is not None and cells[line_at + 1] is None:
            cells[line_at + 1] = ""  # an empty line of a report that is stored line by line
        if version_at is not None and (version := cells[version_at]) is not None and version.isdecimal():
            cells[version_at] = version.zfill(VERSION_DIGITS)  # so that 2 sorts before 10, beside message times
        for index, column in required:
            if cells[index] is None:
                raise RowFault(f"missing_{column}")
        if accession_at is not None and (accession := cells[accession_at]) is not None:
            cells[accession_at] = normal_accession(accession, accession_pattern)
        return tuple(cells)

    return to_cells


def _checked(text: str) -> str:
    if "\0" in text:
        raise RowFault("nul_character")
    try:
        text.encode()
    except UnicodeEncodeError:  # a byte that the file's encoding does not have
        raise RowFault("undecodable") from None
    return text
