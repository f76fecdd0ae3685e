"""Findings met in a stretch of a diagnosis, each with its context and with what it is limited to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ingest.block_names import blocks_named, names_block
from ingest.case import ContextName
from ingest.context import Count, Token, about_foreign, contexts, counts
from ingest.elsewhere import about_other_case, doubts_the_above, is_impression, said_elsewhere
from ingest.report.parts import expand_ids
from ingest.report.statements import statements
from ingest.rulefile import FINDING, IN_SITU, INVASIVE, Compiled, Finding
from ingest.statement_tokens import covered, finding_of, statement_tokens

INVASIVE_FINDING = "invasive_carcinoma"  # of general.toml
IN_SITU_REACH_WORDS = 8  # "carcinoma, ductal type, high grade, in situ"

_COORDINATED = re.compile(r"[ ,]*(?:and|or|nor|&|/|and/or|with|plus)[ ]*(?:an? )?")
_ABSENT_VALUE = re.compile(r"[ ]*(?:no|none|n|neg|negative|0|nil|zero|absent)[ .]*$")
_DENIAL = re.compile(
    r"\b(?:n(?:o(?:t|n|ne|thing|r)?|ever|either|egative)|without|cannot|hardly|scarcely|absen(?:t|ce)|free|lack\w*|fail\w*|"
    r"exclu\w+|ruled? out|den(?:y|ies|ied)|unlikely|against|dis(?:miss\w*|prov\w+)|re(?:fut\w+|tract\w*)|withdr\w+)\b"
)
_INDICATION = re.compile(
    r"\b(?:for|r/o|rule ?out|history of|h/o|hx of|s/p|status post|post|excision of|removal of|resection of|known|prior|previous|"
    r"following|after|contralateral|clinical(?:ly)?|suspected|due to|with clinical|prophylactic|intra ?operative|frozen)\b"
)
_LIKE = re.compile(
    r" like (?:[a-z]+ )?(?:patterns?|growth|features|appearances?|architecture|morphology|areas?|changes?|stroma|foci)\b"
)
_BLOCK = r"[A-Z]{1,2}\d{0,3}"
_AND = r"(?:\s*[,&/]\s*(?:and\s+)?|\s*-\s*|\s+and\s+)"
_SHORT = r"(?:[A-Z]|\d{1,2})"
_REFERENCE = re.compile(
    rf"\b(?:parts?|specimens?|blocks?|slides?|cassettes?|levels? of|designated|cores?|samples?|nodes?|margins?|biops(?:y|ies)|"
    rf"jars?|containers?|sites?)\s+#?({_BLOCK}(?:{_AND}{_BLOCK})*)\b"
    rf"|\(([A-Z]\d{{0,3}}(?:{_AND}[A-Z]\d{{0,3}})*)\)"
    rf"|(?:^|[.;]\s*)({_SHORT}(?:{_AND}{_SHORT})*)\s*:"
    rf"|\b(?:parts?|specimens?)\s+#?(\d{{1,2}}(?:{_AND}\d{{1,2}})*)\b"
    r"|\b(?:in|is)\s+([B-Z](?:\s*(?:,|&|\band\b)\s*[A-Z])*|[A-Z](?:\s*(?:,|&|\band\b)\s*[A-Z])+)(?=\s*(?:[.,;()]|$|only\b|and\b))",
    re.IGNORECASE,
)
_REST = re.compile(
    r"\b(?:remaining|remainder|all other|other|rest of|elsewhere|additional sections|deeper levels?|recuts?)\b"
)
_SCOPED = re.compile(
    r"\b(?:nodes?|nodal|nipple|skin|dermis|muscle|fascia|margins?|quadrants?|areola|chest wall|axilla(?:ry)?|vessels?)\b"
)


_WHOLE = re.compile(r"\b(?:breast (?:tissue|parenchyma)|parenchyma|entire|all sections|specimen)\b")


class Mention(NamedTuple):  # a named tuple for speed, as Token
    """A finding in a context. A negation with a `scope` does not speak of the whole part."""

    finding: Finding
    context: ContextName
    start: int
    end: int
    statement: int  # index of the statement in the passage
    scope: Literal["", "place", "rest", "history"] = ""  # what a negation is limited to, when it is not the whole part
    parts: tuple[str, ...] = ()  # parts of a range that the statement names
    unexplained: bool = False  # affirmed, though its statement holds a denying word that no trigger accounts for


@dataclass(frozen=True, slots=True)
class BlockStatement:
    """A statement that names blocks; the mentions of `statement` are about them."""

    blocks: tuple[str, ...]
    statement: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one passage says."""

    mentions: tuple[Mention, ...]
    partial_counts: tuple[Count, ...]
    blocks: tuple[BlockStatement, ...]


