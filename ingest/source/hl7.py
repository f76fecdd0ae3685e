"""Canonical rows from HL7 v2: ORU^R01 reports and merge messages, in files of one message, many, or a batch.

Own splitter: 120,000 messages/s, where `hl7` 0.4.5 reads 469 and `hl7apy` 1.3.5 reads 15. The rules are those of
NAACCR Volume V: OBX-3 names the section by LOINC, OBX-4 the part, OBX-11 and OBR-25 the status. Text keeps its escapes
(format hl7_ft); only delimiters that differ from the usual `|^~\\&` are made usual.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, TypeAlias

from ingest.errors import ConfigError
from ingest.source.canonical import COLUMNS, TableName
from ingest.source.cells import BadRow, Cells, RowFault, clean_identifier, decode
from ingest.source.config import Hl7Config

SECTION_OF_LOINC = MappingProxyType(
    {
        "22637-3": "final",
        "33746-9": "final",
        "34574-4": "final",
        "60571-7": "final",
        "22634-0": "gross",
        "22635-7": "microscopic",
        "22636-5": "history",
        "22633-2": "specimen",
        "22638-1": "comment",
        "60570-9": "comment",
        "22639-9": "addendum",
        "35265-8": "addendum",
        "11529-5": "report",  # surgical pathology study report: the whole text
        "60568-3": "synoptic",
    }
)
SECTIONS = frozenset({*SECTION_OF_LOINC.values(), "frozen"})
KIND_OF_STATUS = MappingProxyType(
    {
        "F": "final",
        "U": "final",
        "C": "corrected",
        "A": "amended",
        "P": "preliminary",
        "R": "preliminary",
        "S": "preliminary",
    }
)
NO_RESULT = MappingProxyType(
    {
        "D": "deleted_result",
        "W": "deleted_result",
        "X": "no_result",
        "N": "no_result",
        "I": "no_result",
        "O": "no_result",
    }
)
CODE_SYSTEMS = frozenset(
    {"SCT", "SNM", "SNM3", "SNT", "SNOMED", "I9C", "I10", "I10C", "ICDO", "ICDO2", "ICDO3", "ICD-O-3"}
)
CHARSETS = MappingProxyType(
    {"8859/1": "latin-1", "8859/2": "iso8859-2", "8859/9": "iso8859-9", "8859/15": "iso8859-15", "ASCII": "ascii"}
)
MLLP_FRAME = b"\x0b\x1c"
SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}\|")

Segment: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class TableRow:
    """One canonical row of `table`, not yet checked for required cells."""

    table: TableName
    cells: Cells


def check_sections(config: Hl7Config) -> None:
    for code, section in config.sections.items():
        if section not in SECTIONS:
            raise ConfigError(f"ingest.source.hl7.sections: {code} = {section!r}; one of {', '.join(sorted(SECTIONS))}")


def split_messages(file: BinaryIO) -> Iterator[bytes | BadRow]:
    """The messages of a file, without MLLP framing and batch envelopes, one in memory at a time.

    Lines that belong to no message, and a batch whose trailer counts other than was found, come as `BadRow`.
    """
    message: list[bytes] = []
    num_in_batch = 0
    for line in _lines(file):
        name = line[:3] if not line[3:4].isalnum() else b""
        if name == b"MSH":
            if message:
                yield b"\r".join(message)
            message = [line]
            num_in_batch += 1
        elif name in (b"FHS", b"BHS", b"BTS", b"FTS"):
            if message:
                yield b"\r".join(message)
            message = []
            if name == b"BHS":
                num_in_batch = 0
            if name == b"BTS":
                count = line.split(b"|")[1].strip() if b"|" in line else b""
                if count.isdigit() and int(count) != num_in_batch:
                    yield BadRow("batch_count_mismatch", line)
        elif message:
            message.append(line)
        elif line.strip():
            yield BadRow("not_hl7", line)
    if message:
        yield b"\r".join(message)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that end in CR, LF or both, without MLLP framing and byte order mark."""
    rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
    while block := file.read(1 << 20):
        text = (rest + block).replace(b"\r\n", b"\r").replace(b"\n", b"\r")
        *lines, rest = text.split(b"\r")
        if text.endswith(b"\r") and lines and block.endswith(b"\r"):
            rest = lines.pop() + b"\r"  # the LF of this CR may be in the next block
        for line in lines:
            yield line.translate(None, MLLP_FRAME)
    for line in re.split(rb"\r\n|\r|\n", rest):
        yield line.translate(None, MLLP_FRAME)


def read_message(raw: bytes, config: Hl7Config, encoding: str | None) -> list[TableRow | BadRow]:
    """The canonical rows of one message; observations that cannot be used come as `BadRow`.

    Raises:
        RowFault: nothing of the message can be used.
    """
    header, *segments = _segments(_decode_message(raw, encoding))
    kind = _component(_field(header, 9), 1)
    if kind != "ORU" and not (kind == "ADT" and any(segment[0] == "MRG" for segment in segments)):
        raise RowFault("not_a_report")
    starts = [index for index, segment in enumerate(segments) if segment[0] == "PID"]
    if not starts:
        raise RowFault("no_patient")
    rows: list[TableRow | BadRow] = []
    for start, end in zip(starts, [*starts[1:], len(segments)], strict=True):  # a message may hold several patients
        rows.extend(_patient_group(header, segments[start:end], kind, config))
    return rows


