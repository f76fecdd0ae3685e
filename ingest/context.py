"""What the words around a finding do to it: negate it, doubt it, place it in the past, in the family, in an "if", or elsewhere.

ConText (Harkema et al. 2009) over one statement: triggers reach forward or backward up to a terminator and a number of words.
Pathology needs four things more: a negation stays with the noun next to it (margins, receptors, vessels), comma lists end where
no "or" follows, a count of zero negates ("0/3", "none of two"), and "cannot be excluded" is doubt, not negation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest.case import ContextName
from ingest.rulefile import FINDING, FOREIGN, IN_SITU, INVASIVE, Kind
from ingest.trie import PhraseTable

TARGETS = frozenset({FINDING, FOREIGN, IN_SITU, INVASIVE})

_NUMBER_WORDS = {
    "zero": 0, "none": 0, "no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "single": 1, "both": 2,
}  # fmt: skip
_NUMBER = rf"(?:\d{{1,3}}|{'|'.join(_NUMBER_WORDS)})"
_COUNT = re.compile(
    rf"\b(?P<part>{_NUMBER})(?: \(\d{{1,3}}\))? (?:out )?of (?:the |a total of )?(?P<whole>{_NUMBER})\b(?: \(\d{{1,3}}\))?"
    r"|(?<![\d/.+])(?P<p>\d{1,3}) ?/ ?(?P<w>\d{1,3})(?![\d/.+])"
)
_AND_LAST = re.compile(r",\s[^,;:]*\band\s[^,;:]+$")
_LIST = re.compile(r"\b(?:or|nor|and/or)\b|/")
_LINK = re.compile(r"\b(?:or|nor|and|and/or)\b|/|&")
_JOINED = re.compile(r"[\s,()]*(?:or|nor|and|and/or|&|/|,? or|,? and|with)\s+(?:[a-z]+ +){0,3}$|\s*/\s*$|\s*\(\s*$")
_COMMA_ONLY = re.compile(r"\s*,\s*(?:[a-z]+ ){0,1}$")
_PRESENT = re.compile(r"[\s,:(]*(?:is |are )?(?:also )?(?:present|identified|seen|positive|noted|found)\b")
_SUBJECT_GAP = re.compile(
    r"[\s:,=-]*(?:(?:are|is|were|was|all|the|widely|focally|both|and|appear|status|of|histologically|remain) *){0,4}$"
)
_NOT_EXCLUDED = re.compile(
    r"(?:can ?not|can't|could not|couldn't|unable to|difficult to|not possible to|is not|are not|not) .*(?:exclu|rule)"
)
_COMPARES = re.compile(r"\b(?:similar|identical|comparable|compared|like|same|resembl\w+)\b")
_ENDS_OPEN = ("negative", "free", "clear", "uninvolved", "not involved", "none involved")
_GOES_ON = re.compile(r" +(?:for|of|by|from)\b")
_NEGATION = Kind("negation_forward")
_OPENING = re.compile(r"(?:^|[,:;(]) *$")
_CLOSING = re.compile(r"[a-z0-9]")
_REPORTED = re.compile(
    r"[\s,]*(?:\([^)]*\)|[a-z]{1,4}\d{2} ?\d{2,8}|,|(?:at|from|in|on|of|dated)(?: [a-z0-9/]+){1,3}|[a-z]+)?[\s,]*"
    r"(?:that |which )?(?:had )?(?:showed|revealed|demonstrated|contained|exhibited|shown|showing)"
)
_AT = re.compile(
    r"[\s,]*(?:is |are )?(?:[a-z]+ ){0,2}?(?:at|on|of|within|to|involving|from|in) (?:the |all |any |inked |new )*$"
)
_LINKS_CLAUSES = re.compile(r"but|however|although|though|which|yet|while")
_ZERO_GAP_FORWARD = re.compile(
    r"[\s()/\d]*(?:[a-z]+ ){0,6}(?:involved|positive|with|contain\w*|show\w*|by|for)? ?(?:by |for )?(?:[a-z]+ )?$"
)
_ZERO_GAP_BACKWARD = re.compile(r"[\s(:]*(?:[a-z]+ ?){0,7}[\s(:]*$")


class Token(NamedTuple):  # a report has twenty; a frozen dataclass takes three times as long to make
    """A phrase of the lexicon in a statement: what it is and where (offsets of the text)."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Count:
    """`part` of `whole`, for example 1/3 lymph nodes."""

    part: int
    whole: int
    start: int
    end: int


