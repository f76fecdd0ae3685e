"""`python -m ingest label REPORTS.jsonl`: labels of reports without a LIS, one JSON line per part, streamed.

A line is {"id", "report_text", "format"} with format text, rtf, hl7_ft or hl7_oru. A line that cannot be read gives one
answer, not_assessable with the reason as its finding; nothing is dropped.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

from ingest.case import CaseLabels, PartLabel, ReportVersion
from ingest.errors import InputError
from ingest.label import label_case
from ingest.part_names import DEFAULT_PART
from ingest.report.normalise import UnreadableReport
from ingest.report.oru import report_versions
from ingest.rulefile import Rules, load_rules

FORMATS = ("text", "rtf", "hl7_ft", "hl7_oru")
CHUNK_LINES = 200
CHUNKS_AHEAD = 2  # per worker; keeps memory flat for a file of any size


def label_file(
    path: Path, rules_name: Path | str, out: TextIO, num_workers: int = 1, with_targets: bool = False
) -> int:
    """Write one line {id, part, label, finding, rule_id} per part, in the order of the file; returns the number of reports.

    Args:
        with_targets: add the value of every other task of the rules (null = not stated) as `targets`.

    Raises:
        InputError: no such file, or a file without lines.
        ConfigError: as `load_rules`.
    """
    load_rules(rules_name)  # a fault of the rules is told before anything is written
    try:
        file = path.open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"reports {path.name}: cannot be opened ({error.strerror}); give a JSON lines file") from None
    num_reports = 0
    with file:
        for answers in label_lines((line for line in file if line.strip()), rules_name, num_workers):
            num_reports += 1
            for answer in answers:
                if not with_targets:
                    answer.pop("targets", None)
                out.write(json.dumps(answer) + "\n")
    if not num_reports:
        raise InputError(f"reports {path.name}: holds no lines; give one JSON object per line")
    return num_reports


def label_lines(lines: Iterable[str], rules_name: Path | str, num_workers: int = 1) -> Iterator[list[dict[str, Any]]]:
    """The answers to every line, in order; the same for any number of workers."""
    if num_workers == 1:
        rules = load_rules(rules_name)
        yield from (label_line(line, rules) for line in lines)
        return
    iterator = iter(lines)
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(str(rules_name),)
    ) as pool:
        waiting: deque[Future[list[list[dict[str, Any]]]]] = deque()
        while chunk := list(islice(iterator, CHUNK_LINES)):
            waiting.append(pool.submit(_label_chunk, chunk))
            if len(waiting) >= num_workers * CHUNKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def label_line(line: str, rules: Rules) -> list[dict[str, Any]]:
    """The answers to one line."""
    try:
        row = json.loads(line)
        text, text_format = row["report_text"], row.get("format", "text")
        if not isinstance(text, str) or text_format not in FORMATS:
            raise TypeError("report_text is no text, or the format is unknown")
    except (ValueError, TypeError, KeyError, AttributeError):
        return [_unread(None, "bad_line", rules)]
    try:
        labels = label_text(text, text_format, rules)
    except UnreadableReport as error:
        return [_unread(row.get("id"), error.reason, rules)]
    return [answer for part in labels.parts for answer in _answers(row.get("id"), part, rules)]


def label_text(text: str, text_format: str, rules: Rules) -> CaseLabels:
    """The labels of one report of any of `FORMATS`.

    Raises:
        UnreadableReport: an HL7 message without report text.
    """
    if text_format == "hl7_oru":
        return label_case(report_versions(text), rules=rules)
    return label_case([ReportVersion(text=text, format=text_format)], rules=rules)  # type: ignore[arg-type]


def _answers(identifier: Any, part: PartLabel, rules: Rules) -> list[dict[str, Any]]:
    first = {"id": identifier, "part": part.part, "label": part.label, "finding": part.finding, "rule_id": part.rule_id}
    if part.targets:
        first["targets"] = {target.task: target.value or None for target in part.targets}
    return [first]


def _unread(identifier: Any, reason: str, rules: Rules) -> dict[str, Any]:
    return {
        "id": identifier,
        "part": DEFAULT_PART,
        "label": "not_assessable",
        "finding": reason,
        "rule_id": f"{rules.id}.{reason}",
    }


_worker_rules: Rules | None = None


def _start_worker(rules_name: str) -> None:
    global _worker_rules
    _worker_rules = load_rules(rules_name)


def _label_chunk(chunk: Sequence[str]) -> list[list[dict[str, Any]]]:
    assert _worker_rules is not None, "the pool starts every worker with its rules"
    return [label_line(line, _worker_rules) for line in chunk]
