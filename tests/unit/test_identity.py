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
    CASE_REASONS,
    CasePatients,
    IdentityConfig,
    LateMerge,
    PatientGroups,
    assign_keys,
    late_merges,
    members,
    patient_groups,
    require_acknowledged,
    split_changes_table,
)
from ingest.scratch import open_scratch
from ingest.source.canonical import SCHEMAS

CONFIG = IdentityConfig()
SECRET = bytes(range(32))


def patients(*rows: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["patients"])


def cases(*rows: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["cases"])


def groups(
    patient_rows: Sequence[dict[str, str]], case_rows: Sequence[dict[str, str]], config: IdentityConfig = CONFIG
) -> PatientGroups:
    return patient_groups(patients(*patient_rows).to_batches(), cases(*case_rows).to_batches(), config)


def group_of_case(found: PatientGroups) -> dict[str, str]:
    """accession -> the first name of its group, or the reason why it has none."""
    names = [
        found.nodes[group].as_py() if group >= 0 else CASE_REASONS[-1 - group] for group in found.group_of_case.tolist()
    ]
    return dict(zip(found.accessions.to_pylist(), names, strict=True))


def same(found: PatientGroups, one: str, other: str) -> bool:
    return group_of_case(found)[one] == group_of_case(found)[other]


def with_crosswalk(**keys: str) -> Pseudonymiser:
    """A pseudonymiser that knows patients by `patient_id` from an earlier run."""
    pseudonymiser = Pseudonymiser(SECRET)
    for patient_id, key in keys.items():
        pseudonymiser.adopt("patient", f"id|{patient_id}", key)
    return Pseudonymiser(SECRET, pseudonymiser.crosswalk())


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
    assert group_of_case(found) == {"a": "patient_unresolved", "b": "patient_unresolved"}


def test_number_shared_by_too_many_is_refused_with_all_its_cases() -> None:
    config = IdentityConfig(max_mrns_per_patient=3)
    rows = [{"patient_id": "1", "mrn": str(1000 + number), "issuer": "N"} for number in range(4)]
    case_rows = [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}]
    assert group_of_case(groups(rows, case_rows, config)) == {"a": "shared_number", "b": "id|2"}
    assert group_of_case(groups(rows[:3], case_rows, config)) == {"a": "id|1", "b": "id|2"}


def test_accession_of_two_patients_is_refused() -> None:
    found = groups([], [{"accession": "a", "patient_id": "1"}, {"accession": "a", "patient_id": "2"}])
    assert group_of_case(found) == {"a": "accession_two_patients"}
    assert repr(found) == "PatientGroups()"  # nothing of it in a log


def test_same_patient_sent_twice_for_one_accession_is_no_contradiction() -> None:
    found = groups(
        [{"patient_id": "1", "merged_into": "2"}],
        [{"accession": "a", "patient_id": "1"}, {"accession": "a", "patient_id": "2"}],
    )
    assert group_of_case(found) == {"a": "id|1"}


def test_rows_of_the_patient_table_that_name_nobody_are_told() -> None:
    found = groups([{"mrn": "0000", "issuer": "N"}, {"patient_id": "1"}], [])
    assert [len(digest) for digest in found.unnamed_rows] == [32]
    assert groups([{"patient_id": "1"}], []).unnamed_rows == ()


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
    again = groups(rows, case_rows)
    assert (group_of_case(again), list(members(again))) == (group_of_case(found), list(members(found)))
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
    (key,) = assign_keys(before, pseudonymiser).to_pylist()
    after = groups([{"patient_id": "1", "mrn": "100"}, {"patient_id": "1", "mrn": "500"}],
                   [{"accession": "a", "mrn": "500"}])  # fmt: skip
    assert group_of_case(after) != group_of_case(before)
    later = Pseudonymiser(SECRET, pseudonymiser.crosswalk())
    assert assign_keys(after, later).drop_null().to_pylist() == [key]
    assert {later.known("patient", name) for name in ("id|1", "mrn||100", "mrn||500")} == {key}


def test_late_merge_of_two_splits_is_reported_and_stops_until_acknowledged() -> None:
    merged = groups([{"patient_id": "1", "merged_into": "2"}, {"patient_id": "3"}],
                    [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}])  # fmt: skip
    previous = with_crosswalk(**{"1": "key1", "2": "key2", "3": "key3"})
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
    previous = with_crosswalk(**{"1": "key1", "2": "key2"})
    (merge,) = late_merges(merged, previous, {"key1": "tune", "key2": "test"})
    assert merge.split is None
    assert late_merges(merged, previous, {"key1": "test", "key2": "test"}) == ()


def test_every_case_finds_its_patient_or_why_it_has_none() -> None:
    found = groups(
        [{"patient_id": "1", "merged_into": "2"}, {"patient_id": "9"}],
        [{"accession": "a", "patient_id": "1"}, {"accession": "b", "patient_id": "2"}, {"accession": "c", "mrn": "0"},
         {"accession": "d", "patient_id": "3"}, {"accession": "e", "patient_id": "1"}, {"accession": "e", "patient_id": "3"}],
    )  # fmt: skip
    pseudonymiser = Pseudonymiser(SECRET)
    cases_of = CasePatients(found, assign_keys(found, pseudonymiser), open_scratch())
    first, third = pseudonymiser.key("patient", "id|1"), pseudonymiser.key("patient", "id|3")
    assert {name: cases_of.find(name) for name in "abcdef"} == {
        "a": (first, ""), "b": (first, ""), "c": (None, "patient_unresolved"), "d": (third, ""),
        "e": (None, "accession_two_patients"), "f": (None, ""),
    }  # fmt: skip
    assert pseudonymiser.known("patient", "id|2") == first
    assert pseudonymiser.known("patient", "id|9") is None  # a patient without a case needs no key