def _patient_group(header: Segment, segments: list[Segment], kind: str, config: Hl7Config) -> list[TableRow | BadRow]:
    patient_rows, patient_id, mrn, issuer = _patient(segments, header, config)
    if patient_id is None:
        raise RowFault("no_patient")
    if kind == "ADT":
        return [*patient_rows]
    rows: list[TableRow | BadRow] = [*patient_rows]
    num_observations = 0
    version = _sortable_time(_field(header, 7))  # of the message: a later one replaces an earlier one
    order: Segment = []
    common: Segment = []
    for position, segment in enumerate(segments):
        if segment[0] == "ORC":
            common = segment
        elif segment[0] == "OBR":
            order = segment
            accession = _accession(order, common, config)
            rows.append(
                _row(
                    "cases",
                    accession=accession,
                    patient_id=patient_id,
                    mrn=mrn,
                    issuer=issuer,
                    status=_field(order, 25) or None,
                    accessioned_at=_field(order, 14) or _field(order, 7) or None,
                    signed_at=_field(order, 22) or None,
                    client=_component(_field(header, 4), 1) or None,
                )
            )
        elif segment[0] == "OBX":
            if not order:
                raise RowFault("observation_without_order")
            num_observations += 1
            observed = _observation(segment, order, _accession(order, common, config), version, position, config)
            rows.extend(BadRow(row, _raw(segment)) if isinstance(row, str) else row for row in observed)
    if not num_observations:
        raise RowFault("no_observations")
    return rows


def _observation(
    segment: Segment, order: Segment, accession: str, version: str | None, position: int, config: Hl7Config
) -> list[TableRow | str]:
    """The rows of one OBX, or the reason why there are none."""
    status = (_field(segment, 11) or _field(order, 25) or "F").upper()
    if status in NO_RESULT:
        return [NO_RESULT[status]]
    if status not in KIND_OF_STATUS:
        return ["unknown_status"]
    kind = KIND_OF_STATUS[status]
    if kind == "final" and (of_order := KIND_OF_STATUS.get(_field(order, 25).upper())) is not None:
        kind = of_order
    identifier, value, value_type = _field(segment, 3), _field(segment, 5), _field(segment, 2).upper()
    code, part = _component(identifier, 1), _part(_field(segment, 4), config)
    section = config.sections.get(code) or SECTION_OF_LOINC.get(code)
    if value_type in ("ED", "RP"):
        return ["encapsulated_document"]
    if value_type in ("CE", "CWE", "CNE", "NM", "SN"):
        return list(_coded(accession, part, identifier, value, value_type, order)) or ["empty_value"]
    if value_type not in ("TX", "FT", "ST", ""):
        return ["unknown_value_type"]
    if section is None:
        return ["unknown_section_code"]
    rows: list[TableRow | str] = []
    if section == "specimen" and part is not None and value.strip():
        rows.append(_row("parts", accession=accession, part=part, part_seq=part, description=unescape(value)))
    if section == "addendum" and kind == "final":
        kind = "addendum"
    rows.append(
        _row(
            "reports",
            accession=accession,
            version=version,
            version_kind=kind,
            section=None if section == "report" else section,
            part=part,
            line=str(position),  # one line per OBX is common: the rows of one section are joined in this order
            text=value.replace("~", "\n"),  # repetitions of a text field are its lines
            format="hl7_ft",
            status=status,
            signed_at=_field(order, 22) or None,
        )
    )
    return rows


def _coded(
    accession: str, part: str | None, identifier: str, value: str, value_type: str, order: Segment
) -> Iterator[TableRow]:
    question = unescape(_component(identifier, 2) or _component(identifier, 1))
    template = unescape(_component(_field(order, 4), 2)) or None
    for repetition in value.split("~"):
        if value_type in ("NM", "SN"):
            answer = unescape(repetition.replace("^", ""))
        else:
            answer = unescape(_component(repetition, 2) or _component(repetition, 1))
            code, system = _component(repetition, 1), _component(repetition, 3).upper()
            if code and system in CODE_SYSTEMS:
                yield _row("codes", accession=accession, part=part, system=system, code=code)
        if answer and question:
            yield _row("synoptic", accession=accession, part=part, template=template, question=question, answer=answer)