def scan(table: PhraseTable, kinds: Sequence[Kind], view: str, start: int, end: int) -> list[Token]:
    """The longest phrases from left to right, without overlap, in the lower-case view of a text."""
    value = table.value
    tokens = []
    for found in table.pattern.finditer(view, start, end):
        phrase = found.group()
        token = Token(kinds[value(phrase)], *found.span())
        if phrase.endswith(_ENDS_OPEN) and token.kind.kind in (FINDING, "negation_backward"):
            on = _GOES_ON.match(view, token.end, end)
            if on:  # "nodes negative" before "for carcinoma": the longest phrase must not swallow the trigger
                token = Token(_NEGATION, token.start, on.end())
        tokens.append(token)
    return tokens


def counts(view: str, start: int, end: int) -> list[Count]:
    """Counts such as 1/3, 0 of 14, none of two; not dates, grades out of larger scores or page numbers."""
    result = []
    for found in _COUNT.finditer(view, start, end):
        part, whole = (
            (found.group("part"), found.group("whole")) if found.group("part") else (found.group("p"), found.group("w"))
        )
        part_number, whole_number = _number(part), _number(whole)
        if 0 <= part_number <= whole_number and whole_number > 0:
            result.append(Count(part_number, whole_number, found.start(), found.end()))
    return result


def contexts(
    tokens: Sequence[Token], view: str, start: int, end: int, window_words: int, zero: Sequence[Count] = ()
) -> list[ContextName | None]:
    """The context of every target among the tokens of one statement; None for triggers.

    Args:
        zero: counts whose part is 0.
    """
    marks: list[set[str]] = [set() for _ in tokens]
    targets = [index for index, token in enumerate(tokens) if token.kind.kind in TARGETS]
    if not targets:
        return [None] * len(tokens)
    for index, token in enumerate(tokens):
        kind = token.kind.kind
        if kind == "presence_backward":
            # "the previously biopsied carcinoma is again seen": said of the lesion, not of the past
            _backward(tokens, targets, index, "present", marks, view, start, window_words)
        elif kind == "negation_backward" and _opens(tokens, index, view, start):
            # "not identified: carcinoma", "nodes, none with carcinoma": nothing stands before it, so it speaks of what follows
            _forward(tokens, targets, index, "negation", marks, view, end, window_words)
        elif kind == "negation_forward" and not _CLOSING.search(view, token.end, end):
            # "carcinoma - none", "invasion: no": nothing follows, so it answers what stands before it
            _backward(tokens, targets, index, "negation", marks, view, start, window_words)
        elif kind.endswith("_forward"):
            what = "doubt" if _NOT_EXCLUDED.match(view, token.start, token.end) else kind[:-8]
            _forward(tokens, targets, index, what, marks, view, end, window_words)
        elif kind.endswith("_backward"):
            what = "doubt" if _NOT_EXCLUDED.match(view, token.start, token.end) else kind[:-9]
            what = (
                "prior" if what == "historical" else what
            )  # "the carcinoma seen previously is no longer present" is denied
            _backward(tokens, targets, index, what, marks, view, start, window_words)
    for count in zero:
        _zero(tokens, targets, count, marks, view)
    result: list[ContextName | None] = [None] * len(tokens)
    for index in targets:
        result[index] = _settle(marks[index])
    for index in targets:
        if result[index] == "negated" and tokens[index].kind.kind != FOREIGN and _about_margin(tokens, index, view):
            result[index] = "foreign"
    return result


