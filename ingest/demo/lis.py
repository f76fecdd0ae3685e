"""Write the plan of the demo hospital as a CoPath-like SQLite database.

The tables are those of `ingest/source/copath_schema.sql`, which the `copath` preset reads as well.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from ingest.atomic import atomic_file
from ingest.demo.hospital import Case, GlassSlide, Hospital, Part, Patient
from ingest.demo.reports import case_texts

SCHEMA_FILE = Path(__file__).parent.parent / "source" / "copath_schema.sql"
_SPECIAL_PROCEDURE = {"adds": "ADD", "overturns": "ADD", "amended": "AMD"}
Row = tuple[str | None, ...]


def write_lis(hospital: Hospital, path: Path) -> None:
    """One SQLite file with every table of the schema; same plan, same rows in the same order."""
    with atomic_file(path) as temporary, closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(SCHEMA_FILE.read_text(encoding="utf-8"))
        for table, row in _rows(hospital):
            places = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} VALUES ({places})", row)
        connection.commit()


def _rows(hospital: Hospital) -> Iterator[tuple[str, Row]]:
    patients = {patient.patient_id: patient for patient in hospital.patients}
    for patient in hospital.patients:
        yield "r_pat_demograph", (patient.patient_id, patient.enterprise_number, patient.name, patient.birth_date)
        for client, number in patient.record_numbers:
            yield "r_medrec", (patient.patient_id, client, number)
    for pair in hospital.merged:
        yield "merged_patients", pair
    for case in hospital.cases:
        yield from _case_rows(case, patients[case.patient_id])
    for scan in hospital.scans():
        yield (
            "scanned_slides",
            (
                scan.image_id,
                scan.slide_barcode,
                scan.file_name,
                scan.scanner,
                scan.magnification,
                _instant(scan.scanned_at),
            ),
        )


def _case_rows(case: Case, patient: Patient) -> Iterator[tuple[str, Row]]:
    yield (
        "c_specimen",
        (
            case.specimen_id,
            case.accession,
            case.class_code,
            case.patient_id,
            case.client,
            _instant(case.accessioned_at),
            _instant(case.signed_at),
        ),
    )
    for part in case.parts:
        yield from _part_rows(case, part)
    for text in case_texts(case, patient):
        yield "c_spec_text", (case.specimen_id, text.text_type, str(text.addendum), text.text)
    if case.addendum_at is not None:
        kind = _SPECIAL_PROCEDURE[case.turn]
        yield "p_special_proc", (case.specimen_id, "1", kind, _instant(case.addendum_at))


def _part_rows(case: Case, part: Part) -> Iterator[tuple[str, Row]]:
    number = str(part.number)
    yield "p_part", (case.specimen_id, number, part.designator, part.part_type, part.description)
    for block in part.blocks:
        yield "p_block", (case.specimen_id, number, str(block.number), block.designator)
    for slide in part.slides:
        yield (
            "p_stainprocess",
            (
                case.specimen_id,
                number,
                _block_number(part, slide),
                str(slide.stain_number),
                slide.stain_code,
                slide.stain_name,
                slide.barcode,
            ),
        )


def _block_number(part: Part, slide: GlassSlide) -> str | None:
    """As the slide remembers it: one cut before a cassette was deleted points at a number that is gone."""
    if slide.block is None:
        return None
    return "99" if slide.block_is_stale else str(part.blocks[slide.block].number)


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else f"{instant:%Y-%m-%d %H:%M:%S}"
