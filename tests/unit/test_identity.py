"""Patients: everything said to be one person is one group, and nothing else is."""

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.deidentify import Pseudonymiser
from ingest.errors import GateError
from ingest.identity import (
    IdentityConfig,
    LateMerge,
    PatientGroups,
    late_merges,
    patient_groups,
    patient_keys,
    require_acknowledged,
    split_changes_table,
)
from ingest.source.canonical import SCHEMAS

CONFIG = IdentityConfig()
SECRET = bytes(range(32))


def patients(*rows: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["patients"])


def cases(*rows: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["cases"])


def groups(patient_rows: Sequence[dict[str, str]], case_rows: Sequence[dict[str, str]]) -> PatientGroups:
    return patient_groups(patients(*patient_rows), cases(*case_rows), CONFIG)


def same(found: PatientGroups, one: str, other: str) -> bool:
    return found.group_of_case[one] == found.group_of_case[other]


def test_several_numbers_of_one_patient_are_one_group() -> None:
    found = groups(
        [
            {"patient_id": "1", "mrn": "100", "issuer": "NORTH"},
            {"patient_id": "1", "mrn": "555", "issuer": "SOUTH"},
            {"patient_id": "2", "mrn": "200", "issuer": "NORTH"},
        ],
        [
            {"accession": "a", "mrn": "100", "issuer": "NORTH"},
            {"accession": "b", "mrn": "555", "issuer": "SOUTH"},
            {"accession": "c", "mrn": "200", "issuer": "NORTH"},
        ],
    )
    assert same(found, "a", "b")
    assert not same(found, "a", "c")


def test_equal_numbers_of_two_issuers_are_two_patients() -> None:
    found = groups(
        [],
        [{"accession": "a", "mrn": "100", "issuer": "NORTH"}, {"accession": "b", "mrn": "100", "issuer": "SOUTH"}],
    )
    assert not same(found, "a", "b")


@pytest.mark.parametrize("spelling", ["27670", "00027670", " 27670 ", "27-670"])
def test_padding_and_punctuation_do_not_make_another_patient(spelling: str) -> None:
    found = groups([], [{"accession": "a", "mrn": "0027670"}, {"accession": "b", "mrn": spelling}])
    assert same(found, "a", "b")


def test_merges_are_followed_through_any_number_of_steps_and_back() -> None:
    chain = [{"patient_id": str(number), "merged_into": str(number + 1)} for number in range(1, 5)]
    found = groups(chain, [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "5"}])
    assert same(found, "a", "b")
    circle = [{"patient_id": "1", "merged_into": "2"}, {"patient_id": "2", "merged_into": "1"}]
    assert same(
        groups(circle, [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}]), "a", "b"
    )


def test_merge_in_a_system_without_patient_ids_goes_by_number_and_issuer() -> None:
    found = groups(
        [{"mrn": "100", "issuer": "NORTH", "merged_into": "200"}],
        [{"accession": name, "mrn": mrn, "issuer": issuer} for name, mrn, issuer in
         (("a", "100", "NORTH"), ("b", "200", "NORTH"), ("c", "200", "SOUTH"))],
    )  # fmt: skip
    assert same(found, "a", "b")
    assert not same(found, "a", "c")


def test_enterprise_number_joins_records_of_two_systems() -> None:
    found = groups(
        [{"patient_id": "1", "empi": "E7"}, {"patient_id": "2", "empi": "E7"}],
        [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}],
    )
    assert same(found, "a", "b")


@pytest.mark.parametrize("nobody", ["0", "00000000", "99999999", "unknown", "N/A", "TEST PATIENT"])
def test_placeholder_numbers_join_nobody(nobody: str) -> None:
    found = groups([], [{"accession": "a", "mrn": nobody}, {"accession": "b", "mrn": nobody}])
    assert found.group_of_case == {}
    assert {(entry.accession, entry.reason) for entry in found.rejected} == {
        ("a", "patient_unresolved"),
        ("b", "patient_unresolved"),
    }