def _opens(tokens: Sequence[Token], trigger: int, view: str, start: int) -> bool:
    """Whether nothing that could be negated stands before a trigger that otherwise looks back."""
    if any(t.kind.kind in TARGETS and not t.kind.benign for t in tokens[:trigger]):
        return False
    return bool(_OPENING.search(view[start : tokens[trigger].start]))


def _settle(marks: set[str]) -> ContextName:
    if "family" in marks:
        return "family"
    if "hypothetical" in marks:
        return "hypothetical"
    if "historical" in marks:
        return "historical"
    if "doubt" in marks:
        return "uncertain"  # "not seen but cannot be excluded"
    if "negation" in marks or "negated_history" in marks:
        return "negated"
    if "prior" in marks and "present" not in marks:
        return "historical"
    if "uncertain" in marks:
        return "uncertain"
    return "affirmed"


def _forward(
    tokens: Sequence[Token],
    targets: Sequence[int],
    trigger: int,
    what: str,
    marks: list[set[str]],
    view: str,
    end: int,
    window: int,
) -> None:
    begin = tokens[trigger].end
    stop = _closing_bracket(view, begin, end)
    for token in tokens[trigger + 1 :]:
        if token.start >= stop:
            break
        if token.kind.kind == "terminators":
            if what == "historical" and _REPORTED.fullmatch(view, begin, token.end):
                continue  # "prior core biopsy (S20-1) showed carcinoma"
            stop = token.start
            break
    in_scope = [index for index in targets if begin <= tokens[index].start < stop]
    previous_end, first = begin, True
    for index in in_scope:
        token = tokens[index]
        if len(view[begin : token.start].split()) > window:
            break
        gap = view[previous_end : token.start]
        crossed = any(
            t.kind.kind in ("uncertain_forward", "hypothetical_forward", "historical_forward")
            and previous_end <= t.start < token.start
            for t in tokens[trigger + 1 : index]
        )
        if crossed and what in ("negation", "uncertain", "doubt") and not first:
            break
        if (
            crossed
            and what == "negation"
            and any(
                t.kind.kind == "historical_forward" and previous_end <= t.start < token.start
                for t in tokens[trigger + 1 : index]
            )
        ):
            marks[index].add("historical")
            break
        about_foreign = what in ("negation", "uncertain") and tokens[in_scope[0]].kind.kind == FOREIGN
        if not first and what in ("historical", "prior") and ":" in gap:
            break
        if not first and about_foreign and "," not in gap and not _LINK.search(gap):
            break  # "absence of myoepithelial cells around carcinoma"
        if "," in gap:
            foreign_first = tokens[in_scope[0]].kind.kind == FOREIGN
            later = view[previous_end if foreign_first else begin : stop]
            # "negative for X, Y and Z": with "and" a list only where nothing benign stands in it
            one_kind = what == "negation" and not any(tokens[i].kind.benign for i in in_scope)
            by_and = what == "hypothetical" or one_kind
            listed = bool(_LIST.search(later)) or (by_and and bool(_AND_LAST.search(later)))
            if (
                not first
                and not listed
                and (foreign_first or what in ("historical", "prior", "hypothetical", "family"))
            ):
                break
            if not first and _PRESENT.match(view[token.end : token.end + 30]) and not listed:
                break
            if not first and not listed and what == "negation" and token.kind.kind == FINDING and later.count(",") < 2:
                marks[index].add("uncertain")  # "no X, Y": a list or two statements; not ours to decide
                previous_end = token.end
                continue
            if first and what in ("historical", "hypothetical", "prior") and _breaks(gap):
                break
        marks[index].add(what)
        previous_end, first = token.end, False


def _breaks(gap: str) -> bool:
    return bool(re.search(r",\s*(?:the|this|these|now|current|sections?|left|right|there|with)\b", gap))


