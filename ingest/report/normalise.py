"""Report text as one clean string: encodings, RTF, HL7 escapes, page headers, hyphen breaks, spelling of key words.

Everything after this file sees only normalised text; evidence offsets count its characters. Line breaks stay, because
headings, part headers and bullets live on them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache

from ingest.case import TextFormat
from ingest.errors import InputError
from ingest.report.layout import checked_answers, columns_as_answers, rows_as_parts
from ingest.rulefile import LONG_WORD

# A text of exactly this length was cut by a column type: VARCHAR(255), Oracle VARCHAR2, SQL Server varchar, an Excel cell, TEXT.
CUT_LENGTHS = frozenset({255, 4000, 8000, 32_767})
# Rarer column types; a whole sentence may end there by chance, a cut word does not.
MAYBE_CUT_LENGTHS = frozenset({256, 2000, 65_535})

_PUNCTUATION = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "\u00b4": "'", "`": "'",
        "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2033": '"', "\u00ab": '"', "\u00bb": '"',
        "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2015": "-", "\u2212": "-",
        "\u2022": "-", "\u25cf": "-", "\u25aa": "-", "\u25a0": "-", "\u00b7": "-", "\uf0b7": "-", "\u2023": "-",
        "\u00a0": " ", "\u2002": " ", "\u2003": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "",
        "\u2026": "...", "\ufb01": "fi", "\ufb02": "fl", "\u00ad": "",
        "\u2028": "\n", "\u2029": "\n", "\x85": "\n", "\x0b": "\n", "\x0c": "\n", "\t": "    ", "\x00": "",
        **{chr(0x245F + number): f"{number}) " for number in range(1, 21)},  # numbers in circles
    }
)  # fmt: skip
_C1 = re.compile("[\x80-\x9f]")
_MOJIBAKE = re.compile("\u00e2\u20ac[\u0080-\u02ff\u2000-\u2122]|\u00c3[\u00a0-\u00bf]|\u00c2[\u00a0-\u00bf]")
_REPETITION = re.compile(r"~(?![ ]?\d)|~(?=[ ]*\d{1,2}[.):])")  # "~3 cm" is no new line, "~3. BREAST" is
_HL7_ESCAPE = re.compile(r"\\(\.[a-z]{2} ?(?:[+-]?\d+)?|[HNFSTRE]|X(?:[0-9A-Fa-f]{2})+|[CMZ][^\\\n]{0,40})\\")
_HL7_CHARACTERS = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", "H": "", "N": ""}
_VISTA = re.compile(r"\|(?:TAB|NOWRAP|WRAP|BLANK\(\d+\)|SETTAB[^|]*|TOP|PAGE)\|")
_TABLE_ROW = re.compile(r"^[ ]*([^|\n]{2,60})\|[ ]*([^|\n]+?)[ ]*\|?[ ]*$", re.MULTILINE)
_LEADERS = re.compile(r"[ ]*(?:\.[ ]?){4,}[ ]*|[ ]*_{4,}[ ]*(?=\S)")
MAX_HEADER_LINE = 200  # characters; a longer line is text, whatever it names
MAX_PAGE_LINE = 160  # a longer line that says "page 1 of 2" is prose
_PAGE = re.compile(
    r"\bpage:? *\d+ *(?:of|/) *\d+|\bpage +\d+ *$|^ *(?:-+ *)?\d+ of \d+(?: *-+)? *$|\bcontinued on (?:next )?page|"
    r"\(?\bcontinued from (?:previous )?page"
)
_DEMOGRAPHIC = re.compile(
    r"\b(?:patient(?: name)?|name|mrn|dob|date of birth|birth ?date|age/sex|sex|physician|ssn|collected|received|"
    r"reported|location|dr\.?|"
    r"(?:med(?:ical)? rec(?:ord)?|accession|acc|case|account|path(?:ology)?|specimen|visit)(?: (?:no|number))?) *[:#]"
)
# Beside a page's number: "Patient: X   MRN 0   Accession Y", whose keys have no colons.
_PATIENT_LINE = re.compile(r"\b(?:patient|mrn|dob|accession)\b.*\b(?:mrn|dob|accession|sex|printed|physician)\b")
_KEY_ENDS = (  # how the keys of _DEMOGRAPHIC end
    "name", "mrn", "dob", "birth", "date", "sex", "physician", "ssn", "collected", "received", "reported", "location", "dr",
    "dr.", "rec", "record", "accession", "acc", "case", "account", "path", "pathology", "specimen", "visit", "no", "number",
)  # fmt: skip
_STRONG_DEMOGRAPHIC = re.compile(r"\b(?:mrn|dob|date of birth|patient name|medical record|ssn)\b *[:#]")
_RULE = re.compile(r"^[ ]*[-=_*~]{4,}[ ]*$")
_CASE_NUMBER_LINE = re.compile(r"^ *[A-Z]{1,4}\d{2}-\d{2,8}\b.{0,80}$")
_LETTERHEAD = re.compile(
    r"^[ ]*(?:[A-Z][A-Za-z.,&' -]*\b(?i:hospital|pathology|medical|cent(?:er|re)|laborator(?:y|ies)|associates|clinic|university|"
    r"institute|department|health|foundation)\b[A-Za-z.,&' -]*|"
    r".*\b[A-Z]{1,4}-?\d{2}-\d{2,8}\b.*\b(?i:printed|page|dob|mrn|\d{1,2}/\d{1,2}/\d{2,4}).*)$"
)
_SMALL_L = re.compile(r"^([ ]*)l(?=[.)] )", re.MULTILINE)
_HYPHEN_BREAK = re.compile(r"([A-Za-z]{2,})-[ ]*\n[ ]*([A-Za-z]{2,})")
MAX_LETTERS_APART = 4  # two edits change at most two letters for two others; a cheap sieve before counting edits
_OCR = str.maketrans("018l|", "OIBII")
_OCR_WORD = re.compile(
    r"\b(?=[A-Z0-9|l]{3,}\b)(?=[0-9|l]*[A-Z])[A-Z|l]*[018l|][A-Z018l|]*[A-Z][A-Z018l|]*\b|\b[A-Z]{2,}[018l|]+\b"
)
_OCR_HINT = re.compile(r"[018l|](?:(?<=[A-Z].)[A-Z]|[A-Z]{2}|(?<=[A-Z]{2}.))")
# Only beside other such errors, and never the N0 of a stage.
_OCR_NO = re.compile(r"N0(?<![A-Za-z0-9]N0)(?<!T\d N0)(?<!T\d, N0)(?<!T\d[a-c] N0)(?= [A-Z]{4})")
MIN_REPAIRED = 6  # letters; a shorter word misspelt is too often another word
_WORD = re.compile(rf"[A-Za-z]{{{MIN_REPAIRED},}}")
_NO_LETTERS = {code: " " for code in range(128) if not chr(code).isalpha()}
_ENDS = re.compile(r"[.:;!?]\s*$|^\s*$")
_BEGINS = re.compile(
    r"\s*(?:$|[-*]|\(?[A-Z]{1,2}[.):]|\(?\d{1,2}[.)]|(?:PART|SPECIMEN|Part|Specimen)\b|[A-Z][A-Za-z ]{2,40}:)"
)


class UnreadableReport(InputError):  # noqa: N818 - the name is the fact
    """A report whose text cannot be had; `reason` is its ledger code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["UnreadableReport"], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class NormalText:
    """Clean text, and what had to be done to it as sorted reason codes (cut, typo_repaired, c1_repaired, ...)."""

    text: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spelling:
    """The words a text is checked against: what is known, what is repaired, what is never touched."""

    known: frozenset[str]
    repair: frozenset[str]
    never: frozenset[str]
    abbreviation: re.Pattern[str] | None = None
    written_out: Mapping[str, str] = field(default_factory=dict)


