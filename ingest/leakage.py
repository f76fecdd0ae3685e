"""Does anything that belongs to one patient lie on two sides of a split? Works for any split table, also a foreign one.

Looked for: a patient in two parts; patients in two parts that share a case, a specimen or a scan with equal content;
patients in two parts whose ids differ only in case, separators, file extension or leading zeros ("P-0012", "p12").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["error", "warning"]

_EXTENSION = re.compile(r"\.(svs|ndpi|tiff?|mrxs|scn|bif|vms|dcm|h5|pt|npy)$")
_RUNS = re.compile(r"[^\W\d_]+|\d+")
_PLAIN = re.compile(r"[a-z0-9]*")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that a check found; the message carries counts, never an id of the source."""

    severity: Severity
    check: str
    message: str


def find_leaks(splits: "pd.DataFrame", slides: "pd.DataFrame | None" = None) -> list[Finding]:
    """Leaks between the parts of every scheme and fold.

    Args:
        splits: patient_key, scheme, fold, split; a patient may be listed more than once, as tables of others do.
        slides: patient_key, slide_key and, as far as known, case_key, specimen_key, content_hash, duplicate_of.
    """
    splits = splits.drop_duplicates(["patient_key", "scheme", "fold", "split"])
    splits = splits.assign(**{name: splits[name].astype(str) for name in ("patient_key", "scheme", "split")})
    findings = []
    place = ["scheme", "fold", "patient_key"]
    twice = splits[splits.duplicated(place, keep=False)]
    for (scheme, fold), rows in twice.groupby(["scheme", "fold"]):
        num_patients = rows["patient_key"].nunique()
        findings.append(
            _leak("patient on two sides", scheme, fold, f"{num_patients} patients are in more than one part")
        )
    for check, what, links in _links(splits, slides):
        torn = _torn(splits, links)
        for (scheme, fold), num_groups in torn.items():
            findings.append(_leak(check, scheme, fold, f"{num_groups} {what} have patients in more than one part"))
    return findings


def near_duplicates(ids: Iterable[str]) -> dict[str, str]:
    """id -> its canonical form, of those ids whose canonical form another id shares."""
    ids = sorted(set(ids))
    if len({len(identifier) for identifier in ids}) == 1 and all(map(_PLAIN.fullmatch, ids)):
        return {}  # pseudonyms: equal length, one case, no separators; nothing to confuse
    first_of: dict[str, str] = {}
    found: dict[str, str] = {}
    for identifier in ids:
        form = canonical_id(identifier)
        if form in first_of:
            found[first_of[form]] = found[identifier] = form
        else:
            first_of[form] = identifier
    return found


def canonical_id(identifier: str) -> str:
    """`identifier` without case, separators, file extension and leading zeros: "TCGA-01.SVS" and "tcga_1" are equal,
    "P-1-12" and "P-11-2" are not."""
    text = _EXTENSION.sub("", identifier.strip().casefold())
    return "|".join(run.lstrip("0") or "0" if run.isdigit() else run for run in _RUNS.findall(text))


def _links(splits: "pd.DataFrame", slides: "pd.DataFrame | None") -> "Iterable[tuple[str, str, pd.DataFrame]]":
    """(check, what, [group, patient_key]) for each way in which two patients can be one."""
    import pandas as pd

    near = pd.Series(near_duplicates(splits["patient_key"].unique()), dtype="object")
    yield "near-duplicate id", "groups of near-duplicate patient ids", _link(near.to_numpy(), near.index.to_numpy())
    if slides is None:
        return
    for column, what in (
        ("case_key", "cases"),
        ("specimen_key", "specimens"),
        ("content_hash", "scans of equal content"),
    ):
        if column in slides.columns:
            check = "duplicate scan" if column == "content_hash" else column.removesuffix("_key") + " on two sides"
            yield check, what, _link(slides[column], slides["patient_key"])
    if "duplicate_of" in slides.columns:
        copies = slides[slides["duplicate_of"].notna()]
        originals = slides[slides["slide_key"].isin(copies["duplicate_of"])]
        groups = pd.concat([copies["duplicate_of"], originals["slide_key"]])
        yield "duplicate scan", "marked duplicates", _link(groups, pd.concat([copies, originals])["patient_key"])


def _link(groups: object, patient_keys: object) -> "pd.DataFrame":
    import pandas as pd

    links = pd.DataFrame({"group": groups, "patient_key": patient_keys})
    # Nearly every group has one patient; only the others can leak, so the splits are joined with very few rows.
    links = links[links.duplicated("group", keep=False)].dropna().drop_duplicates()
    links = links[links.duplicated("group", keep=False)].astype(str)
    return links[links["group"] != ""]


def _torn(splits: "pd.DataFrame", links: "pd.DataFrame") -> dict[tuple[object, object], object]:
    mine = splits[splits["patient_key"].isin(links["patient_key"])].merge(links, on="patient_key")
    num_parts = mine.groupby(["scheme", "fold", "group"])["split"].nunique()
    torn = num_parts[num_parts > 1].reset_index()
    counts = torn.groupby(["scheme", "fold"]).size().rename("num_groups").reset_index()
    return {(row.scheme, row.fold): row.num_groups for row in counts.itertuples(index=False)}


def _leak(check: str, scheme: object, fold: object, what: str) -> Finding:
    return Finding(
        "error",
        check,
        f"split {scheme} fold {fold}: {what}; a result on this split is not to be believed: "
        "split again with `python -m ingest split`, or move them to train",
    )
