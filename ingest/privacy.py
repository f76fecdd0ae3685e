"""The last look before publishing: does any file or log hold something that identifies a patient?

Two nets. Exact: every MRN and accession of the vault is searched for. By form: dates, e-mail addresses, phone numbers,
paths, credentials, columns whose name or type says what they are. A finding names file, place and kind, never the value.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from ingest.config import Regex, Section
from ingest.deidentify import split_composite
from ingest.errors import PrivacyError

TOKEN = re.compile(r"[^\s\"'`,;()<>\[\]{}=|]+")
INNER = re.compile(r"[:/\\_;#.]+")  # an accession inside a file name: S23-17;A1;HE.svs
MAX_HYPHENATED = 6  # pieces of one word that are tried in every run
KEY_SHAPE = "^[a-z2-7]{26}$"  # our own pseudonyms
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_YEAR, _MM, _DD = r"(?:19|20)\d{2}", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
FORMS: Mapping[str, re.Pattern[str]] = {
    "date": re.compile(
        rf"(?<![\w-]){_YEAR}-{_MM}-{_DD}(?!\d)"
        rf"|(?<![\w/.])(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])/(?:{_YEAR}|\d{{2}})(?![\w/])"
        rf"|(?<![\w.])(?:0?[1-9]|[12]\d|3[01])\.(?:0?[1-9]|1[0-2])\.{_YEAR}(?!\w)"
        rf"|(?<![\w.-]){_YEAR}{_MM}{_DD}(?:\d{{4}}|\d{{6}})?(?![\w.-])"
        rf"|(?<!\w)\d{{1,2}}[ -]{_MONTH}[ -](?:{_YEAR}|\d{{2}})(?!\w)"
        rf"|(?<!\w){_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? {_YEAR}(?!\w)",
        re.IGNORECASE,
    ),
    "email": re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", re.IGNORECASE),
    "phone": re.compile(r"(?<![\w.-])(?:\+?1[ .-])?\(?\d{3}\)?[ .-]\d{3}[.-]\d{4}(?![\w.-])"),
    "social_security": re.compile(r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w.-])"),
    "absolute_path": re.compile(r"(?<![\w.:/<])/(?!/)[^\s/\"'<>]+/[^\s\"'<>]*|(?<!\w)[A-Za-z]:\\\w|(?<!\\)\\\\\w+\\\w"),
    "credentials": re.compile(r"\w+://[^\s/:@]+:[^\s/@]+@"),
    "record_number": re.compile(
        r"\b(?:MRN|(?:medical record|accession) (?:no|number))\W{0,3}[a-z]{0,3}\d{3}", re.IGNORECASE
    ),
}
IDENTIFYING_COLUMN = re.compile(
    r"(?:^|_)(?:mrn|medrec|accession|birth|dob|ssn|address|phone|email|barcode|filename|path|report_text|free_text|"
    r"(?:patient|first|last|full|file)_?name)(?:$|_)",
    re.IGNORECASE,
)
MAX_CELL_CHARACTERS = 200  # of a Parquet cell; anything longer is prose, and prose of a report has no place here
LOG_TIME = re.compile(rf"^\W?{_YEAR}-{_MM}-{_DD}[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?")
TEXT_SUFFIXES = frozenset({".md", ".txt", ".log", ".csv", ".tsv", ".toml", ".html", ".yaml", ".yml", ".sql", ""})


class PrivacyConfig(Section):
    accession_pattern: Regex | None = None  # regex of this site's accessions; found anywhere is a leak
    min_identifier_length: int = Field(default=5, ge=3)  # shorter ones ("A", "17") would be found in any text
    allowed_date_keys: tuple[str, ...] = (
        "created_at",
        "snapshot_at",
        "started_at",
        "finished_at",
    )  # of files, not people


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Leak:
    """One place that would identify a patient: a file of the folder, where in it, what kind, how often."""

    file: str
    place: str
    kind: str
    count: int


class Names:
    """Whether a name is one of many, at 8 bytes a name: a million cases bring several million.

    Only a 64-bit hash of each is kept. That a name which is none is taken for one happens once in 10^12 questions among
    10^7 names, and would refuse to publish, not leak.
    """

    def __init__(self, hashes: "array[int]") -> None:
        self._hashes = np.unique(np.frombuffer(hashes, np.int64))

    def __contains__(self, name: str) -> bool:
        wanted = hash(name)
        position = int(np.searchsorted(self._hashes, wanted))
        return position < len(self._hashes) and int(self._hashes[position]) == wanted


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What must not be found: names of one word, names of several, and forms. Make it with `identifier_index`."""

    single: Names = field(repr=False)
    several_words: Names = field(repr=False)
    max_words: int
    forms: Mapping[str, re.Pattern[str]]


