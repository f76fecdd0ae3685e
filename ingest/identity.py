"""Which cases are of one patient: several MRNs per patient, issuers, enterprise numbers, merges, by union-find.

A leak starts here: one woman under two numbers, one in train and one in test. So every statement of sameness counts,
transitively, and numbers are compared without padding zeros; but a number is only the same number under one issuer.
Nodes and groups are text with patient data in it; they go to the vault and into the pseudonymiser, nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa
from pydantic import Field

from ingest.config import Regex, Section
from ingest.deidentify import Pseudonymiser
from ingest.errors import GateError
from ingest.source.cells import row_digest

Split: TypeAlias = Literal["train", "tune", "test"]
SPLIT_CHANGES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("patient_key", "old_split", "merged_into_key", "new_split")]
)


class IdentityConfig(Section):
    strip_leading_zeros: bool = True  # 00027670 and 27670 are one MRN: tables of one hospital differ in padding
    placeholder_mrn: Regex = r"0+|9{5,}|UNKNOWN|NONE|N/?A|TEST.*"  # regex of MRNs that name nobody and would join all
    max_mrns_per_patient: int = Field(default=20, ge=1)  # a larger group is a shared number, not a person; refused


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityReject:
    """A case or a row of the patient table that has no usable patient; `digest` is for the row domain."""

    entity: Literal["case", "row"]
    accession: str | None = field(repr=False)
    digest: str = field(repr=False)
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientGroups:
    """Cases by patient.

    Attributes:
        group_of_case: accession -> group; a group is named by the first of its nodes in text order.
        members: group -> all its nodes, sorted: `empi|E1`, `id|17`, `mrn|ISSUER|27670`. Groups without a case too.
        rejected: cases and rows without a patient, sorted.
    """

    group_of_case: Mapping[str, str] = field(repr=False)
    members: Mapping[str, tuple[str, ...]] = field(repr=False)
    rejected: tuple[IdentityReject, ...]


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


def patient_groups(patients: pa.Table, cases: pa.Table, config: IdentityConfig) -> PatientGroups:
    """Join everything that is said to be one patient.

    Args:
        patients: canonical patients table; may be empty.
        cases: canonical cases table.
    Returns:
        A case is left out, with a reason, when it names no patient (`patient_unresolved`), when its rows name two
        (`accession_two_patients`), or when its group has too many MRNs (`shared_number`).
    """
    forest = _Forest()
    rejected: list[IdentityReject] = []
    placeholder = re.compile(config.placeholder_mrn, re.IGNORECASE)
    for row in patients.to_pylist():
        nodes = _nodes(row, config, placeholder)
        if survivor := row["merged_into"]:
            merged = {"patient_id": survivor} if row["patient_id"] else {"mrn": survivor, "issuer": row["issuer"]}
            nodes += _nodes(merged, config, placeholder)
        if not nodes:
            digest = row_digest(list(row.values())).hex()
            rejected.append(IdentityReject(entity="row", accession=None, digest=digest, reason="no_identifier"))
        for node in nodes:
            forest.join(nodes[0], node)
    nodes_of_case: dict[str, list[str]] = {}
    for row in cases.select(["accession", "patient_id", "mrn", "issuer"]).to_pylist():
        nodes = _nodes(row, config, placeholder)
        for node in nodes:  # the case itself says that its patient_id and its MRN are one person
            forest.join(nodes[0], node)
        nodes_of_case.setdefault(row["accession"], []).extend(nodes)
    members = forest.groups()
    group_of_node = {node: group for group, nodes_of_group in members.items() for node in nodes_of_group}
    oversized = {
        group
        for group, nodes_of_group in members.items()
        if sum(node.startswith("mrn|") for node in nodes_of_group) > config.max_mrns_per_patient
    }
    group_of_case: dict[str, str] = {}
    for accession, nodes in sorted(nodes_of_case.items()):
        groups = {group_of_node[node] for node in nodes}
        if not groups:
            reason = "patient_unresolved"
        elif len(groups) > 1:
            reason = "accession_two_patients"
        elif groups & oversized:
            reason = "shared_number"
        else:
            group_of_case[accession] = groups.pop()
            continue
        digest = row_digest([accession]).hex()
        rejected.append(IdentityReject(entity="case", accession=accession, digest=digest, reason=reason))
    rejected.sort(key=lambda entry: (entry.entity, entry.reason, entry.digest))
    return PatientGroups(group_of_case=group_of_case, members=members, rejected=tuple(rejected))


def known_keys(groups: PatientGroups, previous_keys: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Group -> the patient keys its nodes had in an earlier manifest, sorted; groups without one are left out."""
    found = {
        group: tuple(sorted({previous_keys[node] for node in nodes if node in previous_keys}))
        for group, nodes in groups.members.items()
    }
    return {group: keys for group, keys in found.items() if keys}


def patient_keys(
    groups: PatientGroups, pseudonymiser: Pseudonymiser, previous_keys: Mapping[str, str]
) -> dict[str, str]:
    """Group -> patient_key, for groups that have a case.

    A patient keeps the key of the earlier manifest, also when a new MRN came to be known; of two that were merged, the
    first key in text order stands. Every node goes into the crosswalk, so that the next run finds it.
    """
    known = known_keys(groups, previous_keys)
    keys = {}
    for group in sorted(set(groups.group_of_case.values())):
        keys[group] = known[group][0] if group in known else pseudonymiser.key("patient", group)
        for node in groups.members[group]:
            pseudonymiser.adopt("patient", node, keys[group])
    return keys


def late_merges(
    groups: PatientGroups, previous_keys: Mapping[str, str], previous_splits: Mapping[str, Split]
) -> tuple[LateMerge, ...]:
    """Groups of today that join patients of different earlier splits.

    Args:
        previous_keys: node -> patient_key of the earlier crosswalk.
        previous_splits: patient_key -> split of the earlier manifest.
    """
    merges = []
    for keys in known_keys(groups, previous_keys).values():
        placed = tuple(key for key in keys if key in previous_splits)
        splits = tuple(previous_splits[key] for key in placed)
        if len(set(splits)) > 1:
            merges.append(LateMerge(patient_keys=placed, splits=splits, split="train" if "train" in splits else None))
    return tuple(sorted(merges, key=lambda merge: merge.patient_keys))


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


class _Forest:
    """Union-find with path halving; groups do not depend on the order of the joins."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, node: str) -> str:
        parent = self._parent
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, one: str, other: str) -> None:
        roots = sorted((self.find(one), self.find(other)))
        self._parent[roots[1]] = roots[0]

    def groups(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for node in sorted(self._parent):
            found.setdefault(self.find(node), []).append(node)
        return {nodes[0]: tuple(nodes) for nodes in found.values()}


def _nodes(row: Mapping[str, str | None], config: IdentityConfig, placeholder: re.Pattern[str]) -> list[str]:
    nodes = []
    if empi := row.get("empi"):
        nodes += _node("empi", "", empi, config, placeholder)
    if patient_id := row.get("patient_id"):
        nodes += [f"id|{patient_id}"]
    if mrn := row.get("mrn"):
        nodes += _node("mrn", row.get("issuer") or "", mrn, config, placeholder)
    return nodes


def _node(kind: str, issuer: str, number: str, config: IdentityConfig, placeholder: re.Pattern[str]) -> list[str]:
    number = re.sub(r"[\s-]", "", number).upper()
    if placeholder.fullmatch(number):
        return []
    if config.strip_leading_zeros:
        number = number.lstrip("0")
    return [f"{kind}|{issuer.upper()}|{number}" if kind == "mrn" else f"{kind}|{number}"] if number else []