def _backward(
    tokens: Sequence[Token],
    targets: Sequence[int],
    trigger: int,
    what: str,
    marks: list[set[str]],
    view: str,
    start: int,
    window: int,
) -> None:
    limit = tokens[trigger].start
    begin = start
    for position, token in enumerate(tokens[:trigger]):
        if token.kind.kind == "terminators" and token.end <= limit:
            shares_subject = _LINKS_CLAUSES.fullmatch(view, token.start, token.end) and not any(
                position < index < trigger for index in targets
            )  # "malignancy was considered but is excluded"
            if not shares_subject:
                begin = max(begin, token.end)
    in_scope = [index for index in targets if begin <= tokens[index].start and tokens[index].end <= limit]
    next_start, first, by_or = limit, True, False
    for index in reversed(in_scope):
        token = tokens[index]
        if len(view[token.end : limit].split()) > window:
            break
        gap = view[token.end : next_start]
        if what == "prior" and _COMPARES.search(gap):
            break  # "carcinoma, similar to that seen previously"
        if first:
            if what == "hypothetical" and len(gap.split()) > 3:
                break
            if gap.count(",") and what != "negation" and len(gap.split()) > 6:
                break
        elif tokens[index + 1].kind.kind in (IN_SITU, INVASIVE) and not gap.strip(" ,-:"):
            pass  # "malignant - in situ: not present" denies one thing
        elif _JOINED.search(gap) or (by_or and "," in gap):
            by_or = by_or or bool(_LIST.search(gap))
        elif (
            _COMMA_ONLY.match(gap)
            and what == "negation"
            and tokens[index].kind.kind == FINDING
            and tokens[in_scope[-1]].kind.kind == FINDING
        ):
            marks[index].add("uncertain")
            break
        else:
            break
        marks[index].add(what)
        next_start, first = token.start, False


def _zero(tokens: Sequence[Token], targets: Sequence[int], count: Count, marks: list[set[str]], view: str) -> None:
    said = [i for i in targets if tokens[i].kind.kind == FINDING and not tokens[i].kind.benign]
    before = [index for index in said if tokens[index].end <= count.start]
    after = [index for index in said if tokens[index].start >= count.end]
    for index in reversed(before):
        if _ZERO_GAP_BACKWARD.fullmatch(view[tokens[index].end : count.start]):
            marks[index].add("negation")
            continue
        break
    previous_end = count.end
    for index in after:
        if not _ZERO_GAP_FORWARD.fullmatch(view[previous_end : tokens[index].start]):
            break
        marks[index].add("negation")
        previous_end = tokens[index].end


def _about_margin(tokens: Sequence[Token], index: int, view: str) -> bool:
    """Whether a negated finding is negated only for a margin: "margins negative for carcinoma", "no carcinoma at margin"."""
    target = tokens[index]
    for position in range(index - 1, -1, -1):
        token = tokens[position]
        if token.kind.kind == FOREIGN:
            trigger = next((t for t in tokens[position + 1 : index] if t.kind.kind.startswith("negation")), None)
            return (
                trigger is not None
                and token.kind.name == "margin"
                and bool(_SUBJECT_GAP.fullmatch(view[token.end : trigger.start]))
            )
        if token.kind.kind == FINDING:
            continue
    for token in tokens[index + 1 :]:
        if token.kind.kind == FOREIGN and token.kind.name == "margin":
            return bool(_AT.fullmatch(view[target.end : token.start]))
    return False


def about_foreign(tokens: Sequence[Token], token: Token, view: str) -> bool:
    """Whether what stands right before a token, as its subject, is a margin, a receptor or another foreign target."""
    before = [t for t in tokens if t.end <= token.start and t.kind.kind in TARGETS]
    return (
        bool(before)
        and before[-1].kind.kind == FOREIGN
        and bool(_SUBJECT_GAP.fullmatch(view[before[-1].end : token.start]))
    )


def _closing_bracket(view: str, begin: int, end: int) -> int:
    depth = 0
    for position in range(begin, end):
        character = view[position]
        if character == "(":
            depth += 1
        elif character == ")":
            if depth == 0:
                return position
            depth -= 1
    return end


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBER_WORDS[text]
