"""What is laid out in space, rewritten as lines that say the same: columns, check boxes, tables of parts, s p a c e d headings."""

import re
from collections.abc import Sequence
from itertools import pairwise

_COLUMNS = re.compile(r"^(?P<key>[ ]*[A-Za-z][^:\n]{2,48}?)[ ]{2,}(?P<value>[^ \n:][^\n]*)$")
MIN_COLUMN_LINES = 4  # fewer may be a title with a gap
_BOX = re.compile(r"[\[(] *(?P<mark>[xX*]?) *[\])][ ]*")
_PART_CELL = re.compile(r"(?:(?:part|specimen|jar|container|pot) ?#?)?([A-Z]|A[A-Z]|\d{1,2})[.):]?", re.IGNORECASE)
_PART_COLUMN = re.compile(
    r"#|no\.?|id|label|(?:part|specimen|jar|container|pot)s?(?: ?(?:#|no\.?|id|label))?", re.IGNORECASE
)
_RULE_CELL = re.compile(r"[-:=+ ]*")
_DIAGNOSIS_COLUMN = re.compile(
    r"(?:final |histologic(?:al)? |pathologic(?:al)? )*(?:diagnos[ie]s|dx|results?|findings?|interpretation|conclusion|opinion)",
    re.IGNORECASE,
)
_REMARK_COLUMN = re.compile(r"(?:comments?|notes?|remarks?|codes?|blocks?|stains?)", re.IGNORECASE)
_SPACED = re.compile(r"[A-Z](?:[ ]{1,3}[A-Z&/]){4,}")
_LAST_WORD = re.compile(r"(?<=[A-Z])(?=(?:DIAGNOSIS|DESCRIPTION|EXAMINATION|HISTORY|REPORT|COMMENT)$)")


def checked_answers(text: str) -> str:
    """Lines of check boxes with only the checked answers: "DCIS  [ ] present  [X] absent" says "DCIS: absent"."""
    if not _BOX.search(text):
        return text
    lines = []
    for line in text.split("\n"):
        boxes = list(_BOX.finditer(line))
        if boxes and (len(boxes) > 1 or boxes[0].group("mark") == ""):
            ends = [box.start() for box in boxes[1:]] + [len(line)]
            checked = [line[box.end() : end].strip() for box, end in zip(boxes, ends, strict=True) if box.group("mark")]
            question = line[: boxes[0].start()].rstrip(" :-")
            line = f"{question}: {', '.join(checked)}" if question and checked else ", ".join(checked)
        lines.append(line)
    return "\n".join(lines)


def columns_as_answers(text: str) -> str:
    """A block of four lines or more with keys and values in two columns, written as "key: value"."""
    lines = text.split("\n")
    found = [_COLUMNS.match(line) if "  " in line.lstrip() else None for line in lines]
    if sum(pair is not None for pair in found) < MIN_COLUMN_LINES:
        return text
    start = 0
    while start < len(lines):
        stop = start
        while (
            stop < len(lines) and (pair := found[stop]) is not None and pair.start("value") == _value_at(found[start])
        ):
            stop += 1
        if stop - start >= MIN_COLUMN_LINES:
            for index in range(start, stop):
                pair = found[index]
                assert pair is not None, "the block holds matches only"
                lines[index] = f"{pair.group('key').rstrip(': ')}: {pair.group('value')}"
        start = max(stop, start + 1)
    return "\n".join(lines)


def _value_at(found: re.Match[str] | None) -> int:
    return found.start("value") if found is not None else -1


def closed_up(heading: str) -> str:
    """A heading set in spaced letters as words: "F I N A L  D I A G N O S I S" says "FINAL DIAGNOSIS"; others stay."""
    if not _SPACED.fullmatch(heading):
        return heading
    words = [word.replace(" ", "") for word in re.split(r"[ ]{2,}", heading)]
    return _LAST_WORD.sub(" ", words[0]) if len(words) == 1 else " ".join(words)


def rows_as_parts(text: str) -> str:
    """A table with bars and a row (or column) per part, each part written as "A. site, procedure: diagnosis"."""
    lines = text.split("\n")
    rows = [_cells(line) for line in lines]
    start = 0
    while start < len(lines):
        stop = start
        while stop < len(lines) and rows[stop]:
            stop += 1
        if written := _part_lines(rows[start:stop]):
            lines[start:stop] = written
            rows[start:stop] = [[] for _ in written]
            stop = start + len(written)
        start = max(stop, start + 1)
    return "\n".join(lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")] if "|" in line else []


def _part_lines(rows: Sequence[list[str]]) -> list[str]:
    """The rows of one table as lines, or [] when they are not one part each."""
    rows = [row for row in rows if not all(_RULE_CELL.fullmatch(cell) for cell in row)]
    before: list[str] = []
    names: list[str] = []
    if rows and ": " in rows[0][0]:  # "Diagnosis: A | Left breast | ..."
        heading, _, first = rows[0][0].rpartition(": ")
        before, rows = [f"{heading}:"], [[first, *rows[0][1:]], *rows[1:]]
    if len(rows) > 1 and len(rows[0]) > 2 and all(_PART_CELL.fullmatch(cell) for cell in rows[0][1:]):
        if {len(row) for row in rows} != {len(rows[0])}:
            return []
        rows = [list(column) for column in zip(*rows, strict=True)]  # a column per part
    if rows and not _PART_CELL.fullmatch(rows[0][0]):
        if rows[0][0] and not _PART_COLUMN.fullmatch(rows[0][0]):
            return []
        names, rows = rows[0], rows[1:]
    joined: list[list[str]] = []
    for row in rows:
        if row[0]:
            joined.append(row)
        elif joined and len(row) == len(joined[-1]):  # cells that go on in the next line
            joined[-1] = [f"{above} {cell}".strip() for above, cell in zip(joined[-1], row, strict=True)]
        else:
            return []
    parts = [found.group(1) for row in joined if (found := _PART_CELL.fullmatch(row[0]))]
    if len(parts) < max(len(joined), 2) or not _count_up(parts, gaps=bool(names)):
        return []
    answer = next((index for index, name in enumerate(names) if index and _DIAGNOSIS_COLUMN.fullmatch(name)), None)
    answer = min(len(row) for row in joined) - 1 if answer is None else answer
    if not 0 < answer < min(len(row) for row in joined):
        return []
    written = []
    for part, row in zip(parts, joined, strict=True):
        remarks = {i for i in range(answer + 1, len(row)) if i >= len(names) or _REMARK_COLUMN.fullmatch(names[i])}
        title = [cell for i, cell in enumerate(row) if i not in (0, answer, *remarks) and cell]
        tail = "".join(f". {row[i]}" for i in sorted(remarks) if row[i])
        written.append(f"{part}. {', '.join(title)}{': ' if title else ''}{row[answer]}{tail}")
    return before + written


def _count_up(parts: Sequence[str], gaps: bool) -> bool:
    """Whether identifiers come in order, which the keys of a table of answers (T, N, M) do not; `gaps` may be allowed."""
    ranks = [int(part) if part.isdigit() else len(part) * 100 + ord(part[-1].upper()) for part in parts]
    steps = [later - earlier for earlier, later in pairwise(ranks)]
    return all(step > 0 if gaps else step == 1 for step in steps) and len({part.isdigit() for part in parts}) == 1
