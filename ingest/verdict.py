"""From the findings of one part to one label. Nothing defaults to benign: benign must be said.

Order within a part: cancer, in situ, doubt, no answer, benign. A word that sounds malignant and that no rule knows, a generic
cancer word beside "no carcinoma", or a stage that the text denies, make the part indeterminate instead of either class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ingest.case import Label
from ingest.mentions import Mention
from ingest.rulefile import Finding
from ingest.statement_tokens import NEGATIVE_MARGIN, POSITIVE, UNRECOGNISED

GENERIC_RANK = 45  # findings from this rank on only say "cancer", not which
_POSITIVE_NODE = Finding(
    id="node_positive", finding="node_metastasis", label="cancer", terms=("positive",), rank=44, excludes=True
)
_CLEAR_NODE = Finding(id="no_epithelium", finding="node_negative", label="benign", terms=("no epithelium",), rank=45)
_IN_NODES = {POSITIVE.id: _POSITIVE_NODE, "node_positive": _POSITIVE_NODE, "no_epithelium": _CLEAR_NODE}
SPECIFIC_BENIGN_RANK = 50  # findings below this rank name a lesion
PRIMARY_STAGES = frozenset({"stage_invasive", "stage_in_situ"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """A label with the finding that names it and the mentions that decided; `decided` False = nothing was said."""

    label: Label
    finding: str
    rule: str
    decided: bool
    findings: tuple[str, ...] = ()
    atypia: bool = False
    mentions: tuple[Mention, ...] = ()
    flags: tuple[str, ...] = ()


NOTHING = Verdict("not_assessable", "no_finding", "none", decided=False)


def judge(mentions: Sequence[Mention], site: str, procedure: str) -> Verdict:
    """The verdict on one part.

    Args:
        site: a negation about nodes counts for a node part, one about skin for a skin part.
        procedure: a negation about margins counts for a margin part.
    """
    mentions = for_site(mentions, site)
    affirmed = [m for m in mentions if m.context == "affirmed"]
    doubted = [m for m in mentions if m.context == "uncertain"]
    excluded = [m for m in mentions if _can_exclude(m, procedure) and _excludes_here(m, site, procedure)]
    by_label: dict[str, list[Mention]] = {}
    for mention in affirmed:
        by_label.setdefault(mention.finding.label, []).append(mention)
    atypia = any(m.finding.atypia for m in affirmed)
    findings = tuple(
        sorted(
            {m.finding.name for m in affirmed if m.finding.label in ("cancer", "in_situ", "benign", "indeterminate")}
        )
    )

    def verdict(label: Label, finding: str, mention: Mention, *more: Mention, flags: tuple[str, ...] = ()) -> Verdict:
        context = "" if mention.context == "affirmed" else f".{mention.context}"
        return Verdict(label, finding, mention.finding.id + context, True, findings, atypia, (mention, *more), flags)

    if procedure == "margin" and any(m.finding.id not in PRIMARY_STAGES for m in mentions):
        for label in ("cancer", "in_situ"):  # of a line about the whole case, below the last of its margins
            by_label[label] = [m for m in by_label.get(label, []) if m.finding.id not in PRIMARY_STAGES]
    cancer, in_situ = by_label.get("cancer", []), by_label.get("in_situ", [])
    doubt = [
        m
        for m in doubted
        if m.finding.label in ("cancer", "in_situ", "indeterminate", "weak") and m.finding is not UNRECOGNISED
    ]
    if cancer:
        first = _first(cancer)
        if excluded and all(m.finding.rank >= GENERIC_RANK for m in cancer):
            return verdict("indeterminate", "contradiction", first, *excluded, flags=("contradiction",))
        sure = [m for m in cancer if not m.unexplained]
        named_benign = [m for m in by_label.get("benign", []) if m.finding.supports_alone]
        if not sure and (named_benign or all(m.finding.rank >= GENERIC_RANK for m in cancer)):
            return verdict("indeterminate", "unexplained_denial", first, flags=("contradiction",))
        return verdict("cancer", _cancer_name(first, cancer, site), first)
    if in_situ:
        return verdict("in_situ", _first(in_situ).finding.name, _first(in_situ))
    if doubt:
        first = _first(doubt)
        adh = first.finding.label == "in_situ" and any(m.finding.id == "adh" for m in mentions)
        return verdict("indeterminate", "adh_vs_dcis" if adh else "suspicious", first)
    if by_label.get("indeterminate"):
        first = _first(by_label["indeterminate"])
        return verdict("indeterminate", first.finding.name, first)
    benign = by_label.get("benign", [])
    alone = [m for m in benign if m.finding.supports_alone]
    answerless = by_label.get("not_assessable", [])
    if answerless:
        first = _first(answerless)
        named = alone and _first(alone).finding.rank < SPECIFIC_BENIGN_RANK
        answered = excluded and all(m.finding.id in ("organ_missed", "no_epithelium") for m in answerless)
        if not (named and first.finding.id in ("insufficient", "gross_only")) and not answered:
            return verdict("not_assessable", first.finding.name, first)
    unknown = [m for m in mentions if m.finding is UNRECOGNISED and m.context in ("affirmed", "uncertain", "foreign")]
    if unknown:
        return verdict("indeterminate", "unrecognised_term", unknown[0], flags=("unrecognised_term",))
    if alone:
        first = _first(alone)
        return verdict("benign", _benign_name(first, mentions, site), first, *excluded[:1])
    denied = {
        m.statement for m in excluded
    }  # "no carcinoma, fibroadenoma": doubtful in its statement, which denies cancer
    hedged = [m for m in doubted if m.finding.label == "benign" and m.statement not in denied]
    if hedged:
        first = hedged[0]
        return verdict("indeterminate", "hedged_benign", first)
    if excluded:
        return verdict("benign", _benign_name(None, mentions, site), excluded[0])
    margin = [m for m in affirmed if m.finding is NEGATIVE_MARGIN or m.finding.id == "tissue_negative"]
    if margin and (procedure == "margin" or (site == "skin" and margin[0].finding is not NEGATIVE_MARGIN)):
        return verdict("benign", "benign_nos", margin[0])
    weak = [m for m in by_label.get("weak", []) if m.finding is not UNRECOGNISED]
    if weak:
        return verdict("indeterminate", "unspecified_lesion", weak[0])
    return NOTHING


def for_site(mentions: Sequence[Mention], site: str) -> Sequence[Mention]:
    """In a node part "positive" alone is a metastasis, tissue without epithelium a clear node, and a pT that of the breast."""
    if site != "lymph_node":
        return mentions
    return [
        m._replace(finding=_IN_NODES[m.finding.id]) if m.finding.id in _IN_NODES else m
        for m in mentions
        if m.finding.id not in PRIMARY_STAGES
    ]


def _can_exclude(mention: Mention, procedure: str) -> bool:
    # "No DCIS", "phyllodes not seen" answer for a margin or a re-excision; elsewhere they leave the lesion open.
    sought = procedure in ("margin", "re_excision") and mention.finding.label not in ("not_assessable", "flag")
    return mention.finding.excludes or sought


def _excludes_here(mention: Mention, site: str, procedure: str) -> bool:
    if mention.context == "foreign":
        return procedure == "margin"
    if mention.context != "negated":
        return False
    if mention.scope == "place":
        return site in ("lymph_node", "skin", "nipple") or procedure == "margin"
    return mention.scope == ""


def _first(mentions: Sequence[Mention]) -> Mention:
    return min(mentions, key=lambda m: (m.finding.rank, m.start))


def _cancer_name(first: Mention, cancer: Sequence[Mention], site: str) -> str:
    if site == "lymph_node":
        if any(m.finding.id == "micrometastasis" for m in cancer):
            return "micrometastasis"
        if first.finding.id not in ("lymphoma", "melanoma", "sarcoma"):
            return "node_metastasis"
    return first.finding.name


def _benign_name(first: Mention | None, mentions: Sequence[Mention], site: str) -> str:
    if site == "lymph_node" and (
        first is None or first.finding.rank >= SPECIFIC_BENIGN_RANK or first.finding.id == "node_negative"
    ):
        return "node_negative"
    treated = any(
        m.finding.id in ("treatment_effect", "treated_no_residual", "stage_zero") and m.context != "negated"
        for m in mentions
    )
    if treated and site != "lymph_node" and any(m.finding.excludes and m.context == "negated" for m in mentions):
        return "treated_no_residual"
    return first.finding.name if first is not None else "benign_nos"
