"""What stands in one statement: phrases of the lexicon, answers that stand alone, and words that alarm.

A statement whose key is about something else (margins, receptors, the clinical history) says nothing about the part.
"""

import re
from collections.abc import Sequence

from ingest.context import Token, scan
from ingest.rulefile import FINDING, Compiled, Finding, Kind

# A word built on one of these stems that no rule knows must not pass as benign. The pattern begins with the stem: one that
# begins with the letters before it takes ten times as long (196 against 17 us for 1,200 characters).
_ALARM = re.compile(
    r"(?:c(?:arcino|ancer|hordom)|s(?:arcom|eminom)|l(?:ymphom|euk[ae]*mi)|m(?:elanom|alig|etasta|yelom)|neoplas|blastom|"
    r"g(?:erminom|liom)|tumou?r)[a-z]*"
)
UNRECOGNISED = Finding(id="unrecognised_term", label="weak", terms=("unrecognised",), rank=95)
NEGATIVE = Finding(id="standalone_negative", finding="benign_nos", label="benign", terms=("negative",), rank=72)
NEGATIVE_MARGIN = Finding(id="negative_margin", finding="benign_nos", label="flag", terms=("margin negative",), rank=72)
POSITIVE = Finding(id="standalone_positive", finding="node_metastasis", label="weak", terms=("positive",), rank=60)
_UNRECOGNISED_KIND = Kind(FINDING, -1, UNRECOGNISED.id)
_POSITIVE_KIND = Kind(FINDING, -4, POSITIVE.id)
_NEGATIVE_MARGIN_KIND = Kind(FINDING, -3, NEGATIVE_MARGIN.id)
_NEGATIVE_KIND = Kind(FINDING, -2, NEGATIVE.id)
_WORDLESS = {-1: UNRECOGNISED, -2: NEGATIVE, -3: NEGATIVE_MARGIN, -4: POSITIVE}  # by Kind.index
_FOREIGN_KEY = re.compile(
    r"^(?:[a-z /()-]+ )?(?:margins?|(?:lympho ?|lymph )?vascular invasion|perineural invasion|"
    r"(?:estrogen|progesterone|hormone) receptors?|er|pr|her ?2(?:/?neu)?|ki ?67|grade|size|"
    r"tumou?r (?:size|focality|site|grade|quadrant)|treatment effect[a-z /]*|p[nm](?: category)?|"
    r"distant metastas[ie]s|extranodal extension|calcifications|(?:skin|nipple|skeletal muscle)(?: involvement)?|"
    r"clinical [a-z ]+|procedure|(?:frozen section|intra ?operative|clinical|pre ?operative|previous|"
    r"prior|outside|original|"
    r"referring|submitted|submitting|gross|radiologic|imaging)(?: frozen section)?"
    r"(?: (?:diagnosis|dx|impression|interpretation|consultation|report|findings))?|"
    r"(?:pre|prior|previous|outside|original|initial|earlier|diagnostic)[a-z ]* (?:biopsy|core|specimen|histology|pathology)|"
    r"specimen laterality|(?:ancillary|additional) (?:studies|findings)|biomarkers?)"
    r"(?: \([a-z0-9 /]*\))?(?: status)?$"
)
_NODE_KEY = re.compile(r"^(?:[a-z ]+ )?(?:lymph nodes?|nodes?|pn)(?: [a-z ]+)?$")
_KEY = re.compile(r"[ ]*([a-z][a-z0-9 /()'-]{0,58}?)[ ]*:[ ]*")
_STANDALONE = re.compile(
    r"^(?:(?:all )?(?:neg(?:ative)?|clear|uninvolved|no tumou?r(?: seen| present| identified)?|free of tumou?r|no abnormality|nad)"
    r"(?: for (?:carcinoma|tumou?r|malignancy|ca|mets?|metasta(?:sis|ses|tic \w+)))?(?: x ?\d+)?)"
    r"(?:[ ,]*\(? ?(?:0 ?/ ?\d+|(?:zero|none|0) (?:of|out of) \w+)(?: (?:lymph )?nodes?)? ?\)?|[ ,]*\((?:no|see) [a-z ]*\))?[ .]*$"
)
_MARGIN_STANDALONE = re.compile(
    r"^(?:(?:the|this|new|all|final|inked|surgical) )*(?:margins?|edges?)(?: is| are)?[ :]*(?:negative|clear|free|uninvolved)[ .]*$"
)
_HOW_MANY = r"[ ,]*\(? ?(?:[1-9]\d? ?/ ?\d+|(?!none|zero)[a-z1-9]\w* of [a-z1-9]\w*)(?: (?:lymph )?nodes?)? ?\)?[ ,]*"
_ZERO = ("0", "zero", "none")
_BARE_COUNT = re.compile(
    r"^\(? ?(?P<part>\d{1,2}|zero|none|one|two|three|four|five|six) ?(?:/|of) ?(?:\d{1,2}|[a-z]+)(?: (?:lymph )?nodes?)? ?\)?[ .]*$"
)
_NAMED_STATUS = re.compile(
    r"\b(?:nodes?|parts?|specimens?|margins?) #?(?:[a-z]|\d{1,2})(?:(?:,| and| &| ,)+ (?:[a-z]|\d{1,2}))* "
    r"(?:is|are|was|were) (?P<status>positive|negative)\b"
    r"(?! for)"
)
_POSITIVE_STANDALONE = re.compile(rf"^(?:{_HOW_MANY})?positive(?:{_HOW_MANY})?[ .]*$")