NO_SPELLING = Spelling(frozenset(), frozenset(), frozenset())


def decode(data: bytes, declared: str | None = None) -> str:
    """Bytes as text: strict UTF-8, else the declared encoding, else refused. Charset guessing called cp1252 cp1250.

    Raises:
        UnreadableReport: undecodable.
    """
    for encoding in ("utf-8-sig", declared):
        if encoding:
            try:
                return data.decode(encoding)
            except (UnicodeDecodeError, LookupError):
                continue
    raise UnreadableReport(
        "undecodable", f"report text: not UTF-8 and not {declared or 'declared otherwise'}; set source.encoding"
    )


def normalise(text: str, text_format: TextFormat = "text", spelling: Spelling = NO_SPELLING) -> NormalText:
    """The clean text of one report version.

    Raises:
        UnreadableReport: RTF that cannot be read, or a text with replacement characters for a fifth of its letters.
    """
    flags: set[str] = set()
    if len(text) in CUT_LENGTHS or (len(text) in MAYBE_CUT_LENGTHS and text.rstrip()[-1:] not in ".!?)"):
        flags.add("text_truncated")
    if text_format == "rtf" or text.lstrip()[:6].lower() == "{\\rtf1":
        text = _TABLE_ROW.sub(r"\1: \2", _from_rtf(text))
        flags.add("rtf")
    if text_format == "hl7_ft" and "~" in text:
        text = _REPETITION.sub("\n", text)
    if "\\" in text:
        unescaped = _HL7_ESCAPE.sub(_unescape, text)
        if unescaped != text:
            flags.add("hl7_escapes")
            text = unescaped
    if not text.isascii():
        text = _repair_characters(text, flags)
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_PUNCTUATION)
    if "|" in text:
        text = rows_as_parts(_VISTA.sub(" ", text))
    if "...." in text or "____" in text or ". . ." in text:
        text = _LEADERS.sub(lambda found: ": " if found.end() < len(text) and text[found.end()] != "\n" else "", text)
    lines, joins = _without_page_headers([line.rstrip() for line in text.split("\n")], flags)
    text = _join(lines, joins)
    if "-\n" in text or "- \n" in text:
        before = text
        text = _HYPHEN_BREAK.sub(lambda found: _mend_hyphen(found, spelling), text)
        if text != before:
            flags.add("hyphen_break")
    if "   " in text:
        text = columns_as_answers(text)
    if "[" in text or "(" in text:
        text = checked_answers(text)
    words = _words(text)
    if spelling.abbreviation is not None and not words.isdisjoint(spelling.written_out):
        text = spelling.abbreviation.sub(lambda found: _written_out(found, spelling.written_out), text)
    mended = _repair_digits(text, spelling, flags)
    words = words if mended is text else _words(mended)
    text = _repair_spelling(mended, words, spelling, flags)
    return NormalText(text, tuple(sorted(flags)))


