"""Headings: which lines of a report open which kind of text (diagnosis, history, gross, comment, addendum ...).

A heading made around "diagnosis" is read by its other words ("amended final diagnosis", "frozen section diagnosis"), so that
wordings nobody listed still get the right role; every other heading is a listed phrase.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from ingest.report.layout import closed_up
from ingest.rulefile import Compiled

Role = Literal[
    "preamble", "final", "amended", "addendum_diagnosis", "addendum", "comment", "synoptic", "ancillary", "specimens",
    "codes", "previous", "preliminary", "frozen", "history", "gross", "microscopic", "reason", "disclaimer",
    "banner_amended", "banner_preliminary",
]  # fmt: skip
DIAGNOSIS_ROLES: frozenset[str] = frozenset(
    {"final", "amended", "addendum_diagnosis", "preliminary", "previous", "frozen"}
)

MAX_HEADING_CHARACTERS = 70
_BRACKETS = re.compile(r"\([^)]*\)?|\[[^\]]*\]?")
_DATES = re.compile(r"\b\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}\b.*$|#|\bno\.? ?\d+$|\bnumber \d+$")
_DECORATION = re.compile(r"^[\s*#=_>~+-]+|[\s*#=_~+-]+$")
_PART = r"(?:[A-Za-z]|\d{1,2})"
_PART_REFERENCE = re.compile(
    r"^(.*?)[ ,-]*(?:for |on |to |regarding )?\b(?:parts?|specimens?) ?#?"
    rf"({_PART}(?:[ ,&-]+(?:and )?{_PART})*)$",
    re.IGNORECASE,
)
MAX_ANSWER_CHARACTERS = 40  # of "Histology: malignant" in a synoptic; longer text behind the word is a description
_NUMBERED = re.compile(r"^(?:[ivx]+|\d{1,2})[.)] +")
_CONTINUED = re.compile(r"\bcont(?:inued|'d|\.)?\b", re.IGNORECASE)
# These two scan whole reports: a pattern that begins with a set of characters is 5 times faster than one with a look-behind.
_INLINE = re.compile(r"[.!?)\]][ ]+((?:COMMENT|CMT|NOTE|Comment|Note|ADDENDUM|Addendum)[sS]?)[ ]*:")
_INLINE_ANY = re.compile(
    r"[.!?](?<=[\w)\]]{2}.)[ ]+([A-Z][A-Za-z/ -]{2,40}+)(?::|(?<=iagnosis)(?=\n|$)|(?<=IAGNOSIS)(?=\n|$))"
)
# "CONCLUSION Fibrocystic change": a heading in capitals, its text in small letters; "DX - A: left breast ...".
_NO_COLON = re.compile(
    r"^[ ]*(?:((?:[A-Z/&]{2,}[ ])+)(?=[A-Z]?[a-z])|([A-Za-z][A-Za-z/ ]{1,38}?)[ ]-{1,2}[ ])", re.MULTILINE
)
_STANDING = frozenset({"final", "amended", "addendum_diagnosis"})
_INLINE_ROLES = frozenset(
    {"final", "amended", "addendum_diagnosis", "previous", "frozen", "gross", "microscopic", "history"}
)
_SYNOPTIC = re.compile(
    r"\b(?:synoptic|synopsis|template|checklist|proforma|case summary|cancer summary|tumou?r summary|data ?set|cancer protocol)\b"
)
_NO_HEADING = re.compile(r"\b(?:see|refer|is|are|was|in|from|below|above|following)\b")
# "PREVIOUS CASES ON THIS PATIENT:" alone on its line; a scar of an old biopsy is a finding.
_OLD_MATTER = re.compile(
    r"(?!.*\b(?:sites?|changes?|cavity|scar|tract)\b)(?:previous|prior|past|earlier|other|outside|old|related)(?: [a-z/&-]+){1,6}$"
)
_SUPERSEDED = re.compile(
    r"\b(?:superseded|incorrect|erroneous|withdrawn|void|obsolete|replaced|retracted|in error|previous|prior|old)\b"
)
_AMENDED = re.compile(r"\b(?:amended|corrected|revised)\b")
_ABOUT_PART = re.compile(
    r"(?!(?<=[A-Za-z])\([sS]\))[(\[](?:applies to |for |specimen |part |parts |specimens )?"  # not "SPECIMEN(S)"
    rf"({_PART}(?:[ ,&-]+(?:and )?{_PART})*)[)\]]",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading: `start` of its line, `body` where its text begins, how far it is indented, parts it names itself."""

    role: Role
    start: int
    body: int
    indent: int
    parts: str = ""
    inline: bool = False  # text follows on the same line