def read(
    text: str,
    view: str,
    start: int,
    end: int,
    engine: Compiled,
    parts: Sequence[str] = (),
    title: bool = False,
    site: str = "",
    side: str = "",
    named: str = "",
) -> Reading:
    """All findings between two offsets with their contexts.

    Args:
        parts: the parts of the passage; with more than one, statements that name some of them are kept to those.
        title: the stretch is a specimen title, where "for carcinoma" is an indication.
        site: of the part; what is said about nodes is passed over unless they are the specimen.
        side: left or right, of the part; what is said of the other side is not about it.
        named: the view of its title; "no tumor in the muscle" answers for a part that is the muscle.
    """
    mentions: list[Mention] = []
    partial: list[Count] = []
    blocks: list[BlockStatement] = []
    says_block = "block" in view
    spans = statements(text, start, end)
    for number, (span_start, span_end) in enumerate(spans):
        tokens, value_start = statement_tokens(view, span_start, span_end, engine, site)
        if value_start < 0:
            continue  # a key about something else: margins, receptors, nodes
        found_counts = counts(view, span_start, span_end) if _has_count(view, span_start, span_end) else []
        zero = [count for count in found_counts if count.part == 0]
        partial += [
            count
            for count in found_counts
            if 0 < count.part < count.whole and _of_nodes(view, span_start, span_end, engine)
        ]
        names = contexts(tokens, view, span_start, span_end, engine.window_words, zero)
        names = _questioned(tokens, names, view, span_start, span_end)
        if _key_is_absent(view, span_start, span_end):
            names = ["negated" if name == "affirmed" else name for name in names]
        statement_mentions = _mentions(tokens, names, view, span_start, span_end, number, engine, named, bool(zero))
        says_cancer = any(m.context == "affirmed" and m.finding.label == "cancer" for m in statement_mentions)
        if says_cancer and any(not covered(tokens, found) for found in _DENIAL.finditer(view, span_start, span_end)):
            statement_mentions = [
                m._replace(unexplained=True) if m.context == "affirmed" else m for m in statement_mentions
            ]
        if statement_mentions and is_impression(view, span_start, span_end):
            statement_mentions = [_impression(mention) for mention in statement_mentions]
        if title:
            statement_mentions = [_as_title(mention, view, span_start) for mention in statement_mentions]
        if len(parts) <= 1:
            if about_other_case(view, span_start, span_end, parts, side):
                statement_mentions = [m._replace(context="historical") for m in statement_mentions]
            statement_mentions = [_elsewhere(m, view, span_end, parts, side) for m in statement_mentions]
        if mentions and not statement_mentions and doubts_the_above(view, span_start, span_end):
            mentions = [_doubted(m) if m.statement == mentions[-1].statement else m for m in mentions]
        if len(parts) > 1:
            statement_mentions = _allocate(statement_mentions, text, span_start, span_end, parts)
        if says_block and (named_blocks := blocks_named(text, view, span_start, span_end)):
            blocks.append(BlockStatement(named_blocks, number))
        mentions += statement_mentions
    return Reading(tuple(mentions), tuple(partial), tuple(blocks))


def _has_count(view: str, start: int, end: int) -> bool:
    return " of " in view[start:end] or "/" in view[start:end]


def _of_nodes(view: str, start: int, end: int, engine: Compiled) -> bool:
    return bool(
        engine.nodes.search(view, start, end)
        or "part" in view[start:end]
        or "specimen" in view[start:end]
        or "core" in view[start:end]
    )


def _key_is_absent(view: str, start: int, end: int) -> bool:
    colon = view.find(":", start, end)
    return colon > 0 and bool(_ABSENT_VALUE.match(view[colon + 1 : end]))


def _questioned(
    tokens: Sequence[Token], names: list[ContextName | None], view: str, start: int, end: int
) -> list[ContextName | None]:
    """Doubt by question mark ("?DCIS"), and an indication before a colon ("rule out carcinoma: radial scar")."""
    colon = view.find(":", start, end) if "rule" in view[start:end] or "r/o" in view[start:end] else -1
    if colon < 0 and "?" not in view[start : end + 1]:
        return names
    result = list(names)
    for index, (token, name) in enumerate(zip(tokens, names, strict=True)):
        if (
            name == "uncertain"
            and token.end <= colon
            and re.search(r"\b(?:rule ?out|r/o)\b", view[start : token.start])
        ):
            result[index] = "hypothetical"
        elif (
            name == "uncertain"
            and 0 < colon < token.start
            and not re.search(r"\b(?:favou?r|possib|suspici|suggest|exclud)", view[colon:end])
        ):
            result[index] = "affirmed"
        elif name == "affirmed" and (
            view[token.start - 1 : token.start] == "?" or view[token.end : token.end + 1] == "?"
        ):
            result[index] = "uncertain"
    return result