def view(text: str) -> str:
    """Lower case with hyphens, underscores and white space as spaces; every offset equals the text's."""
    return text.lower().translate(_VIEW) if text.isascii() else text.translate(_VIEW_WIDE)


_VIEW = str.maketrans('-_\n\t"', "     ")
_VIEW_WIDE = str.maketrans(
    '-_\n\t"ABCDEFGHIJKLMNOPQRSTUVWXYZ\u00c0\u00c1\u00c4\u00c7\u00c8\u00c9\u00cd\u00d1\u00d3\u00d6\u00da\u00dc\u00e0\u00e1\u00e4\u00e7\u00e8\u00e9\u00ed\u00f1\u00f3\u00f6\u00fa\u00fc',
    "     abcdefghijklmnopqrstuvwxyzaaaceeinoouuaaaceeinoouu",
)


def _from_rtf(text: str) -> str:
    try:
        from striprtf.striprtf import rtf_to_text
    except ImportError:
        raise UnreadableReport(
            "rtf_reader_missing", "report text is RTF; install the extra: pip install 'fullslide[lis]'"
        ) from None
    if text.count("{") != text.count("}"):
        text += "}" * max(0, text.count("{") - text.count("}"))  # cut RTF: close the groups, the cut shows in the text
    try:
        plain = str(rtf_to_text(text, errors="replace"))
    except (ValueError, IndexError, KeyError, LookupError, AttributeError) as error:
        raise UnreadableReport("rtf_unreadable", f"report text: RTF cannot be read ({type(error).__name__})") from None
    return plain


