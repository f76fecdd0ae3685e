"""Which cases are of one patient: several MRNs per patient, issuers, enterprise numbers, merges.

A leak starts here: one woman under two numbers, one in train and one in test. So every statement of sameness counts,
transitively, and numbers are compared without padding zeros; but a number is only the same number under one issuer.
Names and groups are text with patient data in it; they go to the vault and into the pseudonymiser, nowhere else.
"""

import re
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ingest.config import Regex, Section
from ingest.deidentify import Pseudonymiser
from ingest.errors import GateError
from ingest.source.cells import row_digest

Split: TypeAlias = Literal["train", "tune", "test"]
Groups: TypeAlias = NDArray[np.int32]
CASE_REASONS = ("patient_unresolved", "accession_two_patients", "shared_number")  # why a case has no patient
PIECE_ROWS = 20_000  # as Python values at a time
SPLIT_CHANGES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("patient_key", "old_split", "merged_into_key", "new_split")]
)


class IdentityConfig(Section):
    strip_leading_zeros: bool = True  # 00027670 and 27670 are one MRN: tables of one hospital differ in padding
    placeholder_mrn: Regex = r"0+|9{5,}|UNKNOWN|NONE|N/?A|TEST.*"  # regex of MRNs that name nobody and would join all
    max_mrns_per_patient: int = Field(default=20, ge=1)  # a larger group is a shared number, not a person; refused


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientGroups:
    """Cases by patient, as columns: a large archive has a million of both.

    Attributes:
        nodes: [N] names of a person, sorted: `empi|E1`, `id|17`, `mrn|ISSUER|27670`.
        group_of_node: [N] position in `nodes` of the first name of the same person; that position is the group.
        accessions: [C] sorted.
        group_of_case: [C] the group, or `-1 - position` in CASE_REASONS.
        unnamed_rows: digests of rows of the patient table that name nobody, sorted; for the row domain.
    """

    nodes: pa.StringArray = field(repr=False)
    group_of_node: Groups = field(repr=False)
    accessions: pa.StringArray = field(repr=False)
    group_of_case: Groups = field(repr=False)
    unnamed_rows: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateMerge:
    """Patients that were apart in an earlier manifest and are one now, from more than one split.

    Attributes:
        patient_keys: the earlier keys, sorted; the first is the key from now on.
        splits: their earlier splits, in the same order.
        split: train if any of them was in train; else dropped from every evaluation split (None).
    """

    patient_keys: tuple[str, ...]
    splits: tuple[Split, ...]
    split: Split | None


def patient_groups(
    patients: Iterable[pa.RecordBatch], cases: Iterable[pa.RecordBatch], config: IdentityConfig
) -> PatientGroups:
    """Join everything that is said to be one patient.

    Args:
        patients: canonical patients table; may be empty.
        cases: canonical cases table.
    Returns:
        A case has no group when it names no patient (`patient_unresolved`), when its rows name two
        (`accession_two_patients`), or when its group has too many MRNs (`shared_number`).
    """
    mentions = _Mentions()
    unnamed_rows = []
    placeholder = re.compile(config.placeholder_mrn, re.IGNORECASE)
    for batch in patients:
        for row in batch.to_pylist():
            names = _names(row, config, placeholder)
            if survivor := row["merged_into"]:
                merged = {"patient_id": survivor} if row["patient_id"] else {"mrn": survivor, "issuer": row["issuer"]}
                names += _names(merged, config, placeholder)
            if not names:
                unnamed_rows.append(row_digest(list(row.values())).hex())
            mentions.add(names)
    num_patient_mentions = mentions.names.num
    accessions = _Texts()
    row_of_mention = array("i")
    for batch in cases:
        for row in batch.select(["accession", "patient_id", "mrn", "issuer"]).to_pylist():
            names = _names(
                row, config, placeholder
            )  # the case itself says that its patient_id and its MRN are one person
            mentions.add(names)
            row_of_mention.extend([accessions.num] * len(names))
            accessions.add([row["accession"]])
    nodes, node_of_mention = mentions.names.coded()
    group_of_node = _components(len(nodes), node_of_mention, node_of_mention[mentions.first_of_row])
    known, case_of_row = accessions.coded()
    return PatientGroups(
        nodes=nodes,
        group_of_node=group_of_node,
        accessions=known,
        group_of_case=_groups_of_cases(
            len(known), case_of_row[np.frombuffer(row_of_mention, np.int32)],
            group_of_node[node_of_mention[num_patient_mentions:]],
            _oversized(nodes, group_of_node, config.max_mrns_per_patient),
        ),
        unnamed_rows=tuple(sorted(unnamed_rows)),
    )  # fmt: skip


