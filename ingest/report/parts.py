"""Part headers: A.  A)  A:  (A)  A-C.  A, B.  A & C)  A/1.  PART 1:  SPECIMEN A  1.  I.  AA.  SITE (A):  A  BREAST, ...

A header needs words of a specimen title (site, procedure, clock, side), or an identifier that the LIS or the report's own
specimen list knows, or its place in an unbroken series. One style rules a section: numbers under letters are findings.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ingest.report.normalise import view
from ingest.rulefile import Compiled

Kind = Literal["letter", "lower", "number", "roman", "trailing"]

_ID = r"(?:[A-Z]{1,2}|[IVX]{1,5}|\d{1,2}|[a-h])"
_SEPARATOR = r"(?:[ ]*(?:-|,|&|/|\+)[ ]*(?:(?:and|AND|&)[ ]+)?|[ ]+(?:and|AND|through|THROUGH|thru|THRU|to|TO)[ ]+)"
_IDS = rf"{_ID}(?:{_SEPARATOR}{_ID})*"
_LEADING = re.compile(
    rf"[ ]*(?:[*#>-]+[ ]*)?(?P<word>(?:PARTS?|SPECIMENS?|SPEC|Parts?|Specimens?|Spec)\b\.?[ ]*(?:\#|[Nn][Oo]\.?)?[ ]*)?"
    rf"(?P<open>[(\[]|\#)?(?P<ids>{_IDS})"
    r"(?P<close>[)\]][.:]?|[.:](?!\d)|[ ]*-(?=[ \n])|[ ]*,|(?P<wide>[ ]{2,}|[ ]+)|(?=\n|$))"
)
_TRAILING = re.compile(
    rf"[ ]*(?P<title>[^\n:]{{3,140}}?)[ ]*[(\[](?:PART |SPECIMEN |Part |Specimen )?(?P<ids>{_IDS})[)\]][ ]*"
    r"(?P<close>:|-(?=[ ])|(?=\n|$))"
)
_INLINE = re.compile(r"(?:(?<=[.;:)])|(?<=\w))[ ]+(?P<open>\(?)(?P<ids>[A-Z]|\d{1,2})(?P<close>[.):])[ ]+(?=[A-Z(])")
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d)?(?: ?- ?\d{1,2}(?::\d\d)?)? ?o'?clock|\b\d{1,2}:\d\d\b")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10}
_TITLE_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Header:
    """A part header: the identifiers it names, where it begins and where the part's text begins."""

    ids: tuple[str, ...]
    kind: Kind
    start: int
    body: int
    indent: int
    worded: bool = False  # PART, SPECIMEN
    titled: bool = False  # words of a specimen title follow
    bracketed: bool = False  # (A)


def find_parts(
    text: str, start: int, end: int, engine: Compiled, known: Sequence[str] = (), before: Header | None = None
) -> list[Header]:
    """The part headers between two offsets, in order; the first style that qualifies rules.

    Args:
        known: identifiers of the LIS part table or of the report's own specimen list.
        before: the last header of the section that this stretch interrupts; its style goes on.
    """
    candidates = list(_candidates(text, start, end, engine))
    kind = _ruling_kind(candidates, text, start, engine, known)
    last = 0
    if before is not None and any(c.kind == before.kind and c.titled for c in candidates):
        kind, last = before.kind, roman_ordinal(before.ids[-1]) if before.kind == "roman" else ordinal(before.ids[-1])
    if kind is None:
        return []
    candidates = _as_romans(candidates) if kind == "roman" else candidates
    return _accept([c for c in candidates if c.kind == kind], text, end, engine, known, last)


def expand_ids(text: str) -> tuple[str, ...]:
    """`A-C` -> A, B, C; `A, B` and `A & C` -> as listed; `A/1` -> A."""
    pieces = re.split(rf"({_SEPARATOR})", text.strip())
    ids: list[str] = [pieces[0].upper()]
    for separator, piece in zip(pieces[1::2], pieces[2::2], strict=False):
        mark, piece = separator.strip().lower(), piece.upper()
        if mark == "/" and piece.isdigit() != ids[-1].isdigit():
            continue
        if mark in ("-", "through", "thru", "to"):
            first, last = ordinal(ids[-1]), ordinal(piece)
            if piece.isdigit() == ids[-1].isdigit() and 0 < last - first <= 30:
                ids += [_nth(number, ids[0]) for number in range(first + 1, last + 1)]
                continue
            return ()
        ids.append(piece)
    return tuple(dict.fromkeys(ids))