def find_headings(text: str, engine: Compiled) -> list[Heading]:
    """All headings of a normalised text, in order."""
    headings: list[Heading] = []
    start = 0
    for line in text.split("\n"):
        # A long line without a colon is no heading: most lines of a report end here.
        if len(line) > 1 and (len(line) <= MAX_HEADING_CHARACTERS or ":" in line or line[0] == " "):
            stripped = line.lstrip()
            heading = _heading(line, start, len(line) - len(stripped), engine) if len(stripped) > 1 else None
            if heading is not None and not (
                headings and headings[-1].role == "synoptic" and _is_key(heading, start + len(line))
            ):
                headings.append(heading)
        start += len(line) + 1
    if not any(heading.role in _STANDING for heading in headings):
        headings += _without_colon(text, headings, engine)
    headings += [
        Heading("addendum" if found.group(1)[0] in "aA" else "comment", found.start(1), found.end(), 99, inline=True)
        for found in _INLINE.finditer(text)
    ]
    inline = [
        Heading(role, found.start(1), found.end(), 0, inline=True)
        for found in _INLINE_ANY.finditer(text)
        if (role := _role_of(found.group(1), engine)[0]) in _INLINE_ROLES and _speaks_for_itself(found.group(1), role)
    ]
    if any(
        heading.role in DIAGNOSIS_ROLES for heading in (*headings, *inline)
    ):  # else prose that says "Microscopic: ..."
        spans = [(heading.start, heading.body) for heading in headings]
        headings += [h for h in inline if not any(start <= h.start < body for start, body in spans)]
    headings.sort(key=lambda heading: heading.start)
    return headings


def _without_colon(text: str, headings: Sequence[Heading], engine: Compiled) -> list[Heading]:
    """Headings that end in a dash, or in the small letters of their text; [] unless one of them is a diagnosis."""
    taken = {heading.start for heading in headings}
    found = [
        Heading(role, match.start(), match.end(), len(match.group()) - len(match.group().lstrip()), parts, inline=True)
        for match in _NO_COLON.finditer(text)
        if match.start() not in taken
        for role, parts in [_role_of((match.group(1) or match.group(2)).strip(), engine)]
        if role in _INLINE_ROLES
    ]
    return found if any(heading.role in _STANDING for heading in found) else []


def section_role(name: str, engine: Compiled) -> Role | None:
    """The role of a section name as an LIS gives it ("Final Diagnosis", "$final", "gross"); None when it is unknown."""
    return _role(" ".join(name.strip("$ :").replace("_", " ").replace("-", " ").lower().split()), engine)


