"""Where the specimen title of a part ends and its diagnosis begins."""

import re

from ingest.context import scan
from ingest.rulefile import FINDING, Compiled, Finding

TITLE_CHARACTERS = 280
_BULLET = re.compile(r"\s{1,9}(?:[-*]|\d[.)])\s")
_SENTENCE_END = re.compile(r"[.;][ \n]+(?=[A-Z])")
_GAP = re.compile(r"(?<=\S)[ ]{3,}(?=\S)")
_DASH = re.compile(r"[ ]-{1,2}[ ]")


def split_title(text: str, view: str, start: int, end: int, engine: Compiled) -> int:
    """Where the specimen title ends and the diagnosis begins; `start` when there is no title.

    The title is what stands before the first colon outside brackets and clock times, or the first line, if it names a site
    or a procedure.
    """
    untitled = start
    while start < end and text[start] in " \n":
        start += 1
    stop = min(end, start + TITLE_CHARACTERS)
    blank = text.find("\n\n", start, stop)
    stop = blank if blank >= 0 else stop
    depth = 0
    for position in range(start, stop):
        character = text[position]
        if character == "(":
            depth += 1
        elif character == ")":
            depth = max(0, depth - 1)
        elif character == ":" and depth == 0:
            clock = 0 < position < end - 1 and text[position - 1].isdigit() and text[position + 1].isdigit()
            if clock:
                continue
            # "DCIS, 64 mm. Nipple: ...": a colon of the diagnosis ends no title
            if not _tells(text, view, start, position, engine) and _is_title(view, start, position, engine):
                return position + 1
            break
        elif character == "\n" and _BULLET.match(text, position, end):
            return position if _is_title(view, start, position, engine) else untitled
        elif character == "\n" and depth == 0 and _key_follows(text, view, start, position, stop, engine):
            break
    line_end = text.find("\n", start, end)
    first_line = line_end if line_end >= 0 else end
    dash = _DASH.search(text, start, min(first_line, stop))
    if dash and _is_title(view, start, dash.start(), engine):
        return dash.end()
    gap = _GAP.search(text, start, min(first_line, stop))
    if gap and text[gap.end() : first_line].strip() and _is_whole_title(view, start, gap.start(), engine):
        return gap.end()
    stop_at = text.find(". ", start, min(first_line, stop))
    if stop_at > 0 and text[stop_at + 2 :].strip() and _is_whole_title(view, start, stop_at, engine):
        return stop_at + 1
    whole_line = line_end >= 0 and text[line_end:end].strip() and _is_title(view, start, line_end, engine)
    return line_end if whole_line and not _holds_diagnosis(view, start, line_end, engine) else untitled


def _is_title(view: str, start: int, end: int, engine: Compiled) -> bool:
    return bool(engine.sites.pattern.search(view, start, end) or engine.procedures.pattern.search(view, start, end))


def _tells(text: str, view: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether a stretch holds a finding and goes on to another sentence: more than a title."""
    if not _SENTENCE_END.search(text, start, end):
        return False
    return _holds_diagnosis(view, start, end, engine)


def _is_whole_title(view: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether a sentence is nothing but a title: "Left breast, microdochectomy"."""
    if len(view[start:end].split()) > 14 or not engine.sites.pattern.search(view, start, end):
        return False
    if not (engine.procedures.pattern.search(view, start, end) or re.search(r"\b(?:left|right)\b", view[start:end])):
        return False
    return not _holds_diagnosis(view, start, end, engine)


def _holds_diagnosis(view: str, start: int, end: int, engine: Compiled) -> bool:
    """Whether a line names a finding, or denies one ("lymph node free of tumour")."""
    tokens = scan(engine.lexicon, engine.kinds, view, start, end)
    found = [engine.findings[t.kind.index] for t in tokens if t.kind.kind == FINDING]
    if any(_speaks(finding) for finding in found):
        return True
    return any(f.excludes for f in found) and any(t.kind.kind.startswith("negation") for t in tokens)


def _key_follows(text: str, view: str, start: int, newline: int, stop: int, engine: Compiled) -> bool:
    """Whether the title ended with its line and the next line is a key of its own ("INVASIVE TUMOR: PRESENT")."""
    if text[newline - 1] in ",/-(" or not _is_title(view, start, newline, engine):
        return False
    colon = text.find(":", newline, stop)
    return colon > 0 and "\n" not in text[newline + 1 : colon].strip() and not _is_title(view, newline, colon, engine)


def _speaks(finding: Finding) -> bool:
    return finding.label not in ("flag", "weak") and finding.id not in ("tissue_only", "capsule")