def test_number_shared_by_too_many_is_refused_with_all_its_cases() -> None:
    config = IdentityConfig(max_mrns_per_patient=3)
    rows = [{"patient_id": "1", "mrn": str(1000 + number), "issuer": "N"} for number in range(4)]
    found = patient_groups(patients(*rows), cases({"accession": "a", "patient_id": "1"}), config)
    assert [(entry.accession, entry.reason) for entry in found.rejected] == [("a", "shared_number")]


def test_accession_of_two_patients_is_refused() -> None:
    found = groups([], [{"accession": "a", "patient_id": "1"}, {"accession": "a", "patient_id": "2"}])
    assert [(entry.accession, entry.reason) for entry in found.rejected] == [("a", "accession_two_patients")]
    assert "accession=" not in repr(found.rejected)


def test_same_patient_sent_twice_for_one_accession_is_no_contradiction() -> None:
    found = groups(
        [{"patient_id": "1", "merged_into": "2"}],
        [{"accession": "a", "patient_id": "1"}, {"accession": "a", "patient_id": "2"}],
    )
    assert list(found.group_of_case) == ["a"]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20), st.randoms())
@settings(max_examples=60, deadline=None)
def test_groups_are_the_connected_components_in_any_row_order(
    edges: list[tuple[int, int]], generator: random.Random
) -> None:
    rows = [{"patient_id": f"p{one}", "merged_into": f"p{other}"} for one, other in edges]
    case_rows = [{"accession": f"a{number}", "patient_id": f"p{number}"} for number in range(13)]
    found = groups(rows, case_rows)
    generator.shuffle(rows)
    generator.shuffle(case_rows)
    assert groups(rows, case_rows) == found
    reachable = {number: {number} for number in range(13)}
    for _ in range(13):  # the independent truth: closure by repetition
        for one, other in edges:
            union = reachable[one] | reachable[other]
            reachable[one] = reachable[other] = union
            for member in union:
                reachable[member] = reachable[member] | union
    for one in range(13):
        for other in range(13):
            assert same(found, f"a{one}", f"a{other}") == (other in reachable[one])


def test_patient_keeps_its_key_when_a_smaller_number_becomes_known() -> None:
    before = groups([], [{"accession": "a", "mrn": "500"}])
    pseudonymiser = Pseudonymiser(SECRET)
    (key,) = patient_keys(before, pseudonymiser, {}).values()
    previous = {row["identifier"]: row["key"] for row in pseudonymiser.crosswalk().to_pylist()}
    after = groups([{"patient_id": "1", "mrn": "100"}, {"patient_id": "1", "mrn": "500"}],
                   [{"accession": "a", "mrn": "500"}])  # fmt: skip
    assert after.group_of_case["a"] != before.group_of_case["a"]
    assert list(patient_keys(after, Pseudonymiser(SECRET), previous).values()) == [key]


def test_late_merge_of_two_splits_is_reported_and_stops_until_acknowledged() -> None:
    merged = groups([{"patient_id": "1", "merged_into": "2"}, {"patient_id": "3"}],
                    [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}])  # fmt: skip
    previous = {"id|1": "key1", "id|2": "key2", "id|3": "key3"}
    merges = late_merges(merged, previous, {"key1": "train", "key2": "test", "key3": "test"})
    assert merges == (LateMerge(patient_keys=("key1", "key2"), splits=("train", "test"), split="train"),)
    with pytest.raises(GateError, match="1 patients of different splits are one patient now"):
        require_acknowledged(merges, acknowledged=False)
    require_acknowledged(merges, acknowledged=True)
    assert split_changes_table(merges).to_pylist() == [
        {"patient_key": "key1", "old_split": "train", "merged_into_key": "key1", "new_split": "train"},
        {"patient_key": "key2", "old_split": "test", "merged_into_key": "key1", "new_split": "train"},
    ]


def test_late_merge_of_tune_and_test_leaves_every_evaluation_split() -> None:
    merged = groups([{"patient_id": "1", "merged_into": "2"}], [{"accession": "a", "patient_id": "1"}])
    (merge,) = late_merges(merged, {"id|1": "key1", "id|2": "key2"}, {"key1": "tune", "key2": "test"})
    assert merge.split is None
    assert late_merges(merged, {"id|1": "key1", "id|2": "key2"}, {"key1": "test", "key2": "test"}) == ()