def _patient(
    segments: list[Segment], header: Segment, config: Hl7Config
) -> tuple[list[TableRow], str | None, str | None, str | None]:
    """Rows for every MRN of PID-3 and, from MRG-1, for the numbers they replace; and the first one for the cases."""
    facility = _component(_field(header, 4), 1)
    numbers: list[tuple[str, str]] = []
    empi: str | None = None
    old: list[tuple[str, str]] = []
    for segment in segments:
        if segment[0] == "PID":
            numbers = _numbers(_field(segment, 3), config.mrn_types, facility)
            enterprise = _numbers(_field(segment, 3), config.empi_types, facility)
            empi = enterprise[0][1] if enterprise else None
        elif segment[0] == "MRG":
            old = _numbers(_field(segment, 1), config.mrn_types, facility)
    if not numbers:
        if empi is None:
            return [], None, None, None
        return [_row("patients", patient_id=f"empi|{empi}", empi=empi)], f"empi|{empi}", None, None
    patient_id = "|".join(min(numbers))  # joins the numbers of this message; other messages join through the MRNs
    rows = [
        _row("patients", patient_id=patient_id, mrn=mrn, issuer=issuer or None, empi=empi) for issuer, mrn in numbers
    ]
    rows += [
        _row("patients", patient_id=f"{issuer}|{mrn}", mrn=mrn, issuer=issuer or None, merged_into=patient_id)
        for issuer, mrn in old
    ]
    issuer, mrn = min(numbers)
    return rows, patient_id, mrn, issuer or None


def _numbers(field: str, types: tuple[str, ...], facility: str) -> list[tuple[str, str]]:
    """(issuer, number) of the repetitions of these types; a single number without a type counts as an MRN."""
    found = []
    repetitions = [repetition for repetition in field.split("~") if repetition.strip()]
    for repetition in repetitions:
        number, kind = clean_identifier(_component(repetition, 1)), _component(repetition, 5).upper()
        issuer = _subcomponent(_component(repetition, 4)) or _subcomponent(_component(repetition, 6)) or facility
        is_only_number = not kind and len(repetitions) == 1 and "MR" in types
        if number and (kind in types or is_only_number):
            found.append((clean_identifier(issuer), number))
    return found


def _accession(order: Segment, common: Segment, config: Hl7Config) -> str:
    segment = common if config.accession_field == "ORC-3" else order
    accession = unescape(_component(_field(segment, int(config.accession_field[-1])), 1))
    if not accession.strip():
        raise RowFault("missing_accession")
    return accession


def _part(sub_id: str, config: Hl7Config) -> str | None:
    part = clean_identifier(sub_id.partition(".")[0])
    return part if part and config.part_from == "OBX-4" else None


def _sortable_time(text: str) -> str | None:
    """YYYYMMDDHHMMSS; messages of one sender are more or less precise, but in one time zone."""
    digits = re.match(r"\d{0,14}", text)
    return digits.group().ljust(14, "0") if digits and digits.group() else None


def _row(table: TableName, **cells: str | None) -> TableRow:
    return TableRow(table, tuple(cells.get(column) for column in COLUMNS[table]))


def _decode_message(raw: bytes, encoding: str | None) -> str:
    """Strict UTF-8, else the character set of MSH-18, else the declared encoding."""
    fields = raw.split(b"\r", 1)[0].split(b"|")
    named = fields[17].split(b"~")[0].decode("ascii", "replace").strip() if len(fields) > 17 else ""
    text = decode(raw, CHARSETS.get(named) or encoding)
    if "\0" in text:
        raise RowFault("nul_character")
    return text


def _segments(text: str) -> Iterator[Segment]:
    """Fields of each segment with usual delimiters. A line that starts no segment goes on with the one before: raw
    line breaks inside OBX-5 are the most common damage."""
    if len(text) < 8 or not text.startswith("MSH"):
        raise RowFault("bad_header")
    separator, component, repetition, escape, subcomponent = text[3], *text[4:8]
    marks = (separator, component, repetition, escape, subcomponent)
    if len(set(marks)) != 5 or any(mark.isalnum() or mark.isspace() for mark in marks):
        raise RowFault("bad_delimiters")
    joined: list[str] = []
    for line in text.split("\r"):
        if not joined or SEGMENT.match(line.replace(separator, "|", 1)):
            joined.append(line)
        else:
            joined[-1] += "\n" + line
    usual = "|^~\\&"
    is_usual = "".join(marks) == usual
    table = str.maketrans("".join(marks[1:]), usual[1:])
    for line in joined:
        fields = line.rstrip("\n").split(separator)
        if not is_usual:  # what is a plain letter here and a delimiter there has to be escaped
            plain = {ord(mark): f"\\{name}\\" for mark, name in zip(usual, "FSRET", strict=True) if mark not in marks}
            fields = [field.translate({**plain, **table}) for field in fields]
        if fields[0] == "MSH":
            fields.insert(1, separator)  # MSH-1 is the separator itself, so that numbers agree with the standard
        yield fields


def _field(segment: Segment, number: int) -> str:
    return segment[number] if len(segment) > number else ""


def _component(field: str, number: int) -> str:
    parts = field.split("~")[0].split("^")
    return parts[number - 1].strip() if len(parts) >= number else ""


def _subcomponent(component: str) -> str:
    return component.split("&")[0].strip()


def unescape(text: str) -> str:
    """Escapes of short values; report text keeps them for the report reader."""
    named = {"F": "|", "S": "^", "R": "~", "E": "\\", "T": "&", ".br": " "}
    return re.sub(r"\\(F|S|R|E|T|\.br)\\", lambda match: named[match.group(1)], text).replace("~", " ").strip()


def _raw(segment: Segment) -> bytes:
    return "|".join(segment).encode()
