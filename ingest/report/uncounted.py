"""Specimens that a report speaks of without giving each a text of its own.

Where the diagnosis does not say which text is whose, the parts get their names and no text: they come out not_assessable instead
of one part taking the answer of another.
"""

import re
from collections.abc import Container, Sequence

from ingest.report.normalise import view
from ingest.report.parts import Header, find_parts, find_titles
from ingest.rulefile import Compiled

# "... and specimen 2 (left breast) shows": a specimen as the subject, not one that is referred to.
_SUBJECT = re.compile(
    r"(?:[Ss]pecimen|SPECIMEN|[Pp]art|PART) #?(?P<id>[A-Z]|\d{1,2})"
    r"(?:[ ]?[:(]| (?:shows?|contains?|consists?|comprises?|demonstrates?|reveals?|SHOWS?|CONTAINS?|DEMONSTRATES?|REVEALS?)\b)"
)
_BEFORE_SUBJECT = re.compile(
    r"(?:^|[.;,:\n(-])[ ]*(?:(?:and|whereas|while|but|whilst|AND|WHEREAS|WHILE|BUT)[ ]+)?(?:the |The |THE )?$"
)
_ORDINAL = re.compile(r"\b(?P<which>first|second|third) (?:specimen|part|sample|container|biopsy)\b")
_BEFORE_CHARACTERS = 20
_SIDE = re.compile(r"\b(?:left|right|lt|rt)\b")
_PLACE = re.compile(r"\b\d{1,2}:\d\d\b|\b\d{1,2} ?o'?clock|\bn ?\d{1,2}\b")
# A letter in the gross text names a specimen, not a cassette, when the text tells how it came or how large it is.
_INTAKE = re.compile(
    r"receiv|labell?ed|container|formalin|unfixed|measur|weigh|\d ?(?:mm|cm|g)\b|\d ?x ?\d|\b(?:cores?|fragments?|pieces?)\b"
)
_STILL_TO_COME = re.compile(
    r"\b(?:dictated|pending|to follow|awaited|defer\w*|in progress|not yet|unavailable|cancell?ed|preliminary)\b"
)
_CATEGORY = re.compile(r"\b(?:B(?:[1-4]|5[abc]?)|C[1-5])\b")
_CATEGORY_LINE_CHARACTERS = 60  # of the start of a line that gives the category of the biopsy


def intake_headers(text: str, start: int, end: int, engine: Compiled) -> list[Header]:
    """The specimens that the gross text goes through, two or more; [] when its letters name cassettes or nothing."""
    headers = find_parts(text, start, end, engine)
    ends = [*(header.start for header in headers[1:]), end]
    came_in = all(_INTAKE.search(text[h.body : stop].lower()) for h, stop in zip(headers, ends, strict=False))
    return headers if _is_one_each(headers) and came_in else []


def described_headers(text: str, start: int, end: int, engine: Compiled, received: Sequence[str]) -> list[Header]:
    """The specimens that the microscopy goes through; [] unless they are exactly those received."""
    headers = find_parts(text, start, end, engine, received)
    return headers if _is_one_each(headers) and [header.ids[0] for header in headers] == list(received) else []


def _is_one_each(headers: Sequence[Header]) -> bool:
    return len(headers) > 1 and all(len(header.ids) == 1 for header in headers)


def other_subjects(text: str, start: int, end: int, own: Container[str]) -> tuple[str, ...]:
    """Identifiers of specimens that a diagnosis makes statements about and that are not its own."""
    found: list[str] = []
    for subject in _SUBJECT.finditer(text, start, end):
        before = text[max(start, subject.start() - _BEFORE_CHARACTERS) : subject.start()]
        if subject.group("id") not in own and subject.group("id") not in found and _BEFORE_SUBJECT.search(before):
            found.append(subject.group("id"))
    if not found and not own:
        counted = {ordinal.group("which") for ordinal in _ORDINAL.finditer(text[start:end].lower())}
        found = [str(number) for number, word in enumerate(("first", "second", "third"), 1) if word in counted]
    return tuple(found)


def hides_title(text: str, seen: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether the text of one part goes on with the title of another specimen: of the other side, or taken at another place.

    "Left breast, 2:00: carcinoma" within a mastectomy is a finding; with a procedure of its own it is a specimen.
    """
    titles = find_titles(text, seen, start, end, engine)
    line_end = seen.find("\n", start, end)
    own = seen[start : line_end if line_end >= 0 else end] if not titles else seen[start : titles[0][1]]
    sides, place = _sides(own), _PLACE.findall(own)
    for first, last in titles:
        title = seen[first:last]
        if first - start < len(own):
            continue
        if sides and _sides(title) and sides.isdisjoint(_sides(title)):
            return True
        if engine.procedures.pattern.search(title) and _PLACE.findall(title) != place and _PLACE.search(title):
            return True
    return False


def names_two_sides(seen: str, start: int, end: int) -> bool:
    """A sieve before `hides_title`: whether sides are named twice."""
    return seen.count("left", start, end) + seen.count("right", start, end) > 1 or (
        seen.find("lt ", start, end) >= 0 and seen.find("rt ", start, end) >= 0
    )


def _sides(title: str) -> frozenset[str]:
    return frozenset(side[0] for side in _SIDE.findall(title))


def is_still_to_come(text: str) -> bool:
    """Whether a diagnosis only says that it will be given later."""
    return bool(_STILL_TO_COME.search(view(text)))


def ends_in_category(text: str, start: int, end: int) -> bool:
    """Whether the last line gives the category of the biopsy ("B4 - suspicious"): the description ends in its answer."""
    last = text[start:end].rstrip().rpartition("\n")[2].strip()
    return bool(_CATEGORY.search(last[:_CATEGORY_LINE_CHARACTERS]))