def _components(num_nodes: int, one: Groups, other: Groups) -> Groups:
    """[N] the smallest node that is joined to each node, over any number of edges `one` - `other`."""
    if not num_nodes:
        return np.empty(0, np.int32)
    edges = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(num_nodes, num_nodes))
    _, component = connected_components(edges, directed=False)
    _, first = np.unique(component, return_index=True)
    smallest: Groups = first[component].astype(np.int32)
    return smallest


def _oversized(nodes: pa.StringArray, group_of_node: Groups, max_mrns: int) -> NDArray[np.bool_]:
    """[N] whether the group of that position has more MRNs than a person can have."""
    is_mrn = pc.starts_with(nodes, "mrn|").to_numpy(zero_copy_only=False)
    return np.bincount(group_of_node[is_mrn], minlength=len(nodes)) > max_mrns


def _groups_of_cases(
    num_cases: int, case_of_mention: Groups, group_of_mention: Groups, oversized: NDArray[np.bool_]
) -> Groups:
    lowest = np.full(num_cases, np.iinfo(np.int32).max, np.int32)
    highest = np.full(num_cases, -1, np.int32)
    np.minimum.at(lowest, case_of_mention, group_of_mention)
    np.maximum.at(highest, case_of_mention, group_of_mention)
    groups = np.where(lowest == highest, highest, _no_patient("accession_two_patients"))
    groups[highest < 0] = _no_patient("patient_unresolved")
    placed = groups >= 0
    groups[placed] = np.where(oversized[groups[placed]], _no_patient("shared_number"), groups[placed])
    return groups.astype(np.int32)


def _no_patient(reason: str) -> int:
    return -1 - CASE_REASONS.index(reason)


