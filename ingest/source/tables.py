"""What a source was read into: canonical tables on demand, and cases one by one with all their rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from types import TracebackType
from typing import TypeVar

import pyarrow as pa

from ingest.source.canonical import (
    COLUMNS,
    TRUNCATION_LENGTHS,
    Block,
    Case,
    CaseRecord,
    CaseReport,
    Code,
    Part,
    Report,
    Row,
    Synoptic,
    TableName,
)
from ingest.source.cells import Cells
from ingest.source.intake import Rejected, rejected
from ingest.source.staging import Staging

RowT = TypeVar("RowT", bound=Row)
CASE_TABLES: tuple[TableName, ...] = ("cases", "parts", "reports", "codes", "synoptic", "blocks")
RTF_START = "{\\rtf"


class SourceTables:
    """What was read. Tables are made on demand from disk; close to give the disk space back.

    Attributes:
        num_rows: rows read per table, and messages, bad ones included.
        num_kept: rows in each table with their copies, and messages of which something was kept; with what was rejected
            for another reason than being a copy this adds up to num_rows.
        snapshot_at: database time of the read, or the newest change of the files, as ISO text.
    """

    def __init__(
        self, staging: Staging, num_rows: dict[str, int], num_kept: dict[str, int], snapshot_at: str, line_join: str
    ) -> None:
        self.num_rows = num_rows
        self.num_kept = num_kept
        self.snapshot_at = snapshot_at
        self._staging = staging
        self._line_join = line_join

    def rejected(self) -> Iterator[Rejected]:
        """Everything that is not in the tables, sorted."""
        return rejected(self._staging)

    def batches(self, name: TableName) -> Iterator[pa.RecordBatch]:
        """The rows of a table without their copies, by leading key, some thousands at a time."""
        return self._staging.batches(name)

    def table(self, name: TableName, accessions: Iterable[str] | None = None) -> pa.Table:
        """The same at once, for tables that fit in memory.

        Args:
            accessions: only rows of these cases.
        """
        return self._staging.table(name, accessions)

    def num_different(self, name: TableName) -> int:
        """Rows of a table without their copies; lines of a report are not joined."""
        return self._staging.num_rows(name)

    def case_records(self) -> Iterator[CaseRecord]:
        """Every accession that any table but slides names, in text order, with all that is known about it."""
        for accession, found in self._staging.by_accession(CASE_TABLES):
            yield CaseRecord(
                accession=accession,
                cases=standing_rows(_typed(Case, "cases", found)),
                parts=_typed(Part, "parts", found),
                reports=tuple(join_lines(_typed(Report, "reports", found), self._line_join)),
                codes=_typed(Code, "codes", found),
                synoptic=_typed(Synoptic, "synoptic", found),
                blocks=_typed(Block, "blocks", found),
            )

    def close(self) -> None:
        self._staging.close()

    def __enter__(self) -> "SourceTables":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def standing_rows(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Of rows that differ in dates and status only (preliminary, then final), the one signed last."""

    def patient(case: Case) -> str:
        return repr((case.patient_id, case.mrn, case.issuer))

    by_patient = groupby(sorted(cases, key=patient), patient)
    return tuple(max(rows, key=lambda case: (case.signed_at or "", repr(case))) for _, rows in by_patient)


def join_lines(reports: Sequence[Report], line_join: str) -> Iterator[CaseReport]:
    """Rows that differ in line and text only become one text, in the order of their line numbers."""

    def text_of(report: Report) -> tuple[str, ...]:
        others = (report.version, report.version_kind, report.section, report.part, report.format, report.status)
        whole = (others, report.signed_at, report.line is None and report.text)
        return tuple(repr(cell) for cell in whole)

    for _, group in groupby(sorted(reports, key=text_of), text_of):
        rows = sorted(group, key=_line_order)
        text = line_join.join(row.text for row in rows)
        first = rows[0]
        if not text.strip():
            continue
        yield CaseReport(
            version=first.version,
            version_kind=first.version_kind,
            section=first.section,
            part=first.part,
            text=text,
            format=first.format or ("rtf" if text.lstrip().startswith(RTF_START) else "text"),
            status=first.status,
            signed_at=first.signed_at,
            truncated=len(rows) == 1 and len(text) in TRUNCATION_LENGTHS,
        )


def _typed(row_class: type[RowT], name: TableName, found: dict[TableName, list[Cells]]) -> tuple[RowT, ...]:
    make: Callable[..., RowT] = row_class
    return tuple(make(**dict(zip(COLUMNS[name], cells, strict=True))) for cells in found[name])


def _line_order(report: Report) -> tuple[int, str, str]:
    line = report.line or ""
    return (int(line) if line.isdecimal() else 0, line, report.text)