def _heading(line: str, start: int, indent: int, engine: Compiled) -> Heading | None:
    colon = line.find(":")
    while 0 < colon < len(line) - 1 and line[colon + 1].isdigit() and line[colon - 1].isdigit():
        colon = line.find(":", colon + 1)  # 2:00 is a time
    if colon > MAX_HEADING_CHARACTERS + indent or (colon < 0 and len(line) > MAX_HEADING_CHARACTERS + indent):
        return None
    candidate = line if colon < 0 else line[:colon]
    if colon >= 0 and candidate.count("(") > candidate.count(")"):
        return None
    role, parts = _role_of(candidate, engine)
    if role is None and colon >= 0 and not line[colon + 1 :].strip() and _OLD_MATTER.match(candidate.strip().lower()):
        role = "previous"
    if role is None:
        return None
    if role == "synoptic" and colon < 0 and line.rstrip().endswith("."):
        return None
    body = start + (colon + 1 if colon >= 0 else 0 if role == "codes" else len(line))  # "SNOMED T04020 M85003"
    if _CONTINUED.search(candidate) and role in DIAGNOSIS_ROLES:
        return None
    return Heading(role, start, body, indent, parts, bool(line[body - start :].strip()))


def _speaks_for_itself(name: str, role: Role | None) -> bool:
    # In the middle of a line "Procedure:" or "Breast:" is a key; a section is named by a fuller word.
    return role != "history" or name.split()[0].lower() in ("clinical", "history")


def _is_key(heading: Heading, line_end: int) -> bool:
    # "Procedure: Total mastectomy" and "Specimen: A" are answers of a synoptic, not new sections.
    if heading.role == "microscopic":
        return heading.inline and line_end - heading.body < MAX_ANSWER_CHARACTERS
    return heading.role in ("history", "specimens", "ancillary", "disclaimer", "preamble") and heading.inline


@lru_cache(maxsize=20_000)
def _role_of(candidate: str, engine: Compiled) -> tuple[Role | None, str]:
    plain = _DECORATION.sub("", _BRACKETS.sub(" ", candidate))
    if not plain or len(plain) > MAX_HEADING_CHARACTERS:
        return None, ""
    if plain[1:2] == " " and plain[3:4] == " ":
        plain = closed_up(plain)
    key = " ".join(plain.lower().replace("-", " ").replace(",", " ").replace("*", " ").split())
    key = _DATES.sub("", key).strip(" .:")
    role = _role(key, engine)
    if role is None and _SYNOPTIC.search(key) and not _NO_HEADING.search(key):
        role = "synoptic"
    if role in ("final", "amended"):
        role = _by_remark(role, " ".join(_BRACKETS.findall(candidate)).lower())
    named = _PART_REFERENCE.match(key) if role is None or role == "synoptic" else None
    if role is not None:
        about = _ABOUT_PART.search(candidate)
        return role, about.group(1).upper() if about else named.group(2).upper() if named else ""
    if named and named.group(1):
        role = _role(named.group(1).strip(" ,"), engine)
        if role is not None:
            return role, named.group(2).upper()
    return None, ""


def _by_remark(role: Role, remark: str) -> Role:
    """The role of a diagnosis heading whose brackets say that it no longer stands, or that it is the new one."""
    if _SUPERSEDED.search(remark):
        return "previous"
    return "amended" if _AMENDED.search(remark) else role


@lru_cache(maxsize=50_000)
def _role(key: str, engine: Compiled) -> Role | None:
    if not key:
        return None
    found = engine.headings.pattern.fullmatch(key)
    if found:
        return cast(Role, engine.heading_roles[engine.headings.value(key)])
    numbered = _NUMBERED.sub("", key)
    if numbered != key:
        return _role(numbered, engine)
    words = [word for word in re.split(r"[^a-z]+", key) if word]
    if not words or len(words) > 8:
        return None
    modifiers = engine.modifiers
    rest = [word for word in words if word not in modifiers["nouns"]]
    if len(rest) == len(words):
        return None
    for role in ("history", "frozen", "previous", "preliminary", "amended", "addendum", "gross"):
        if any(word in modifiers[role] for word in rest):
            known = modifiers["neutral"].union(*(modifiers[name] for name in modifiers))
            if all(word in known for word in rest):
                return "addendum_diagnosis" if role == "addendum" else role
            return None
    return "final" if all(word in modifiers["neutral"] for word in rest) else None