def members(groups: PatientGroups) -> Iterator[tuple[int, list[str]]]:
    """Every group with its nodes, both in text order; groups without a case too."""
    order = np.argsort(groups.group_of_node, kind="stable")
    pieces = np.array_split(order, max(1, len(order) // PIECE_ROWS))
    named = (pair for piece in pieces for pair in zip(groups.group_of_node[piece].tolist(),
                                                      groups.nodes.take(piece).to_pylist(), strict=True))  # fmt: skip
    for group, same in groupby(named, itemgetter(0)):
        yield group, [name for _, name in same]


def known_keys(names: Sequence[str], pseudonymiser: Pseudonymiser) -> list[str]:
    """The patient keys that the names of one person had in an earlier manifest, sorted."""
    return sorted({key for name in names if (key := pseudonymiser.known("patient", name)) is not None})


def assign_keys(groups: PatientGroups, pseudonymiser: Pseudonymiser) -> pa.StringArray:
    """[N] patient_key of each group at its position, for groups that have a case; null elsewhere.

    A patient keeps the key of the earlier manifest, also when a new MRN came to be known; of two that were merged, the
    first key in text order stands. Every node goes into the crosswalk, so that the next run finds it.
    """
    has_case = np.zeros(len(groups.nodes), np.bool_)
    has_case[groups.group_of_case[groups.group_of_case >= 0]] = True
    assigned = _Texts()
    for group, names in members(groups):
        if has_case[group]:
            earlier = known_keys(names, pseudonymiser)
            key = earlier[0] if earlier else pseudonymiser.key("patient", names[0])
            for name in names:
                pseudonymiser.adopt("patient", name, key)
            assigned.add([key])
    position = np.cumsum(has_case) - 1
    return assigned.array().take(pa.array(position, mask=~has_case))


def late_merges(
    groups: PatientGroups, pseudonymiser: Pseudonymiser, previous_splits: Mapping[str, Split]
) -> tuple[LateMerge, ...]:
    """Groups of today that join patients of different earlier splits.

    Args:
        pseudonymiser: with the earlier crosswalk.
        previous_splits: patient_key -> split of the earlier manifest.
    """
    merges = []
    for _, names in members(groups):
        placed = tuple(key for key in known_keys(names, pseudonymiser) if key in previous_splits)
        splits = tuple(previous_splits[key] for key in placed)
        if len(set(splits)) > 1:
            merges.append(LateMerge(patient_keys=placed, splits=splits, split="train" if "train" in splits else None))
    return tuple(sorted(merges, key=lambda merge: merge.patient_keys))


class CasePatients:
    """accession -> patient_key, on disk; asked case by case."""

    def __init__(self, groups: PatientGroups, keys: pa.StringArray, scratch: sqlite3.Connection) -> None:
        """Args:
        keys: of `assign_keys`.
        """
        self._rows = scratch
        scratch.execute("CREATE TABLE case_patient (accession PRIMARY KEY, patient_key, reason) WITHOUT ROWID")
        reasons = np.array([*CASE_REASONS[::-1], ""], dtype=object)
        for start in range(0, len(groups.accessions), PIECE_ROWS):
            piece = slice(start, start + PIECE_ROWS)
            group = groups.group_of_case[piece]
            found = keys.take(pa.array(np.maximum(group, 0), mask=group < 0))
            columns = (
                groups.accessions[piece].to_pylist(),
                found.to_pylist(),
                reasons[np.minimum(group, 0) - 1].tolist(),
            )
            scratch.executemany("INSERT INTO case_patient VALUES (?, ?, ?)", zip(*columns, strict=True))

    def find(self, accession: str) -> tuple[str | None, str]:
        """The patient_key and an empty reason; or None and why there is none (empty for an unknown case)."""
        query = "SELECT patient_key, reason FROM case_patient WHERE accession = ?"
        found: tuple[str | None, str] | None = self._rows.execute(query, [accession]).fetchone()
        return found if found is not None else (None, "")


def split_changes_table(merges: Sequence[LateMerge]) -> pa.Table:
    """Rows patient_key, old_split, merged_into_key, new_split (null: dropped from evaluation); no patient data."""
    rows = [
        {"patient_key": key, "old_split": split, "merged_into_key": merge.patient_keys[0], "new_split": merge.split}
        for merge in merges
        for key, split in zip(merge.patient_keys, merge.splits, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SPLIT_CHANGES_SCHEMA)


def require_acknowledged(merges: Sequence[LateMerge], acknowledged: bool) -> None:
    """Raises:
    GateError: patients of different splits became one and nobody has said that this is known.
    """
    if merges and not acknowledged:
        raise GateError(
            f"{len(merges)} patients of different splits are one patient now; read split_changes.parquet, then run "
            "again with --acknowledge-merges"
        )


class _Texts:
    """Many short texts on their way into an Arrow array; `num` of them so far."""

    def __init__(self) -> None:
        self.num = 0
        self._pieces: list[pa.Array] = [pa.array([], pa.string())]
        self._waiting: list[str] = []

    def add(self, texts: Sequence[str]) -> None:
        self.num += len(texts)
        self._waiting += texts
        if len(self._waiting) >= PIECE_ROWS:
            self._flush()

    def array(self) -> pa.StringArray:
        self._flush()
        return pa.chunked_array(self._pieces).combine_chunks()

    def coded(self) -> tuple[pa.StringArray, Groups]:
        """The different texts, sorted, and the position of each text among them."""
        coded = self.array().dictionary_encode()
        order = pc.sort_indices(coded.dictionary)
        rank = np.empty(len(order), np.int32)
        rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
        return coded.dictionary.take(order), rank[coded.indices.to_numpy(zero_copy_only=False)]

    def _flush(self) -> None:
        self._pieces.append(pa.array(self._waiting, pa.string()))
        self._waiting = []


class _Mentions:
    """The names of many rows one after another; names in one row are of one person.

    Attributes:
        first_of_row: for each name the position of the first name of its row.
    """

    def __init__(self) -> None:
        self.names = _Texts()
        self._first_of_row = array("i")

    def add(self, names: Sequence[str]) -> None:
        self._first_of_row.extend([self.names.num] * len(names))
        self.names.add(names)

    @property
    def first_of_row(self) -> Groups:
        return np.frombuffer(self._first_of_row, np.int32)


def _names(row: Mapping[str, str | None], config: IdentityConfig, placeholder: re.Pattern[str]) -> list[str]:
    names = []
    if empi := row.get("empi"):
        names += _node("empi", "", empi, config, placeholder)
    if patient_id := row.get("patient_id"):
        names += [f"id|{patient_id}"]
    if mrn := row.get("mrn"):
        names += _node("mrn", row.get("issuer") or "", mrn, config, placeholder)
    return names


def _node(kind: str, issuer: str, number: str, config: IdentityConfig, placeholder: re.Pattern[str]) -> list[str]:
    number = re.sub(r"[\s-]", "", number).upper()
    if placeholder.fullmatch(number):
        return []
    if config.strip_leading_zeros:
        number = number.lstrip("0")
    return [f"{kind}|{issuer.upper()}|{number}" if kind == "mrn" else f"{kind}|{number}"] if number else []
