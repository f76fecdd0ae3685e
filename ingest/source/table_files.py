"""Canonical rows from exports: CSV, TSV, Excel, Parquet. Every cell is read as text; every bad row is named.

The csv module, not pandas: pandas fills a short row with missing values without a word, and its fast engine fails on
report text with line breaks.
"""

import csv
import datetime as dt
import io
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import ConfigError, InputError
from ingest.source.cells import BadRow

MAX_CELL_CHARACTERS = 16 * 1024 * 1024  # an RTF report with a picture; above it a quote was never closed
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
FORMATS = (*DELIMITERS, ".xlsx", ".xlsm", ".parquet")
SourceRow: TypeAlias = Sequence[Any] | BadRow


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Header and rows of one file; the rows are read while they are used."""

    header: list[str]
    rows: Iterator[SourceRow]
    close: Callable[[], None]


class UnreadableFile(Exception):  # noqa: N818 - a ledger entry, not a crash
    """The file is not what its name says; `reason` goes to the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def find_files(pattern: str, base_folder: Path, where: str) -> list[Path]:
    """The files that match a glob relative to `base_folder`, sorted.

    Raises:
        InputError: none does.
    """
    path = Path(pattern)
    root, relative = (
        (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (base_folder, pattern)
    )
    found = sorted(file for file in root.glob(relative) if file.is_file())
    if not found:
        raise InputError(f"{where}: no file matches its pattern; the pattern is relative to the configuration file")
    return found


@contextmanager
def open_table_file(
    path: Path, *, delimiter: str | None, quotes: bool, sheet: str | None, encoding: str | None
) -> Iterator[SourceFile]:
    """One export file, closed at the end of the block.

    Raises:
        UnreadableFile: damaged, or empty.
        ConfigError: a kind of file that is not read, or a sheet that is not there.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        opened = _open_delimited(path, delimiter or DELIMITERS[suffix], quotes, encoding)
    elif suffix in (".xlsx", ".xlsm"):
        opened = _open_excel(path, sheet)
    elif suffix == ".parquet":
        opened = _open_parquet(path)
    else:
        raise ConfigError(f"table file of kind {suffix or 'none'}: not read; export one of {', '.join(FORMATS)}")
    try:
        yield opened
    finally:
        opened.close()


def _open_delimited(path: Path, delimiter: str, quotes: bool, encoding: str | None) -> SourceFile:
    if path.stat().st_size == 0:
        raise UnreadableFile("empty_file")
    chosen = _file_encoding(path, encoding)
    lines = _Lines(path, chosen)
    csv.field_size_limit(MAX_CELL_CHARACTERS)  # the module knows one limit for the process
    if quotes:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE)
    try:
        header = next(reader)
    except (csv.Error, StopIteration, UnicodeDecodeError):
        lines.close()
        raise UnreadableFile("bad_header") from None
    return SourceFile(header, _delimited_rows(reader, lines, len(header)), lines.close)


def _delimited_rows(reader: Iterator[list[str]], lines: "_Lines", num_columns: int) -> Iterator[SourceRow]:
    while True:
        lines.start_record()
        try:
            row = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:  # only of UTF-16 and multi-byte encodings: there is no way to find the next row
            yield BadRow("undecodable_rest_of_file", b"")
            return
        except csv.Error:
            row, reason = [], "malformed_row"
        else:
            if not row:
                continue  # a blank line between records
            if len(row) == num_columns:
                yield row
                continue
            reason = "wrong_number_of_columns"
        # An unclosed quote swallows good rows: refuse its first line only and read the others again.
        yield BadRow(reason, lines.take_back_all_but_first().encode("utf-8", "surrogateescape"))


class _Lines:
    """Lines of a text file, of which the last record's can be given back."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._file = path.open(encoding=encoding, errors="surrogateescape", newline="")
        self._waiting: deque[str] = deque()
        self._record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._file.readline()
        if not line:
            raise StopIteration
        self._record.append(line)
        return line

    def start_record(self) -> None:
        self._record = []

    def take_back_all_but_first(self) -> str:
        first, *rest = self._record
        self._waiting.extendleft(reversed(rest))
        return first

    def close(self) -> None:
        self._file.close()


def _file_encoding(path: Path, declared: str | None) -> str:
    """UTF-16 or UTF-8 by its mark, strict UTF-8, else the declared encoding; bad bytes are then refused row by row."""
    with path.open("rb") as file:
        head = file.read(4)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "utf-16"  # "Unicode text" of Excel and SQL Server
        file.seek(0)
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            try:
                while text.read(1 << 20):
                    pass
            except UnicodeDecodeError:
                return declared or "utf-8-sig"
    return "utf-8-sig"


def _open_excel(path: Path, sheet: str | None) -> SourceFile:
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise ConfigError("Excel files need openpyxl: pip install 'fullslide[lis]', or export CSV") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles of the workbook, which are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        raise UnreadableFile("damaged_file") from None
    if sheet is not None and sheet not in book.sheetnames:
        raise ConfigError(f"Excel file: no sheet {sheet!r} among {len(book.sheetnames)}; set sheet")
    page = book[sheet] if sheet is not None else book.worksheets[0]
    rows = page.iter_rows()
    header = next(rows, None)
    if header is None:
        raise UnreadableFile("empty_file")
    names = ["" if cell.value is None else str(cell.value) for cell in header]
    return SourceFile(names, _excel_rows(rows, len(names)), book.close)


def _excel_rows(rows: Iterator[tuple[Any, ...]], num_columns: int) -> Iterator[SourceRow]:
    for cells in rows:
        values = [_excel_value(cell) for cell in cells]
        if all(value is None for value in values):
            continue
        raw = repr(values).encode()
        if any(value is _DAMAGED for value in values):
            yield BadRow("excel_error_value", raw)
        elif any(value is not None for value in values[num_columns:]):
            yield BadRow("wrong_number_of_columns", raw)
        else:
            yield [*values[:num_columns], *[None] * (num_columns - len(values))]


_DAMAGED = object()


def _excel_value(cell: Any) -> object:
    value = cell.value
    if isinstance(value, str) and cell.data_type == "e":
        return _DAMAGED  # #N/A, #REF!
    if isinstance(value, int | float) and re.fullmatch(r"0{2,}", cell.number_format or ""):
        return str(int(value)).zfill(len(cell.number_format))  # shown as 00027670, stored as 27670
    return value


def _open_parquet(path: Path) -> SourceFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):
        raise UnreadableFile("damaged_file") from None
    return SourceFile(list(file.schema_arrow.names), _parquet_rows(file), file.close)


def _parquet_rows(file: pq.ParquetFile) -> Iterator[SourceRow]:
    for batch in file.iter_batches(batch_size=5000):
        columns = [_parquet_column(column) for column in batch.columns]
        yield from zip(*columns, strict=True)


def _parquet_column(column: pa.Array) -> list[object]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return [value if not isinstance(value, dt.time) else str(value) for value in column.to_pylist()]