def ordinal(part: str) -> int:
    """A -> 1, Z -> 26, AA and its sort follow; "3" -> 3."""
    if part.isdigit():
        return int(part)
    if len(part) == 2:
        return 26 + (ord(part[1]) - 64 if part[0] == "A" else ord(part[0]) - 64)
    return ord(part[0]) - 64 if part else 0


def roman_ordinal(part: str) -> int:
    """I -> 1, IV -> 4; 0 when the letters are no roman number."""
    if not part or any(letter not in _ROMAN_VALUES for letter in part):
        return 0
    values = [_ROMAN_VALUES[letter] for letter in part]
    return sum(-v if any(w > v for w in values[i + 1 : i + 2]) else v for i, v in enumerate(values))


def has_title_words(text: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether the text begins like a specimen title: a site, a procedure, a clock position."""
    head = view(text[start : min(end, start + _TITLE_CHARACTERS)])
    return bool(engine.sites.pattern.search(head) or engine.procedures.pattern.search(head) or _CLOCK.search(head))


def _nth(number: int, like: str) -> str:
    if like.isdigit():
        return str(number)
    return chr(64 + number) if number <= 26 else f"A{chr(64 + number - 26)}"


def _candidates(text: str, start: int, end: int, engine: Compiled) -> Iterable[Header]:
    position = start
    while position < end:
        line_end = text.find("\n", position)
        line_end = end if line_end < 0 or line_end > end else line_end
        found = _LEADING.match(text, position, end)
        header = _leading(found, text, line_end, end, engine) if found else None
        if header is None and text.find("(", position, line_end) >= 0:
            trailing = _TRAILING.match(text, position, line_end)
            if trailing and has_title_words(trailing.group("title"), 0, 200, engine):
                ids = expand_ids(trailing.group("ids"))
                if ids and (ids[0].isdigit() or len(ids[0]) == 1 or ids[0][0] == ids[0][1]):
                    indent = len(trailing.group()) - len(trailing.group().lstrip())
                    header = Header(ids, "trailing", position, position, indent, titled=True)
        if header is not None:
            yield header
        position = line_end + 1


def _leading(found: re.Match[str], text: str, line_end: int, end: int, engine: Compiled) -> Header | None:
    ids_text, worded = found.group("ids"), bool(found.group("word"))
    if found.group("word") is None and found.group("open") == "#" and not ids_text.isdigit():
        return None
    close = found.group("close")
    body = found.end()
    titled = has_title_words(text, body, _title_end(text, body, end), engine)
    if found.group("wide") is not None or not close or close.strip() == ",":
        # Bare: "A  BREAST, LEFT" or "PART A<newline>"; letters need a title at once, in capitals.
        if not worded:
            first = re.match(r"[A-Z][A-Z'/-]+\b", text[body:line_end])
            if not (first and re.fullmatch(r"[A-Z]", ids_text) and close and "," not in close):
                return None
            if not has_title_words(text, body, min(line_end, body + 30), engine):
                return None
            if close == " " and (ids_text in "AI" and not first.group().isupper()):
                return None
    elif not close.strip() and not worded:
        return None
    ids = expand_ids(ids_text)
    if not ids:
        return None
    kind: Kind
    first_id = ids_text[0:2] if len(ids_text) > 1 and ids_text[1:2].isalpha() else ids_text[0]
    if ids[0].isdigit():
        kind = "number"
    elif first_id[0].islower():
        kind = "lower"
    elif len(ids[0]) > 1 and roman_ordinal(ids[0]) > 1:
        kind = "roman"
    else:
        kind = "letter"
    if kind == "letter" and len(ids[0]) == 2 and not (ids[0][0] == ids[0][1] or ids[0][0] == "A"):
        return None
    if kind == "number" and not 0 < int(ids[0]) <= 60:
        return None
    indent = len(found.group()) - len(found.group().lstrip())
    return Header(ids, kind, found.start(), body, indent, worded, titled, found.group("open") in ("(", "["))


def _title_end(text: str, body: int, end: int) -> int:
    blank = text.find("\n\n", body, end)
    return min(end, body + _TITLE_CHARACTERS, blank if blank > body + 1 else end)


def _ruling_kind(
    candidates: Sequence[Header], text: str, start: int, engine: Compiled, known: Sequence[str]
) -> Kind | None:
    if not candidates:
        return None
    lead = text[start : candidates[0].start].strip()
    lead_titled = bool(lead) and has_title_words(lead, 0, len(lead), engine)
    for candidate in candidates:
        kind = candidate.kind
        same = [other for other in candidates if other.kind == kind]
        if kind == "letter" and candidate.ids == ("I",) and any(other.kind == "roman" for other in candidates):
            return "roman"
        in_known = bool(known) and all(part in known for part in candidate.ids)
        if candidate.worded or (in_known and kind in ("letter", "number", "roman") and not lead_titled):
            return kind
        if kind == "roman" and not (candidate.titled and len(candidate.ids[0]) == 2):
            continue
        if kind in ("number", "lower"):
            if candidate.ids[0] in ("1", "A") and candidate.titled and not lead_titled:
                return kind
            continue
        if candidate.titled and (not lead_titled or _CLOCK.search(text[candidate.body : candidate.body + 40])):
            return kind
        if kind == "letter" and len(same) > 1 and not lead_titled and _is_series(same):
            return kind
    return None


def _is_series(headers: Sequence[Header]) -> bool:
    ids = [part for header in headers for part in header.ids]
    return [ordinal(part) for part in ids] == list(range(1, len(ids) + 1))


def _as_romans(candidates: Sequence[Header]) -> list[Header]:
    return [
        replace(c, kind="roman") if c.kind == "letter" and len(c.ids) == 1 and roman_ordinal(c.ids[0]) else c
        for c in candidates
    ]


def _accept(
    candidates: Sequence[Header], text: str, end: int, engine: Compiled, known: Sequence[str], last: int
) -> list[Header]:
    accepted: list[Header] = []
    seen: set[str] = set()
    for header in candidates:
        value = roman_ordinal(header.ids[0]) if header.kind == "roman" else ordinal(header.ids[0])
        first_indent = accepted[0].indent if accepted else header.indent
        follows = value == last + 1 and abs(header.indent - first_indent) <= 2
        if header.kind == "letter" and len(header.ids[0]) == 2 and last < 26 and header.ids[0] not in known:
            continue
        fresh = not any(part in seen for part in header.ids)
        if not (header.worded or header.titled or follows or (fresh and any(part in known for part in header.ids))):
            continue
        if accepted and header.kind == "number" and not follows and not header.worded and header.ids[0] not in known:
            continue
        if not fresh and not header.titled:
            continue
        accepted.append(header)
        seen.update(header.ids)
        last = max(value, ordinal(header.ids[-1]) if header.kind != "roman" else value)
    return _with_inline(accepted, text, end, engine)


def _with_inline(accepted: list[Header], text: str, end: int, engine: Compiled) -> list[Header]:
    """Further parts on the same line: `A. Left breast: x. B. Right breast: y.`"""
    if not accepted or accepted[0].kind not in ("letter", "number"):
        return accepted
    result: list[Header] = []
    for index, header in enumerate(accepted):
        result.append(header)
        stop = accepted[index + 1].start if index + 1 < len(accepted) else end
        last = ordinal(header.ids[-1])
        for found in _INLINE.finditer(text, header.body, stop):
            part = found.group("ids")
            if (
                bool(found.group("open")) != header.bracketed
                or part.isdigit() != header.ids[0].isdigit()
                or ordinal(part) != last + 1
            ):
                continue
            if has_title_words(text, found.end(), min(stop, found.end() + 60), engine):
                result.append(
                    Header(
                        (part,),
                        header.kind,
                        found.start(),
                        found.end(),
                        header.indent,
                        titled=True,
                        bracketed=header.bracketed,
                    )
                )
                last += 1
    return result
