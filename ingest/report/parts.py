"""Part headers: A.  A)  A:  A=  (A)  A-C.  A, B.  A & C)  A/1.  PART 1:  SPECIMEN TWO:  JAR A  S20-1 A.  1.  I.  SITE (A):  ...

A header needs words of a specimen title (site, procedure, clock, side), or an identifier that the LIS or the report's own
specimen list knows, or its place in an unbroken series. One style rules a section: numbers under letters are findings.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from ingest.report.normalise import view
from ingest.rulefile import Compiled

Kind = Literal["letter", "lower", "number", "roman", "trailing"]

_ID = r"(?:[A-Z]{1,2}(?![a-z])|[IVX]{1,5}|\d{1,2}|[a-h](?![a-z])|[ivx]{1,5}(?![a-z]))"
_SEPARATOR = (
    r"(?:[ ]*(?:,|&|(?:,[ ]*)?[ ](?:and|AND))[ ]*\n[ ]*|"  # a list of letters may go on in the next line
    r"[ ]*(?:-|,|&|/|\+)[ ]*(?:(?:and|AND|&)[ ]+)?|[ ]+(?:and|AND|through|THROUGH|thru|THRU|to|TO)[ ]+)"
)
_IDS = rf"{_ID}(?:[).]?{_SEPARATOR}\(?{_ID})*"
_NUMBER_WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN")
_WORDS = (
    "Parts?|Specimens?|Spec|Containers?|Jars?|Samples?|Pots?|Vials?|Bottles?|Items?|Sites?|Lesions?|Tubes?|Tissues?|"
    "Biops(?:y|ies)"
)
_CASE = r"(?:[A-Z]{1,4}-?\d{2}-\d{2,8}[ -]?)"
_LEADING = re.compile(
    rf"[ ]*(?:(?:[*>-]|\#(?!\d))+[ ]*)?(?P<word>(?:{_WORDS}|{_WORDS.upper()})\b(?:\([sS]\))?+\.?[ ]*(?:\#|[Nn][Oo]\.?)?[ ]*|"
    rf"[TRAZN][OoEeDdu]\.?[ ]+(?={_IDS}[ ]?:)|{_CASE}[ ]*)?"
    rf"(?P<open>[(\[<{{]|\#)?(?P<ids>{_IDS}|(?<=[ ])(?:{'|'.join(_NUMBER_WORDS)})(?![A-Z]))"
    r"(?P<close>\.[)-]|[)\]>}][.:]?|[.:](?!\d)|[ ]*[=>]|/(?=[ ])|[ ]*-(?=[ \n])|[ ]*,|(?P<wide>[ ]{2,}|[ ]+)|(?=\n|$))\**"
)
_TITLE = r"(?:[^\n:]|(?<=\d):(?=\d\d))"  # a colon within a title is a clock's
_TRAILING = re.compile(
    rf"[ ]*(?P<title>{_TITLE}{{3,140}}?)[ ]*[(\[](?:(?P<word>PART |SPECIMEN |Part |Specimen |part |specimen )|{_CASE})?"
    rf"(?P<ids>{_IDS})[)\]][ ]*(?P<close>:|-(?=[ ])|,(?={_TITLE}{{0,80}}:)|(?=\n|$))"
)
_INLINE = re.compile(
    r"[ ](?<=[.;:)/\w][ ])[ ]*(?P<open>\(?)(?P<ids>[A-Z]|\d{1,2})(?P<close>[.):])[ ]+(?:(?=[A-Z(])|(?<=: )(?=[a-z]))"
)
# "Specimen 1 (left breast) shows ..., whereas specimen 2 (right breast) shows ...": specimens as the subjects of one sentence.
_SUBJECT = re.compile(
    r"[,;.][ ]+(?:(?:and|whereas|while|whilst|but)[ ]+)?(?:[Tt]he[ ]+)?(?:[Ss]pecimen|[Pp]art)[ ]+#?(?P<ids>[A-Z]|\d{1,2})[ ]+"
    r"(?=\((?P<title>[^)\n]{4,80})\)[ ]+(?:shows?|contains?|demonstrates?|reveals?|is|consists?|comprises?)\b)"
)
_IN_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")
# A mark before a title may be one that no header style knows: "Z. ", "<A> ", "8) ".
_MARK = r"[ ]*(?:[^A-Za-z\n]{0,3}(?:(?![LR]B?\b)[A-Z]{1,2}|\d{1,2})?[^A-Za-z\n]{1,4})?"
_BARE = (
    rf"(?:[Tt]he[ ]+)?(?P<title>[A-Za-z]{_TITLE}{{0,140}}?)"
    r"(?::(?!\d)|[ ]-{1,2}[ ]|(?=\n)|[ ](?=(?:shows?|contains?|demonstrates?|reveals?|SHOWS?|CONTAINS?)\b))"
)
_FIRST_TITLE = re.compile(_MARK + _BARE)
_BARE_TITLE = re.compile(rf"(?:^{_MARK}|(?<=[.;])[ ]+|[ ](?:and|whereas|while|but)[ ]+){_BARE}", re.MULTILINE)
_SIDE = re.compile(r"\b(?:left|right|lt|rt|l|r|bilateral)\b")
_ONLY_SIDE = re.compile(r"(?:the )?(?:left|right|lt|rt|[lr]b?)(?: side)?")
_NO_TITLE = re.compile(
    r"\b(?:is|are|was|were|has|have|shows?|see|identified|present|received|labell?ed|laterality|from|of tumou?r)\b"
)
_SHARES_TITLE = re.compile(r"(?:,|&|\b(?:and|AND))\s*$")
_COLON = re.compile(r":(?!\d\d)")
_COUNTED = re.compile(
    r"\b(?:focus|foci|grade|block|level|core|slide|type|class|lesion|group|stage|nodule|mass|tumou?r|number|no|x)$",
    re.I,
)
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d)?(?: ?- ?\d{1,2}(?::\d\d)?)? ?o'?clock|\b\d{1,2}:\d\d\b")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10}
_TITLE_CHARACTERS = 160


class Header(NamedTuple):  # a named tuple for speed
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
        return _row_of_letters(candidates, text, start, end)
    candidates = _as_romans(candidates) if kind == "roman" else candidates
    return _accept([c for c in candidates if c.kind == kind], text, end, engine, known, last)


def expand_ids(text: str) -> tuple[str, ...]:
    """`A-C` -> A, B, C; `A, B` and `A & C` -> as listed; `A/1` -> A."""
    pieces = re.split(rf"[).]?({_SEPARATOR})\(?", text.strip())
    ids: list[str] = [pieces[0].upper()]
    for separator, piece in zip(pieces[1::2], pieces[2::2], strict=False):
        mark, piece = separator.strip().lower(), piece.upper()
        if mark == "/" and piece.isdigit() != ids[-1].isdigit():
            ids[-1] = ids[-1] if piece.isdigit() else piece  # A/1 and 1/A both name part A
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


def find_titles(text: str, seen: str, start: int, end: int, engine: Compiled) -> list[tuple[int, int]]:
    """Specimen titles without an identifier at the head of a line or sentence: where each begins and where its text begins.

    A title names a site, a side and a procedure (or a clock position) before a colon, a dash or "shows"; where the titles are of
    different sides, the site and the side are enough.
    """
    titles: list[tuple[int, int]] = []
    short: list[tuple[int, int]] = []
    begin = start + len(text[start:end]) - len(text[start:end].lstrip())
    found = _FIRST_TITLE.match(text, begin, end)
    while (found := found or _BARE_TITLE.search(text, begin, end)) is not None:
        first, last = found.span("title")
        begin, end_of_title, found = max(found.end(), begin + 1), found.end(), None
        site = engine.sites.pattern.search(seen, first, last)
        if site is None and _ONLY_SIDE.fullmatch(seen, first, last):
            short.append((first, end_of_title))
            continue
        if site is None or not _SIDE.search(seen, first, last) or _NO_TITLE.search(seen, first, last):
            continue
        whole = engine.procedures.pattern.search(seen, first, last) or _CLOCK.search(seen, first, last)
        (titles if whole else short).append((first, end_of_title))
    if short and len({_first_side(seen, title) for title in (*titles, *short)}) > 1:
        return sorted((*titles, *short))
    return titles


def _first_side(seen: str, title: tuple[int, int]) -> str:
    found = _SIDE.search(seen, *title)
    return found.group()[0] if found else seen[title[0]]  # "rb:"


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
            plural = (
                trailing and text[trailing.end("title") : trailing.end("title") + 3].upper() == "(S)"
            )  # "TISSUE(S)"
            if trailing and not plural and has_title_words(trailing.group("title"), 0, 200, engine):
                more = _IN_BRACKETS.findall(trailing.group("title"))  # "left breast (A) and right breast (B), cores:"
                ids = tuple(dict.fromkeys((*more, *expand_ids(trailing.group("ids")))))
                lettered = len(ids[0]) == 1 or ids[0][0] == ids[0][1] if ids and not ids[0].isdigit() else False
                # "(0/2)" and "(2)" behind words are counts; a number needs the word "part"
                if lettered or (ids and trailing.group("word")):
                    indent = len(trailing.group()) - len(trailing.group().lstrip())
                    header = Header(ids, "trailing", position, position, indent, titled=True)
        if header is not None:
            yield header
            if header.body > line_end:  # its letters went over two lines
                line_end = text.find("\n", header.body, end)
                line_end = end if line_end < 0 else line_end
        position = line_end + 1


def _leading(found: re.Match[str], text: str, line_end: int, end: int, engine: Compiled) -> Header | None:
    ids_text, worded = found.group("ids"), bool(found.group("word"))
    if ids_text.upper() in _NUMBER_WORDS:
        if not worded:
            return None
        ids_text = str(_NUMBER_WORDS.index(ids_text.upper()) + 1)
    if found.group("word") is None and found.group("open") == "#" and not ids_text.isdigit():
        return None
    close = found.group("close")
    body = found.end()
    titled = has_title_words(text, body, _title_end(text, body, end), engine)
    if found.group("wide") is not None or not close or close.strip() == ",":
        # Bare: "A  BREAST, LEFT" or "PART A<newline>"; letters need a title at once, in capitals.
        alone = not close and re.fullmatch(r"[A-Z]", ids_text) and text[body : body + 1] == "\n"
        if not worded and alone:
            below = text.find("\n", body + 1, end)
            below = end if below < 0 else below
            if not has_title_words(text, body, below, engine) or _LEADING.match(text, body + 1, below):
                return None  # a letter alone on its line stands above its title
        elif found.group("open") == "#":
            if not titled:
                return None
        elif not worded:
            comma = close.strip() == ","  # "A, BREAST, LEFT": a full stop misread
            capital = r"[A-Z][A-Za-z'/-]+\b" if close and len(close) > 1 else r"[A-Z][A-Z'/-]+\b"
            first = re.match(capital, text[body:line_end].lstrip() if comma else text[body:line_end])
            wide_number = ids_text.isdigit() and close and len(close) > 1
            if not (first and (re.fullmatch(r"[A-Z]", ids_text) or wide_number) and close):
                return None
            if comma and (not first.group().isupper() or len(first.group()) < 4):
                return None
            if close == " " and ids_text in "LR":
                return None  # "L BREAST" is a side
            if not has_title_words(text, body, min(line_end, body + 30), engine):
                return None
            if close == " " and (ids_text in "AI" and not first.group().isupper()):
                return None
    elif (not close.strip() and not worded) or (close.strip() in ("=", ">", "/") and not titled):
        return None
    ids = expand_ids(ids_text)
    if not ids:
        return None
    kind: Kind
    first_id = ids_text[0:2] if len(ids_text) > 1 and ids_text[1:2].isalpha() else ids_text[0]
    if ids[0].isdigit():
        kind = "number"
    elif first_id[0] in "ivx":
        if not roman_ordinal(ids[0]):
            return None
        kind = "roman"
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
    return Header(ids, kind, found.start(), body, indent, worded, titled, found.group("open") in ("(", "[", "<", "{"))


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
            starts = candidate.ids[0] in ("1", "A") or _runs_on([other for other in same if other.titled])
            if starts and candidate.titled and not lead_titled:
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


def _runs_on(headers: Sequence[Header]) -> bool:
    """Whether titled headers count on without a gap from any number: 9, 10, 11."""
    values = [ordinal(part) for header in headers for part in header.ids]
    return len(values) > 1 and values == list(range(values[0], values[0] + len(values)))


def _as_romans(candidates: Sequence[Header]) -> list[Header]:
    return [
        c._replace(kind="roman") if c.kind == "letter" and len(c.ids) == 1 and roman_ordinal(c.ids[0]) else c
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
    return _with_subjects(_with_inline(accepted, text, end, engine, known), text, end, engine)


def _row_of_letters(candidates: Sequence[Header], text: str, start: int, end: int) -> list[Header]:
    """Parts without titles in one line that begins the section: "A: Fibroadenoma. B: Invasive carcinoma."."""
    if not candidates or candidates[0].ids != ("A",) or candidates[0].kind != "letter":
        return []
    if text[start : candidates[0].start].strip():
        return []
    row = [candidates[0]]
    for found in _INLINE.finditer(text, row[0].body, end):
        if found.group("ids") == chr(65 + len(row)) and bool(found.group("open")) == row[0].bracketed:
            row.append(row[0]._replace(ids=(found.group("ids"),), start=found.start(), body=found.end()))
    return row if len(row) > 1 else []


def _with_subjects(accepted: list[Header], text: str, end: int, engine: Compiled) -> list[Header]:
    """Further parts that are subjects of the last header's sentence."""
    if not accepted or not accepted[-1].worded:
        return accepted
    result = list(accepted)
    for found in _SUBJECT.finditer(text, accepted[-1].body, end):
        part, last = found.group("ids"), result[-1]
        follows = part.isdigit() == last.ids[0].isdigit() and ordinal(part) == ordinal(last.ids[-1]) + 1
        if follows and has_title_words(found.group("title"), 0, len(found.group("title")), engine):
            result.append(last._replace(ids=(part,), start=found.start(), body=found.end(), titled=True))
    return result


def _with_inline(accepted: list[Header], text: str, end: int, engine: Compiled, known: Sequence[str]) -> list[Header]:
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
            if _COUNTED.search(text[max(0, found.start() - 12) : found.start()]):
                continue  # "FOCUS 2. DCIS"
            if (
                bool(found.group("open")) != header.bracketed
                or part.isdigit() != header.ids[0].isdigit()
                or ordinal(part) != last + 1
            ):
                continue
            if part in known or has_title_words(text, found.end(), min(stop, found.end() + 60), engine):
                before: tuple[str, ...] = ()
                if _SHARES_TITLE.search(text, result[-1].body, found.start()) and not _COLON.search(
                    text, result[-1].body, found.start()
                ):
                    before = result.pop().ids  # "A. Left breast, 1:00 and B. Left breast, 2:00, cores:" share one text
                result.append(
                    Header(
                        (*before, part),
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
