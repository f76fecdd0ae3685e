"""The canonical tables every source is read into, before anything is decided about a patient, a part or a slide.

All cells are text or null: an MRN `00027670`, a part `1E5` or a part `NA` must survive unchanged, so no number, date
or missing-value guess is ever made. An empty cell is null. The row classes define the columns; `SCHEMAS` follows.
"""

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal, TypeAlias

import pyarrow as pa

TableName: TypeAlias = Literal["patients", "cases", "parts", "reports", "codes", "synoptic", "blocks", "slides"]
TABLE_NAMES: tuple[TableName, ...] = ("patients", "cases", "parts", "reports", "codes", "synoptic", "blocks", "slides")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One medical record number of one patient; a patient with numbers from three facilities has three rows.

    Attributes:
        patient_id: the system's own number of the person; rows that share it are one patient.
        issuer: who gave the MRN; two issuers use the same number for different people.
        empi: enterprise number over all issuers.
        merged_into: `patient_id` (or, in systems without one, the MRN of the same issuer) that took this patient over.
    """

    patient_id: str | None
    mrn: str | None
    issuer: str | None
    empi: str | None
    merged_into: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One accession. `case_class` is the kind of case (S surgical, C cytology, ...) in the site's own code."""

    accession: str
    patient_id: str | None
    mrn: str | None
    issuer: str | None
    case_class: str | None
    status: str | None
    accessioned_at: str | None
    signed_at: str | None
    site: str | None
    client: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One specimen of a case. `part` is the designator as printed in the report, `part_seq` its order 1, 2, 3."""

    accession: str
    part: str
    part_seq: str | None
    description: str | None
    part_type: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Report text, whole or one section or one line of it.

    Attributes:
        version: sorts as text within an accession; a later one stands after an earlier one.
        version_kind: final, addendum, amended, corrected or preliminary.
        section: final, gross, microscopic, history, specimen, comment, addendum, frozen, synoptic; null: the whole
            report, whose headings have to be found.
        part: only where the system itself says which part the text is about.
        line: rows that differ only in line and text are one text, split over rows.
        format: text, rtf, hl7_ft (escapes not yet resolved) or html.
    """

    accession: str
    version: str | None
    version_kind: str | None
    section: str | None
    part: str | None
    line: str | None
    text: str
    format: str | None
    status: str | None
    signed_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded diagnosis; `part` is null for a code of the whole case."""

    accession: str
    part: str | None
    system: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Synoptic:
    """One answered question of a synoptic (CAP) form."""

    accession: str
    part: str | None
    template: str | None
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One paraffin block. `block` is what is written on the cassette, not the number a database gives it."""

    accession: str
    part: str | None
    block: str
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slide:
    """One scan. `slide_id` names the image, `barcode` the glass; a glass scanned twice has two slide_ids.

    `mpp` overrules the micrometres per pixel that the file states; it is for files that state none.
    """

    slide_id: str
    accession: str | None
    part: str | None
    block: str | None
    level: str | None
    stain: str | None
    stain_group: str | None
    barcode: str | None
    path: str | None
    scanner: str | None
    objective: str | None
    scanned_at: str | None
    mpp: str | None


Row: TypeAlias = Patient | Case | Part | Report | Code | Synoptic | Block | Slide
ROW_CLASSES: MappingProxyType[TableName, type[Row]] = MappingProxyType(
    {
        "patients": Patient,
        "cases": Case,
        "parts": Part,
        "reports": Report,
        "codes": Code,
        "synoptic": Synoptic,
        "blocks": Block,
        "slides": Slide,
    }
)
COLUMNS: MappingProxyType[TableName, tuple[str, ...]] = MappingProxyType(
    {name: tuple(field.name for field in fields(row_class)) for name, row_class in ROW_CLASSES.items()}
)
SCHEMAS: MappingProxyType[TableName, pa.Schema] = MappingProxyType(
    {name: pa.schema([(column, pa.string()) for column in columns]) for name, columns in COLUMNS.items()}
)
# A row without one of these is refused; a source without the column is refused as a whole.
REQUIRED: MappingProxyType[TableName, tuple[str, ...]] = MappingProxyType(
    {
        "patients": (),
        "cases": ("accession",),
        "parts": ("accession", "part"),
        "reports": ("accession", "text"),
        "codes": ("accession", "system", "code"),
        "synoptic": ("accession", "question", "answer"),
        "blocks": ("accession", "block"),
        "slides": ("slide_id",),
    }
)
FREE_TEXT: frozenset[str] = frozenset({"text", "note", "description", "question", "answer", "path"})

TRUNCATION_LENGTHS = (255, 4000, 8000, 32767)  # Oracle and SQL Server varchar limits, an Excel cell


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """One text of a case, its lines joined.

    Attributes:
        truncated: the text came as one row of exactly 255, 4000, 8000 or 32,767 characters: a column limit cut it.
    """

    version: str | None
    version_kind: str | None
    section: str | None
    part: str | None
    text: str
    format: str
    status: str | None
    signed_at: str | None
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """Everything about one accession. `cases` is empty when only other tables name it, and has several rows when it was
    sent for several patient numbers, of which one row each, the one signed last, is kept."""

    accession: str
    cases: tuple[Case, ...]
    parts: tuple[Part, ...]
    reports: tuple[CaseReport, ...]
    codes: tuple[Code, ...]
    synoptic: tuple[Synoptic, ...]
    blocks: tuple[Block, ...]

    @property
    def case(self) -> Case | None:
        """The row that was signed last."""
        return max(self.cases, key=lambda case: (case.signed_at or "", repr(case)), default=None)
