"""Whether a statement speaks of something else: another part, case or side, an impression, or what went before.

"Carcinoma described in part B does not extend into this specimen" is no carcinoma here, whatever trigger it lacks.
"""

import re
from collections.abc import Sequence

_VERBS = "described|seen|noted|identified|present|found|reported|diagnosed|documented|located"
_OF_PART = re.compile(
    rf"[\s,(]*(?:(?:which|that|is|are|was|were|already|as|of|the|tumou?r) +)*(?:{_VERBS})?[\s,]*"
    r"(?:in|of|from|under|for) (?:the )?(?:parts?|specimens?) #?(?P<id>[a-z]{1,2}|\d{1,2})\b"
)
_OF_CASE = re.compile(
    rf"[\s,(]*(?:(?:which|that|is|are|was|were|already|as|of|the|had been) +)*(?:{_VERBS})[\s,]*"
    r"(?:in|of|from|under|on|at)[^.;]{0,40}\b[a-z]{1,4} ?\d{2} ?\d{2,8}\b"
)
# "... diagnosed on core (S23-70041) is also present in this excision"
_PRESENT_HERE = re.compile(
    r"\b(?:(?:is|are|was|were) (?:also |again |still |now )?(?:present|seen|identified|found|noted)|persists?|remains?)\b"
)
_OF_SIDE = re.compile(
    rf"[\s,(]*(?:(?:which|that|is|are|was|were|already|as|the|known|{_VERBS}) +)*(?:in|of|on|from|involving) "
    r"(?:the |her |his |patient's )*(?P<side>left|right|contralateral|opposite|other) (?:breast|side)\b"
)
_OTHER_CASE = re.compile(
    r"(?:the |a )?(?:[a-z]+ ){0,2}?(?P<side>left|right|contralateral|opposite|other) (?:breast|axilla\w*|side)\b.{0,60}"
    r"(?:(?P<apart>\breported separately|\bseparate(?:ly)? report)|\b[a-z]{1,4} ?\d{2} ?\d{2,8}\b(?!.*\breported separately))"
)
_FOR_SEE = re.compile(
    r"(?:for|regarding|as to|concerning) [^.;:]{3,60}? (?:see|refer to) (?:also )?(?:the )?"
    r"(?:part|specimen) #?(?P<id>[a-z]{1,2}|\d{1,2})\b"
)
# "Gross and mammographic features had suggested carcinoma": somebody else's impression.
_IMPRESSION = re.compile(
    r"(?:the )?(?:gross(?:ly)?|clinical(?:ly)?|radiolog\w+|mammogra\w+|imaging|sonogra\w+|ultrasound|mri|surgeon\S*|"
    r"macroscopic(?:ally)?)\b"
    r"[^.;:]{0,60}?\b(?:suggest\w*|suspic\w*|suspect\w*|rais\w+|concern\w*|impression|favou?r\w*|thought|considered|resembl\w+|"
    r"look\w*|simulat\w*|mimic\w*)\b"
)
# "Excision is recommended, since carcinoma is found in a proportion of such cases": advice, not a finding.
_ADVICE = re.compile(
    r"(?:[a-z]+ ){0,5}?(?:excision|biops(?:y|ies)|sampling|follow up|surgery|correlation|removal|mri|imaging) "
    r"(?:is|are|(?:may|should|would|could) be) (?:[a-z]+ )?(?:recommended|advised|suggested|warranted|indicated|considered|needed)"
    r"[ ,]+(?:since|because|as|given|due to|in view of)\b"
)
_ALONE_IN_DOUBT = re.compile(
    r"(?:this |it |the diagnosis |which )?(?:can ?not|could not) be (?:further |reliably |definitively |clearly )?"
    r"(?:determined|classified|excluded|distinguished|established|confirmed|ruled out)"
)


def said_elsewhere(view: str, position: int, end: int, parts: Sequence[str], side: str) -> bool:
    """Whether the words behind a finding place it in another part, another case or the other side.

    Args:
        position: where the finding ends; `end` ends its statement.
        parts: identifiers of the passage, empty when it has none.
        side: left or right, of the part.
    """
    found = _OF_PART.match(view, position, end)
    if found and parts and found.group("id").upper() not in parts:
        return True
    case = _OF_CASE.match(view, position, end)
    if case and not _PRESENT_HERE.search(view, case.end(), end):
        return True
    other = _OF_SIDE.match(view, position, end)
    return other is not None and side in ("left", "right") and other.group("side") != side


def about_other_case(view: str, start: int, end: int, parts: Sequence[str], side: str) -> bool:
    """Whether a statement is about the other side as another case, "The right breast cores (S24-102) show ...", or points to
    another part, "For the carcinoma see part A"."""
    pointed = _FOR_SEE.match(view, start, end)
    if pointed and parts and pointed.group("id").upper() not in parts:
        return True
    other = _OTHER_CASE.match(view, start, end)
    if other is None:
        return False
    return bool(other.group("apart")) or (side in ("left", "right") and other.group("side") != side)


def is_impression(view: str, start: int, end: int) -> bool:
    """Whether a statement tells what the gross, clinical or imaging findings suggested, or why more tissue is advised."""
    return _IMPRESSION.match(view, start, end) is not None or _ADVICE.match(view, start, end) is not None


def doubts_the_above(view: str, start: int, end: int) -> bool:
    """Whether a statement without a finding of its own leaves the one before it open: "; cannot be determined"."""
    return _ALONE_IN_DOUBT.match(view, start, end) is not None