def identifier_index(identifiers: Iterable[str], config: PrivacyConfig) -> Identifiers:
    """Identifiers ready to be searched for, each also without padding zeros; too short ones are left out."""
    single, several = array("q"), array("q")  # hashes
    longest = 1
    for identifier in identifiers:
        name = " ".join(identifier.split()).casefold()
        for form in {name, name.lstrip("0")}:
            if len(form) >= config.min_identifier_length:
                (several if " " in form else single).append(hash(form))
                longest = max(longest, form.count(" ") + 1)
    forms = dict(FORMS)
    if config.accession_pattern is not None:
        forms["accession"] = re.compile(rf"(?<!\w)(?:{config.accession_pattern})(?!\w)", re.IGNORECASE)
    return Identifiers(Names(single), Names(several), longest, forms)


def crosswalk_identifiers(crosswalk: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """Every MRN, accession, block and slide name in a crosswalk (columns domain, identifier)."""
    for batch in crosswalk:
        for domain, identifier in zip(batch["domain"].to_pylist(), batch["identifier"].to_pylist(), strict=True):
            if domain == "patient":
                yield identifier.rsplit("|", 1)[-1]  # mrn|ISSUER|27670
            elif domain not in ("row", "content"):
                yield from split_composite(identifier)


def find_leaks(text: str, identifiers: Identifiers) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of everything in `text` that identifies; the spans may overlap."""
    for kind, form in identifiers.forms.items():
        for match in form.finditer(text):
            yield kind, match.start(), match.end()
    words = list(TOKEN.finditer(text))
    for index, word in enumerate(words):
        for start, end in _spans(word.group()):
            if word.group()[start:end].casefold() in identifiers.single:
                yield "identifier", word.start() + start, word.start() + end
        for last in range(index + 1, min(index + identifiers.max_words, len(words))):
            joined = " ".join(other.group() for other in words[index : last + 1])
            if joined.strip(".:").casefold() in identifiers.several_words:
                yield "identifier", word.start(), words[last].end()


def lint_folder(folder: Path, identifiers: Identifiers, config: PrivacyConfig) -> tuple[Leak, ...]:
    """Leaks in every file of a folder, however deep, sorted."""
    leaks: list[Leak] = []
    for number, path in enumerate(sorted(file for file in folder.rglob("*") if file.is_file()), start=1):
        name = str(path.relative_to(folder))
        if any(find_leaks(name, identifiers)):
            name = f"file {number}"
            leaks.append(Leak(file=name, place="file name", kind="identifier", count=1))
        found: Counter[tuple[str, str]] = Counter(_lint_file(path, identifiers, config))
        leaks += [Leak(file=name, place=place, kind=kind, count=count) for (place, kind), count in found.items()]
    return tuple(sorted(leaks))


def require_clean(folder: Path, identifiers: Identifiers, config: PrivacyConfig) -> None:
    """Raises:
    PrivacyError: something in `folder` identifies a patient; names files, places and kinds.
    """
    leaks = lint_folder(folder, identifiers, config)
    if leaks:
        shown = "; ".join(f"{leak.file}, {leak.place}: {leak.kind} ({leak.count})" for leak in leaks[:5])
        more = f"; and {len(leaks) - 5} more places" if len(leaks) > 5 else ""
        raise PrivacyError(f"nothing was published, because patients could be identified: {shown}{more}; remove these")


def _lint_file(path: Path, identifiers: Identifiers, config: PrivacyConfig) -> Iterator[tuple[str, str]]:
    """Pairs of place and kind."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _lint_parquet(path, identifiers, config)
    elif suffix == ".json":
        yield from _lint_json_text(path.read_text(encoding="utf-8", errors="replace"), identifiers, config)
    elif suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield from _lint_json_text(line, identifiers, config)
    elif suffix in (".svg", ".xml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        # Coordinates are no phone numbers: only what a person reads, and comments.
        for piece in (*re.findall(r">([^<>]+)<", text), *re.findall(r"<!--(.*?)-->", text, re.DOTALL)):
            yield from (("text", kind) for kind, _, _ in find_leaks(piece, identifiers))
    elif suffix in TEXT_SUFFIXES:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                line = LOG_TIME.sub("", line) if suffix == ".log" else line
                line = _without_allowed_dates(line, config)
                yield from ((f"line {number}", kind) for kind, _, _ in find_leaks(line, identifiers))
    else:  # figures, weights: strings inside, by exact search only
        for run in re.findall(rb"[\x20-\x7e]{5,}", path.read_bytes()):
            found = find_leaks(run.decode("ascii"), identifiers)
            yield from (("bytes", kind) for kind, _, _ in found if kind == "identifier")


def _lint_parquet(path: Path, identifiers: Identifiers, config: PrivacyConfig) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(path) as file:
        for key, value in (file.schema_arrow.metadata or {}).items():
            if key.decode().rpartition(".")[2] not in config.allowed_date_keys and key != b"ARROW:schema":
                found = find_leaks(value.decode("utf-8", "replace"), identifiers)
                yield from (("footer", kind) for kind, _, _ in found)
        for number, column in enumerate(file.schema_arrow, start=1):
            place = f"column {number}" if any(find_leaks(column.name, identifiers)) else f"column {column.name}"
            if IDENTIFYING_COLUMN.search(column.name) or place == f"column {number}":
                yield place, "identifying_column"
            if pa.types.is_temporal(column.type):
                yield place, "date"
            elif (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) and column.name != "mask":
                yield place, "binary_column"
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for number, column in enumerate(table.schema):
                place = f"column {number + 1}" if any(find_leaks(column.name, identifiers)) else f"column {column.name}"
                yield from ((place, kind) for kind in _lint_column(table.column(number), identifiers))


def _lint_column(column: pa.ChunkedArray, identifiers: Identifiers) -> Iterator[str]:
    kind = column.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        column = pc.list_flatten(column)
        kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _lint_column(pc.struct_field(column, index), identifiers)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = column.unique().drop_null()
        if (pc.max(pc.utf8_length(values)).as_py() or 0) > MAX_CELL_CHARACTERS:
            yield "free_text"
        for text in values.filter(pc.invert(pc.match_substring_regex(values, KEY_SHAPE))).to_pylist():
            yield from (found for found, _, _ in find_leaks(text, identifiers))
    elif pa.types.is_integer(kind):
        numbers = [str(number) for number in column.unique().drop_null().to_pylist()]
        known = sum(number in identifiers.single for number in numbers)
        if len(numbers) >= 10 and known > len(numbers) / 2:  # one equal number is chance, most of a column is not
            yield "identifier"


def _lint_json_text(text: str, identifiers: Identifiers, config: PrivacyConfig) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:  # a log line that was cut: read as prose
        yield from (("text", kind) for kind in _kinds(text, identifiers))
    else:
        yield from _lint_json(value, "", identifiers, config)


def _lint_json(value: Any, place: str, identifiers: Identifiers, config: PrivacyConfig) -> Iterator[tuple[str, str]]:
    """Strings and keys; a number is a count, and a count may happen to equal somebody's MRN."""
    match value:
        case dict():
            for key, inner in value.items():
                leaking_key = [kind for kind, _, _ in find_leaks(key, identifiers)]
                yield from ((f"{place or 'top'} (a key)", kind) for kind in leaking_key)
                if key in config.allowed_date_keys and isinstance(inner, str):
                    yield from (
                        (f"{place}.{key}".strip("."), kind) for kind in _kinds(inner, identifiers) if kind != "date"
                    )
                else:
                    shown = "?" if leaking_key else key
                    yield from _lint_json(inner, f"{place}.{shown}".strip("."), identifiers, config)
        case list():
            for inner in value:
                yield from _lint_json(inner, f"{place}[]", identifiers, config)
        case str():
            yield from ((place or "top", kind) for kind in _kinds(value, identifiers))
        case _:
            return


def _kinds(text: str, identifiers: Identifiers) -> list[str]:
    return [kind for kind, _, _ in find_leaks(text, identifiers)]


def _without_allowed_dates(line: str, config: PrivacyConfig) -> str:
    names = "|".join(re.escape(key).replace("_", "[_ ]") for key in config.allowed_date_keys)
    return re.sub(rf"\b(?:{names})\b\W{{1,6}}[\dT:.Z+ -]+", " ", line) if names else line


def _spans(word: str) -> Iterator[tuple[int, int]]:
    """The word, the word without full stops around it, its pieces, and runs of hyphenated pieces: S23-17 of S23-17-A."""
    seen = {(0, len(word)), (len(word) - len(word.lstrip(".:!?")), len(word.rstrip(".:!?")))}
    position = 0
    for piece in INNER.split(word):
        begin = word.index(piece, position)
        position = begin + len(piece)
        seen.add((begin, position))
        starts = [begin, *(begin + match.end() for match in re.finditer("-", piece))]
        if 1 < len(starts) <= MAX_HYPHENATED:
            ends = [*(start - 1 for start in starts[1:]), position]
            seen.update((start, end) for index, start in enumerate(starts) for end in ends[index:])
    yield from ((start, end) for start, end in sorted(seen) if start < end)
