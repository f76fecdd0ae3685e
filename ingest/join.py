"""Which scan shows which part of which case: the join of the slide list to the LIS, every row used or with its reason.

The key is (accession, part). A slide without a part gets one from its block, from its file name by a declared pattern,
or from a case that has only one part; never by guess. What is no H&E of fixed tissue is left out first.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from ingest.config import Regex, Section
from ingest.manifest import rows_to_table, table_rows

Status: TypeAlias = Literal["excluded", "failed"]
HE_PATTERN = r"\bh\s*(&|and|\+)?\s*e\b|h(a)?ematoxylin"
FROZEN_PATTERN = r"frozen|\bfs\b|\bfz\b|cryo|intra-?op"
CYTOLOGY_PATTERN = r"papanicolaou|\bpap\b|diff-?quik|giemsa|thinprep|surepath|smear|touch prep|imprint|cytospin"
IHC_PATTERN = r"\bihc\b|immuno|\bish\b|fish|\ber\b|\bpr\b|her-?2|ki-?67|\bp63\b|\bck\s?\d|\bcd\d"
USED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("slide_id", "accession", "part", "block", "level", "stain", "scanner")),
        *((name, pa.string()) for name in ("objective", "path", "scanned_at", "mpp", "label_scope")),
        ("num_slides_in_part", pa.int32()),
        ("num_blocks_in_part", pa.int32()),
    ]
)
COPIED_COLUMNS = tuple(name for name in USED_SCHEMA.names[: USED_SCHEMA.names.index("label_scope")] if name != "block")
REJECTED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("slide_id", "accession", "part", "status", "reason", "duplicate_of")]
)
# A damaged or contradictory row has failed; a row that is meant for something else is excluded.
FAILED_REASONS = frozenset(
    {"conflicting_rows", "orphan_slide", "no_accession", "part_mismatch", "ambiguous_part", "part_block_conflict"}
)


class SlideJoinConfig(Section):
    stain_pattern: Regex = HE_PATTERN  # regex, any case, of stain or stain group: the slides to use
    frozen_pattern: Regex = FROZEN_PATTERN  # left out although they are H&E: the report is about fixed tissue
    cytology_pattern: Regex = CYTOLOGY_PATTERN
    ihc_pattern: Regex = IHC_PATTERN  # only names the reason; whatever is no H&E is left out
    missing_stain: Literal["exclude", "keep"] = "exclude"  # 1 % of rows in a real hospital list have no stain
    cytology_classes: tuple[str, ...] = ("C", "CY", "NG")  # case classes of cytology, in the site's code
    exclude_classes: tuple[str, ...] = ()  # other case classes to leave out: autopsies, consults
    part_from_name: Regex | None = None  # regex with groups accession, part, block, for bar code or file name


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideJoin:
    """Attributes:
    used: `USED_SCHEMA`, sorted by accession, part, slide_id. label_scope is block where a statement about that very
        block exists, else part: in a positive mastectomy most slides show no tumour.
    rejected: `REJECTED_SCHEMA`, sorted by slide_id. duplicate_of is a slide_id.
    funnel: slides left after each step: listed, scanned, stain, case, part, unique.
    """

    used: pa.Table
    rejected: pa.Table
    funnel: Mapping[str, int]

    @property
    def join_rate(self) -> float:
        """Share of the scans of the wanted stain that were joined to a part; 0.858 over 6.3 M slides at MSK."""
        return self.funnel["part"] / self.funnel["stain"] if self.funnel["stain"] else 0.0


def named_accessions(slides: pa.Table, config: SlideJoinConfig) -> set[str]:
    """The cases that any row of the slide list names, in its own column or by its bar code or file name."""
    pattern = re.compile(config.part_from_name, re.IGNORECASE) if config.part_from_name else None
    names = ("accession", "part", "block", "barcode", "path")
    found = (row["accession"] or _from_name(row, pattern).get("accession") for row in table_rows(slides.select(names)))
    return {accession for accession in found if accession is not None}


def join_slides(
    slides: pa.Table,
    cases: pa.Table,
    parts: pa.Table,
    blocks: pa.Table,
    config: SlideJoinConfig,
    labelled_blocks: Iterable[tuple[str, str, str]] = (),
) -> SlideJoin:
    """Join the slide list to parts.

    Args:
        slides, cases, blocks: canonical tables; their rows may come in any order.
        parts: canonical table of the LIS, or, for a case without one, the parts its report names.
        labelled_blocks: (accession, part, `block_name`) of blocks with a statement of their own.
    Returns:
        Every row of `slides` once, in `used` or in `rejected`; exact copies count as `duplicate_row`.
    """
    lis = _lis_index(cases, parts, blocks)
    filters = _StainFilter(config)
    pattern = re.compile(config.part_from_name, re.IGNORECASE) if config.part_from_name else None
    rejected: list[dict[str, str | None]] = []
    num_left = Counter(listed=slides.num_rows)
    joined: list[dict[str, Any]] = []
    for slide_id, same_id in groupby(table_rows(slides.sort_by("slide_id")), itemgetter("slide_id")):
        rows = list(same_id)
        if any(row != rows[0] for row in rows):  # one image id, two stains or parts: nobody can say which is right
            rejected += [_reject(row, "conflicting_rows") for row in rows]
            continue
        rejected += [_reject(row, "duplicate_row", slide_id) for row in rows[1:]]
        row = dict(rows[0], **_from_name(rows[0], pattern))
        if not row["path"]:
            rejected.append(_reject(row, "not_scanned"))
            continue
        num_left["scanned"] += 1
        case_class = lis.class_of_case.get(row["accession"])
        if reason := filters.reason(row, case_class):
            rejected.append(_reject(row, reason))
            continue
        num_left["stain"] += 1
        if reason := _case_reason(row["accession"], lis):
            rejected.append(_reject(row, reason))
            continue
        num_left["case"] += 1
        part, reason = _part_of(row, lis)
        if reason:
            rejected.append(_reject(row, reason))
            continue
        num_left["part"] += 1
        joined.append(dict(row, part=part))
    kept = _unique(joined, rejected)
    num_left["unique"] = len(kept)
    assert len(kept) + len(rejected) == slides.num_rows, "the slide ledger does not add up"
    funnel = {step: num_left[step] for step in ("listed", "scanned", "stain", "case", "part", "unique")}
    rejected.sort(key=lambda entry: [entry[name] or "" for name in REJECTED_SCHEMA.names])
    return SlideJoin(
        used=_used_table(kept, lis, frozenset(labelled_blocks)),
        rejected=pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA),
        funnel=funnel,
    )


def part_name(part: str) -> str:
    """A part designator as it is compared: `a.`, `A)` and `A` are one, and so are `01` and `1`."""
    name = part.strip().strip(".):(").upper()
    return name.lstrip("0") or name if name.isdecimal() else name


def block_name(part: str | None, block: str) -> str:
    """A block label as it is compared: `1` of part A is `A1`, and so are `A-1`, `a 1` and `A01`."""
    name = re.sub(r"[\s\-_.]", "", block).upper()
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :].lstrip("0") or name[len(letters) :]
    if not letters and part is not None:
        letters = part_name(part)
    return letters + digits


@dataclass(frozen=True, slots=True)
class _Lis:
    class_of_case: Mapping[str, str]
    known_cases: frozenset[str]
    parts_of_case: Mapping[str, Mapping[str, str]]  # accession -> compared name -> designator as the LIS has it
    part_by_number: Mapping[str, Mapping[str, str]]  # accession -> 1, 2, 3 -> designator
    parts_of_block: Mapping[tuple[str, str], frozenset[str]]  # (accession, block name) -> compared names
    num_blocks: Mapping[tuple[str, str], int]  # (accession, compared part name) -> blocks


def _lis_index(cases: pa.Table, parts: pa.Table, blocks: pa.Table) -> _Lis:
    class_of_case: dict[str, str] = {}
    known: set[str] = set()
    for row in table_rows(cases.select(["accession", "case_class"])):
        known.add(row["accession"])
        if row["case_class"]:
            class_of_case[row["accession"]] = min(row["case_class"], class_of_case.get(row["accession"], "\uffff"))
    parts_of_case: dict[str, dict[str, str]] = defaultdict(dict)
    by_number: dict[str, dict[str, str]] = defaultdict(dict)
    for row in sorted(parts.select(["accession", "part", "part_seq"]).to_pylist(), key=repr):
        parts_of_case[row["accession"]].setdefault(part_name(row["part"]), row["part"])
        if row["part_seq"]:
            by_number[row["accession"]].setdefault(part_name(row["part_seq"]), row["part"])
    parts_of_block: dict[tuple[str, str], set[str]] = defaultdict(set)
    num_blocks: Counter[tuple[str, str]] = Counter()
    for row in table_rows(blocks.select(["accession", "part", "block"])):
        if row["part"]:
            key = row["accession"], block_name(row["part"], row["block"])
            part = part_name(row["part"])
            num_blocks[row["accession"], part] += part not in parts_of_block[key]
            parts_of_block[key].add(part)
    return _Lis(
        class_of_case=class_of_case,
        known_cases=frozenset(known),
        parts_of_case=parts_of_case,
        part_by_number=by_number,
        parts_of_block={key: frozenset(found) for key, found in parts_of_block.items()},
        num_blocks=num_blocks,
    )


class _StainFilter:
    """Compiled patterns; answers are remembered because a hospital has a few hundred stain names."""

    def __init__(self, config: SlideJoinConfig) -> None:
        def search(pattern: str) -> re.Pattern[str]:
            return re.compile(pattern, re.IGNORECASE)

        self._wanted, self._frozen = search(config.stain_pattern), search(config.frozen_pattern)
        self._cytology, self._ihc = search(config.cytology_pattern), search(config.ihc_pattern)
        self._config = config
        self._known: dict[tuple[str | None, str | None], str | None] = {}

    def reason(self, row: Mapping[str, Any], case_class: str | None) -> str | None:
        """Why the slide is left out, or None."""
        if case_class is not None and case_class in self._config.cytology_classes:
            return "cytology"
        if case_class is not None and case_class in self._config.exclude_classes:
            return "case_class"
        key = row["stain"], row["stain_group"]
        if key not in self._known:
            self._known[key] = self._stain_reason(*key)
        return self._known[key]

    def _stain_reason(self, stain: str | None, group: str | None) -> str | None:
        both = f"{stain or ''} | {group or ''}"
        if stain is None and group is None:
            return "stain_missing" if self._config.missing_stain == "exclude" else None
        if self._frozen.search(both):
            return "frozen"
        if self._cytology.search(both):
            return "cytology"
        if group is not None and self._ihc.search(group):
            return "ihc"
        name = stain if stain is not None else group  # the group HE may hold recuts for another stain
        if name is not None and self._wanted.search(name):
            return None
        return "ihc" if self._ihc.search(both) else "not_he"


def _from_name(row: Mapping[str, Any], pattern: re.Pattern[str] | None) -> dict[str, str]:
    """What the bar code or the file name says about fields that the row leaves empty."""
    if pattern is None:
        return {}
    for name in (row["barcode"], row["path"]):
        match = pattern.search(name) if name else None
        if match:
            said = {field: text for field, text in match.groupdict().items() if text and field in row}
            return {field: text for field, text in said.items() if row[field] is None}
    return {}


def _case_reason(accession: str | None, lis: _Lis) -> str | None:
    if accession is None:
        return "no_accession"
    return None if accession in lis.known_cases else "orphan_slide"


def _part_of(row: Mapping[str, Any], lis: _Lis) -> tuple[str | None, str | None]:
    """The designator as the LIS has it, or the reason why there is none."""
    accession, said, block = row["accession"], row["part"], row["block"]
    parts = lis.parts_of_case.get(accession, {})
    if not parts:  # no list to check against: what the slide says stands
        return (said, None) if said else (None, "ambiguous_part")
    by_block = lis.parts_of_block.get((accession, block_name(said, block)), frozenset()) if block else frozenset()
    if said:
        name = part_name(said)
        if name not in parts and not any(known.isdecimal() for known in parts):
            name = part_name(lis.part_by_number.get(accession, {}).get(name, name))  # the slide list counts 1, 2, 3
        if name not in parts:
            return None, "part_mismatch"
        if by_block and name not in by_block:
            return None, "part_block_conflict"  # the cassette was deleted and its number given to another
        return parts[name], None
    if len(by_block) == 1 and (name := next(iter(by_block))) in parts:
        return parts[name], None
    if block and not by_block:
        label = block_name(None, block)
        fitting = [name for name in parts if label.startswith(name) and label[len(name) :].isdecimal()]
        if len(fitting) == 1 and not fitting[0].isdecimal():
            return parts[fitting[0]], None
    if len(parts) == 1 and not block:
        return next(iter(parts.values())), None
    return None, "ambiguous_part"


def _unique(joined: list[dict[str, Any]], rejected: list[dict[str, str | None]]) -> list[dict[str, Any]]:
    """One scan per file and per glass: the highest objective, then the newest, then the first slide_id."""
    kept = joined
    for field, reason in (("path", "duplicate_file"), ("barcode", "duplicate_scan")):
        best: dict[str, dict[str, Any]] = {}
        for row in sorted(kept, key=_preference):
            if row[field] is not None:
                best.setdefault(row[field], row)
        losers = [row for row in kept if row[field] is not None and best[row[field]] is not row]
        rejected += [_reject(row, reason, best[row[field]]["slide_id"]) for row in losers]
        lost = {row["slide_id"] for row in losers}
        kept = [row for row in kept if row["slide_id"] not in lost]
    return kept


def _preference(row: Mapping[str, Any]) -> tuple[float, tuple[int, ...], str]:
    power = re.search(r"\d+(\.\d+)?", row["objective"] or "")
    newest_first = tuple(-ord(letter) for letter in row["scanned_at"] or "")
    return (-float(power.group()) if power else 0.0, (*newest_first, 1), row["slide_id"])


def _reject(row: Mapping[str, Any], reason: str, duplicate_of: str | None = None) -> dict[str, str | None]:
    status: Status = "failed" if reason in FAILED_REASONS else "excluded"
    return {
        "slide_id": row["slide_id"],
        "accession": row["accession"],
        "part": row["part"],
        "status": status,
        "reason": reason,
        "duplicate_of": duplicate_of,
    }


def _used_table(kept: list[dict[str, Any]], lis: _Lis, labelled_blocks: frozenset[tuple[str, str, str]]) -> pa.Table:
    num_slides = Counter((row["accession"], row["part"]) for row in kept)
    seen_blocks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in kept:
        if row["block"]:
            seen_blocks[row["accession"], row["part"]].add(block_name(row["part"], row["block"]))
    kept.sort(key=lambda row: (row["accession"], row["part"], row["slide_id"]))
    rows = (_used_row(row, lis, labelled_blocks, num_slides, seen_blocks) for row in kept)
    return rows_to_table(rows, USED_SCHEMA)


def _used_row(
    row: Mapping[str, Any], lis: _Lis, labelled_blocks: frozenset[tuple[str, str, str]],
    num_slides: Mapping[tuple[str, str], int], seen_blocks: Mapping[tuple[str, str], set[str]],
) -> dict[str, Any]:  # fmt: skip
    specimen = row["accession"], row["part"]
    block = block_name(row["part"], row["block"]) if row["block"] else None
    is_labelled = block is not None and (*specimen, block) in labelled_blocks
    num_listed = lis.num_blocks.get((row["accession"], part_name(row["part"])), 0)
    return {
        **{name: row[name] for name in COPIED_COLUMNS},
        "block": block,
        "label_scope": "block" if is_labelled else "part",
        "num_slides_in_part": num_slides[specimen],
        "num_blocks_in_part": max(num_listed, len(seen_blocks.get(specimen, ()))) or None,
    }
