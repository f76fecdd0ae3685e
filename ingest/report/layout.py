"""Answers laid out in space: two columns and check boxes, rewritten as "question: answer" lines."""

import re

_COLUMNS = re.compile(r"^(?P<key>[ ]*[A-Za-z][^:\n]{2,48}?)[ ]{2,}(?P<value>[^ \n:][^\n]*)$")
MIN_COLUMN_LINES = 4  # fewer may be a title with a gap
_BOX = re.compile(r"[\[(] *(?P<mark>[xX*]?) *[\])][ ]*")


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