def _unescape(found: re.Match[str]) -> str:
    code = found.group(1)
    if code[0] == ".":
        return "\n" if code[1:3] in ("br", "sp", "in", "ti", "ce", "fi", "nf") else " "
    if code[0] == "X":
        return bytes.fromhex(code[1:]).decode("cp1252", errors="replace")
    return _HL7_CHARACTERS.get(code, "")


def _repair_characters(text: str, flags: set[str]) -> str:
    if _C1.search(text):  # cp1252 read as latin-1
        flags.add("c1_repaired")
        text = _C1.sub(lambda found: found.group().encode("latin-1").decode("cp1252", errors="replace"), text)
    if _MOJIBAKE.search(text):  # UTF-8 read as cp1252
        try:
            text = text.encode("cp1252").decode("utf-8")
            flags.add("mojibake_repaired")
        except UnicodeError:
            flags.add("mojibake")
    lost = text.count("\ufffd")
    if lost:
        flags.add("replacement_characters")
        if lost * 5 > len(text):
            raise UnreadableReport("undecodable", "report text: most characters are lost; set source.encoding")
    return text


def _without_page_headers(lines: list[str], flags: set[str]) -> tuple[list[str], set[int]]:
    """The lines without page headers and demographics, and the indices of kept lines that a page header preceded."""
    num_lines = len(lines)
    drop = [
        len(line) <= MAX_HEADER_LINE
        and (":" in line or "#" in line or "page" in line or " of " in line)  # a sieve, for speed
        and _is_page_header(line)
        for line in "\n".join(lines).lower().split("\n")
    ]
    if True not in drop:
        return lines, set()
    flags.add("page_header")
    changed = True
    while changed:  # rules, blank lines and case numbers that touch a header line belong to it
        changed = False
        for index in range(num_lines):
            line = lines[index]
            if drop[index] or not (
                not line.strip()
                or _RULE.match(line)
                or _CASE_NUMBER_LINE.match(line)
                or _LETTERHEAD.match(line)
                or _PATIENT_LINE.search(line.lower())
            ):
                continue
            if (index and drop[index - 1]) or (index + 1 < num_lines and drop[index + 1]):
                drop[index] = changed = True
    kept: list[str] = []
    joins: set[int] = set()
    for index, line in enumerate(lines):
        if not drop[index]:
            if index and drop[index - 1] and kept:
                joins.add(len(kept))
            kept.append(line)
    return kept, joins


def _is_page_header(lower: str) -> bool:
    """Whether a line in lower case is the head of a page or names the patient."""
    if ("page" in lower or " of " in lower[:12]) and len(lower) < MAX_PAGE_LINE and _PAGE.search(lower):
        return True
    if not any(before.rstrip().endswith(_KEY_ENDS) for before in lower.replace("#", ":").split(":")[:-1]):
        return False  # a sieve, for speed: most colons follow another word
    num_keys = len(_DEMOGRAPHIC.findall(lower))  # the strong ones are among them
    return num_keys > 1 or (num_keys == 1 and _STRONG_DEMOGRAPHIC.search(lower) is not None)