def _mentions(
    tokens: Sequence[Token],
    names: Sequence[ContextName | None],
    view: str,
    start: int,
    end: int,
    number: int,
    engine: Compiled,
    named: str,
    has_zero: bool,
) -> list[Mention]:
    affirmed = [token for token, name in zip(tokens, names, strict=True) if name == "affirmed"]
    in_situ = [token for token in affirmed if token.kind.kind == IN_SITU]
    invasive = [token for token in affirmed if token.kind.kind == INVASIVE]
    scope: Literal["", "place", "rest", "history"] = ""
    if "negated" in names:
        if any(token.kind.kind == "negated_history_forward" for token in tokens):
            scope = "history"
        elif _REST.search(view, start, end) or (names_block(view, start, end) and not has_zero):
            scope = "rest"
        elif (place := _SCOPED.search(view, start, end)) and not _WHOLE.search(view, start, end):
            scope = "" if place.group() in named else "place"
    result: list[Mention] = []
    for token, name in zip(tokens, names, strict=True):
        if token.kind.kind != FINDING or name is None or _LIKE.match(view, token.end, end):
            continue
        finding = finding_of(token, engine)
        if finding.id == "insufficient" and name == "affirmed" and about_foreign(tokens, token, view):
            name = "foreign"
        if finding.generic and finding.in_situ_finding and in_situ and not invasive and _near(token, in_situ, view):
            finding = engine.finding_by_name.get(finding.in_situ_finding, finding)
        result.append(Mention(finding, name, token.start, token.end, number, scope if name == "negated" else ""))
    for token, name in zip(tokens, names, strict=True):
        if (
            token.kind.kind == INVASIVE
            and name in ("affirmed", "negated")
            and _beside_in_situ(token, name, result, view)
        ):
            result.append(
                Mention(
                    engine.finding_by_name[INVASIVE_FINDING],
                    name,
                    token.start,
                    token.end,
                    number,
                    scope if name == "negated" else "",
                )
            )
    return result


def _beside_in_situ(token: Token, name: ContextName, mentions: Sequence[Mention], view: str) -> bool:
    """Whether "invasive" shares its noun with an in-situ finding: "no invasive or in situ carcinoma"."""
    for mention in mentions:
        if mention.finding.label == "in_situ" and mention.context == name:
            gap = view[mention.end : token.start] if mention.end <= token.start else view[token.end : mention.start]
            if _COORDINATED.fullmatch(gap):
                return True
    return False


def _near(token: Token, modifiers: Sequence[Token], view: str) -> bool:
    for modifier in modifiers:
        if modifier.start >= token.end and len(view[token.end : modifier.start].split()) <= IN_SITU_REACH_WORDS:
            return True
        if modifier.end <= token.start and not view[modifier.end : token.start].strip(" ,") and modifier.end > 0:
            return True
        if (
            modifier.end <= token.start
            and len(view[modifier.end : token.start].split()) <= 2
            and "," not in view[modifier.end : token.start]
        ):
            return True
    return False


def _as_title(mention: Mention, view: str, start: int) -> Mention:
    if mention.context == "affirmed" and _INDICATION.search(view, start, mention.start):
        return mention._replace(context="hypothetical")
    return mention


def _elsewhere(mention: Mention, view: str, end: int, parts: Sequence[str], side: str) -> Mention:
    if mention.context != "affirmed" or mention.finding.label not in ("cancer", "in_situ", "indeterminate", "weak"):
        return mention
    return mention._replace(context="historical") if said_elsewhere(view, mention.end, end, parts, side) else mention


def _impression(mention: Mention) -> Mention:
    doubtful = mention.context in ("affirmed", "uncertain") and mention.finding.label != "benign"
    return mention._replace(context="hypothetical") if doubtful else mention


def _doubted(mention: Mention) -> Mention:
    return mention._replace(context="uncertain") if mention.context == "affirmed" else mention


def _allocate(mentions: list[Mention], text: str, start: int, end: int, parts: Sequence[str]) -> list[Mention]:
    """Bind the mentions of a statement to the parts it names, if it names some of the range."""
    references: list[tuple[int, tuple[str, ...]]] = []
    for found in _REFERENCE.finditer(text, start, end):
        group = next(value for value in found.groups() if value)
        ids = tuple(part for part in expand_ids(re.sub(r"(?<=[A-Za-z])\d+", "", group)) if part in parts)
        if ids:
            references.append((found.start(), ids))
    if not references:
        return mentions
    if len({ids for _, ids in references}) == 1:
        named = references[0][1]
        return [mention._replace(parts=named) for mention in mentions] if set(named) != set(parts) else mentions
    bound = []
    for index, mention in enumerate(mentions):
        following = mentions[index + 1].start if index + 1 < len(mentions) else end
        after = [ids for position, ids in references if mention.end <= position < following]
        before = [ids for position, ids in references if position <= mention.start]
        bound.append(mention._replace(parts=after[0] if after else before[-1] if before else ()))
    return bound
