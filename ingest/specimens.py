"""From LIS cases to labelled parts: the bridge between the canonical source tables and the report engine, in parallel.

Cases are labelled in chunks by a pool of processes and come back in accession order, so the result is the same for any
number of workers. A chunk carries text between processes of this machine only; nothing of it is written or logged.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import cast

from ingest.case import CaseLabels, CodeValue, LisPart, ReportVersion, SynopticAnswer, TextFormat, VersionKind
from ingest.label import label_case
from ingest.rulefile import Rules, load_rules
from ingest.source.canonical import CaseRecord, CaseReport

CHUNK_CASES = 200  # of 4 kB each: 0.8 MB per message; larger chunks gain nothing
CHUNKS_AHEAD = 2  # per worker: keeps the pool busy and the memory flat for a source of any size


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """`reason` is empty, or says why the case as a whole could not be labelled; `labels` then has no parts."""

    accession: str
    labels: CaseLabels
    reason: str = ""


def label_records(records: Iterable[CaseRecord], rules_name: str, num_workers: int) -> Iterator[LabelledCase]:
    """Labelled cases in the order of `records`.

    Args:
        rules_name: as for `load_rules`; each worker loads the rules once.
    """
    if num_workers == 1:
        rules = load_rules(rules_name)
        yield from (label_record(record, rules) for record in records)
        return
    chunks = _chunks(records)
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(rules_name,)
    ) as pool:
        waiting: deque[Future[list[LabelledCase]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_label_chunk, chunk))
            if len(waiting) >= num_workers * CHUNKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def label_record(record: CaseRecord, rules: Rules) -> LabelledCase:
    """One case; a case that the case table does not know is not guessed at."""
    if record.case is None:
        return LabelledCase(record.accession, CaseLabels(parts=()), "case_unknown")
    order = {
        version: number for number, version in enumerate(sorted({report.version or "" for report in record.reports}))
    }
    labels = label_case(
        [_version(report, order[report.version or ""]) for report in record.reports],
        [
            LisPart(part=part.part, description=part.description or "", part_type=part.part_type or "")
            for part in record.parts
        ],
        codes=[CodeValue(system=code.system, code=code.code, part=code.part) for code in record.codes],
        synoptic=[
            SynopticAnswer(question=row.question, answer=row.answer, part=row.part, template=row.template or "")
            for row in record.synoptic
        ],
        rules=rules,
    )
    return LabelledCase(record.accession, labels)


def _version(report: CaseReport, number: int) -> ReportVersion:
    return ReportVersion(
        text=report.text,
        format=cast("TextFormat", report.format or "text"),
        kind=cast("VersionKind", report.version_kind or "final"),
        version=number,
        status=report.status or "",
        section=report.section,
        part=report.part,
    )


def _chunks(records: Iterable[CaseRecord]) -> Iterator[list[CaseRecord]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK_CASES)):
        yield chunk


_worker_rules: Rules | None = None


def _start_worker(rules_name: str) -> None:
    global _worker_rules
    _worker_rules = load_rules(rules_name)


def _label_chunk(chunk: list[CaseRecord]) -> list[LabelledCase]:
    assert _worker_rules is not None, "the pool starts every worker with its rules"
    return [label_record(record, _worker_rules) for record in chunk]