def _join(lines: list[str], joins: set[int]) -> str:
    """One text; a sentence that a page header cut in two goes on in its line."""
    if not joins:
        return "\n".join(lines)
    pieces: list[str] = []
    for index, line in enumerate(lines):
        if (
            index in joins
            and pieces
            and not pieces[-1].endswith("-")
            and not _ENDS.search(pieces[-1])
            and not _BEGINS.match(line)
        ):
            pieces[-1] = f"{pieces[-1]} {line.strip()}"
        else:
            pieces.append(line)
    return "\n".join(pieces)


def _mend_hyphen(found: re.Match[str], spelling: Spelling) -> str:
    whole = found.group(1) + found.group(2)
    word = whole.lower()
    if word in spelling.known or _repaired(word, spelling.repair, spelling.never) != word:
        return whole
    return f"{found.group(1)}-{found.group(2)}"


def _repair_digits(text: str, spelling: Spelling, flags: set[str]) -> str:
    """Optical character recognition takes O for 0, I for 1 or l, B for 8; mended where a known word comes of it."""

    def mended(found: re.Match[str]) -> str:
        word = found.group().translate(_OCR).upper()
        return word if word.lower() in spelling.known else found.group()

    if not spelling.known:
        return text
    if "l." in text or "l)" in text:
        text = _SMALL_L.sub(r"\g<1>1", text)
    if not _OCR_HINT.search(text):
        return text
    repaired = _OCR_WORD.sub(mended, text)
    if repaired == text:
        return text
    flags.add("ocr_repaired")
    return _OCR_NO.sub("NO", repaired)


def _written_out(found: re.Match[str], words: Mapping[str, str]) -> str:
    short = found.group(1) or found.group(2)
    whole = words[short.lower()]
    return whole.upper() if short.isupper() else whole.capitalize() if short[0].isupper() else whole


def _words(text: str) -> set[str]:
    """Every run of letters, in lower case."""
    return set(text.lower().translate(_NO_LETTERS).split())


def _repair_spelling(text: str, words: set[str], spelling: Spelling, flags: set[str]) -> str:
    if not spelling.repair:
        return text
    wrong: dict[str, str] = {}
    for word in words - spelling.known:
        if len(word) >= MIN_REPAIRED and (right := _repaired(word, spelling.repair, spelling.never)) != word:
            wrong[word] = right
    if not wrong:
        return text
    flags.add("typo_repaired")
    return _WORD.sub(lambda found: _in_case_of(found.group(), wrong.get(found.group().lower())), text)


def _in_case_of(word: str, right: str | None) -> str:
    if right is None:
        return word
    return right.upper() if word.isupper() else right.capitalize() if word[0].isupper() else right


@lru_cache(maxsize=100_000)
def _repaired(word: str, repair: frozenset[str], never: frozenset[str]) -> str:
    """`word`, or the one key word it misspells: the same first letter, one edit (two in long words)."""
    if word in never or word in repair or len(word) < MIN_REPAIRED:
        return word
    best = word
    best_distance = 99
    for candidate in _by_first_letter(repair).get(word[0], ()):
        if abs(len(candidate) - len(word)) > 2 or word in (f"{candidate}s", f"{candidate}ly"):
            continue
        if len(set(word) ^ set(candidate)) > MAX_LETTERS_APART:
            continue
        allowed = 2 if len(candidate) >= LONG_WORD and SequenceMatcher(None, word, candidate).ratio() > 0.85 else 1
        distance = _edits(word, candidate, allowed)
        if distance <= allowed and distance < best_distance:
            best, best_distance = candidate, distance
    return best


@lru_cache(maxsize=8)
def _by_first_letter(words: frozenset[str]) -> dict[str, tuple[str, ...]]:
    letters = {word[0] for word in words}
    return {letter: tuple(sorted(word for word in words if word[0] == letter)) for letter in letters}


def _edits(a: str, b: str, limit: int) -> int:
    """Edits (insert, delete, replace, swap of neighbours) from a to b; more than `limit` comes back as limit + 1."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        if min(current) > limit:
            return limit + 1
        before, previous = previous, current
    return previous[-1]