def statement_tokens(view: str, start: int, end: int, engine: Compiled, site: str) -> tuple[list[Token], int]:
    """Tokens of a statement with the unrecognised alarms; the second value is -1 when its key is about something else."""
    key = _KEY.match(view, start, end)
    value_start = start
    if key:
        name = " ".join(key.group(1).split())
        if _FOREIGN_KEY.match(name) or (_NODE_KEY.match(name) and site != "lymph_node"):
            return [], -1
        value_start = key.end()
    asks = key is not None and any(
        t.kind.kind == FINDING for t in scan(engine.lexicon, engine.kinds, view, start, value_start)
    )
    if not asks:  # "carcinoma: negative" is about carcinoma
        value = view[value_start:end].strip()
        if _STANDALONE.match(value):
            return [Token(_NEGATIVE_KIND, value_start, end)], value_start
        if site == "lymph_node" and (bare := _BARE_COUNT.match(value)):
            return [
                Token(_NEGATIVE_KIND if bare.group("part") in _ZERO else _POSITIVE_KIND, value_start, end)
            ], value_start
        if _POSITIVE_STANDALONE.match(value):
            return [Token(_POSITIVE_KIND, value_start, end)], value_start
    if _MARGIN_STANDALONE.match(view[start:end].strip()):
        return [Token(_NEGATIVE_MARGIN_KIND, start, end)], start
    tokens = scan(engine.lexicon, engine.kinds, view, start, end)
    if "positive" in view[start:end] or "negative" in view[start:end]:
        for found in _NAMED_STATUS.finditer(view, start, end):
            kind = _POSITIVE_KIND if found.group("status") == "positive" else _NEGATIVE_KIND
            tokens = [t for t in tokens if t.end <= found.start() or t.start >= found.end()]
            tokens = sorted([*tokens, Token(kind, found.start(), found.end())], key=lambda token: token.start)
    alarms = [
        Token(_UNRECOGNISED_KIND, _word_start(view, start, found.start()), found.end())
        for found in _ALARM.finditer(view, start, end)
        if not covered(tokens, found)
    ]
    if alarms:
        tokens = sorted([*tokens, *alarms], key=lambda token: token.start)
    return tokens, value_start


def finding_of(token: Token, engine: Compiled) -> Finding:
    """The finding a token stands for."""
    index = token.kind.index
    return engine.findings[index] if index >= 0 else _WORDLESS[index]


def covered(tokens: Sequence[Token], found: re.Match[str]) -> bool:
    start, end = found.span()
    return any(token.start <= start and end <= token.end for token in tokens)


def _word_start(view: str, start: int, position: int) -> int:
    while position > start and "a" <= view[position - 1] <= "z":
        position -= 1
    return position
