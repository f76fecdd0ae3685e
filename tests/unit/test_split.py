"""Splits: whole patients, quotas within one, the same for any row order, stable while the cohort grows."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ingest.errors import ConfigError, GateError, InputError
from ingest.split import (
    PARTS,
    SplitConfig,
    default_split,
    merge_places,
    patient_table,
    split_digest,
    split_patients,
)
from tests.invented_cohort import invented_patients

ALL_SCHEMES = SplitConfig(schemes=("holdout", "kfold", "mccv", "site"), num_repeats=3)


def places_of(splits: pd.DataFrame, scheme: str = "holdout", fold: int = 0) -> dict[str, str]:
    rows = splits[(splits["scheme"] == scheme) & (splits["fold"] == fold)]
    return dict(zip(rows["patient_key"], rows["split"].astype(str), strict=True))


def counts_of(patients: pd.DataFrame, places: dict[str, str], label: str) -> list[int]:
    mine = [places[key] for key in patients["patient_key"][patients["label"] == label]]
    return [mine.count(part) for part in PARTS]


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[pd.DataFrame, SplitConfig]:
    size = draw(st.integers(1, 80))
    weights = np.array(draw(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))), dtype=float)
    shares = weights / weights.sum()
    patients = pd.DataFrame({
        "patient_key": [f"p{number}" for number in draw(st.permutations(range(size)))],
        "label": draw(st.lists(st.sampled_from(["cancer", "benign", "in_situ"]), min_size=size, max_size=size)),
        "site": draw(st.lists(st.sampled_from(["breast", "skin", None]), min_size=size, max_size=size)),
        "num_slides": draw(st.lists(st.integers(1, 20), min_size=size, max_size=size)),
    })  # fmt: skip
    scheme = draw(st.sampled_from(["holdout", "kfold", "mccv"]))
    config = SplitConfig(schemes=(scheme,), train=shares[0], tune=shares[1], test=1 - shares[0] - shares[1],
                         num_repeats=2, seed=draw(st.integers(0, 2**32)))  # fmt: skip
    return patients, config


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(cohorts())
def test_in_1000_random_cohorts_no_patient_is_on_two_sides_and_prevalence_is_within_one_patient(
    cohort: tuple[pd.DataFrame, SplitConfig],
) -> None:
    patients, config = cohort
    splits = split_patients(patients, config)
    label_of = dict(zip(patients["patient_key"], patients["label"], strict=True))
    num_of = Counter(label_of.values())
    shares = {"train": config.train, "tune": config.tune, "test": config.test}
    if config.schemes == ("kfold",):  # three of the five groups train; a group is within one of its fifth
        shares = {"tune": 0.2, "test": 0.2}
    by_fold: dict[int, list[tuple[str, str]]] = {}
    for key, fold, part in zip(splits["patient_key"], splits["fold"], splits["split"].astype(str), strict=True):
        by_fold.setdefault(fold, []).append((key, part))
    assert len(by_fold) == {"holdout": 1, "kfold": 5, "mccv": 2}[config.schemes[0]]
    for rows in by_fold.values():
        assert sorted(key for key, _ in rows) == sorted(label_of), "every patient once, so on one side"
        found = Counter((label_of[key], part) for key, part in rows)
        for label, num in num_of.items():
            for part, share in shares.items():
                assert abs(found[label, part] - share * num) <= 1 + 1e-6
    again = split_patients(patients.sample(frac=1, random_state=1), config)
    assert again.equals(splits)


def test_forty_patients_with_five_cancers_have_both_classes_in_each_part() -> None:
    patients = invented_patients(40)
    patients["label"] = ["cancer"] * 5 + ["benign"] * 35
    for seed in range(50):
        places = places_of(split_patients(patients, SplitConfig(seed=seed)))
        assert counts_of(patients, places, "cancer") == [3, 1, 1]
        assert counts_of(patients, places, "benign") == [21, 7, 7]


def test_three_positive_patients_are_one_in_each_part() -> None:
    patients = invented_patients(30)
    patients["label"] = ["cancer"] * 3 + ["benign"] * 27
    places = places_of(split_patients(patients, SplitConfig()))
    assert counts_of(patients, places, "cancer") == [1, 1, 1]


def test_further_strata_are_spread_evenly() -> None:
    patients = pd.DataFrame({"patient_key": [f"p{n:03d}" for n in range(100)], "label": "benign",
                             "site": ["rare"] * 10 + ["common"] * 90, "num_slides": 1})  # fmt: skip
    for seed in range(20):
        splits = split_patients(patients, SplitConfig(seed=seed))
        rare = splits[splits["patient_key"] < "p010"]["split"].value_counts()
        assert 5 <= rare["train"] <= 7
        assert 1 <= rare["tune"] <= 3
        assert 1 <= rare["test"] <= 3


def test_any_column_can_be_the_first_stratum() -> None:
    patients = invented_patients(90)
    patients["scanner"] = ["a", "b", "c"] * 30
    splits = split_patients(patients, SplitConfig(strata=("scanner",))).merge(patients, on="patient_key")
    assert pd.crosstab(splits["scanner"], splits["split"]).to_numpy().tolist() == [[18, 6, 6]] * 3


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    patients = invented_patients(200)
    digests = [split_digest(split_patients(patients, SplitConfig(seed=seed))) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_with_30_percent_new_patients_every_old_patient_keeps_its_place_and_quotas_hold() -> None:
    old = invented_patients(200)
    new = invented_patients(60, seed=5, prefix="q")
    config = ALL_SCHEMES
    before = split_patients(old, config)
    grown = pd.concat([new, old])
    after = split_patients(grown, config, before)
    both = before.merge(after, on=["patient_key", "scheme", "fold"], suffixes=("_before", "_after"))
    assert len(both) == len(before)
    assert (both["split_before"].astype(str) == both["split_after"].astype(str)).all()
    places = places_of(after)
    for label in ("cancer", "benign"):
        num = (grown["label"] == label).sum()
        assert np.abs(np.array(counts_of(grown, places, label)) - num * np.array([0.6, 0.2, 0.2])).max() <= 1
    without = split_patients(grown, config)
    moved = before.merge(without, on=["patient_key", "scheme", "fold"])
    assert (moved["split_x"].astype(str) != moved["split_y"].astype(str)).any(), (
        "growing without `previous` does move patients"
    )


def test_a_new_site_that_sorts_first_does_not_renumber_the_folds_of_old_sites() -> None:
    old = invented_patients(60)
    new = invented_patients(20, prefix="q").assign(centre="aaa")
    config = SplitConfig(schemes=("site",))
    before = split_patients(old, config)
    after = split_patients(pd.concat([old, new]), config, before)
    for fold in range(3):
        tested_before = {key for key, part in places_of(before, "site", fold).items() if part == "test"}
        tested_after = {key for key, part in places_of(after, "site", fold).items() if part == "test"}
        assert tested_before == tested_after
    assert {key for key, part in places_of(after, "site", 3).items() if part == "test"} == set(new["patient_key"])


def test_more_repeats_keep_the_first_ones() -> None:
    patients = invented_patients(50)
    three = split_patients(patients, SplitConfig(schemes=("mccv",), num_repeats=3))
    five = split_patients(patients, SplitConfig(schemes=("mccv",), num_repeats=5), three)
    assert [places_of(three, "mccv3", fold) for fold in range(3)] == [
        places_of(five, "mccv5", fold) for fold in range(3)
    ]


def test_each_patient_is_tested_once_and_tunes_once_in_k_folds() -> None:
    patients = invented_patients(53)
    splits = split_patients(patients, SplitConfig(schemes=("kfold",), num_folds=5))
    table = pd.crosstab(splits["patient_key"], splits["split"])
    assert (table[["train", "tune", "test"]].to_numpy() == [3, 1, 1]).all()


def test_the_monte_carlo_repeats_differ_and_have_the_asked_sizes() -> None:
    patients = invented_patients(100)
    splits = split_patients(patients, SplitConfig(schemes=("mccv",), num_repeats=20, train=0.8, tune=0, test=0.2))
    tests = [frozenset(rows["patient_key"]) for _, rows in splits[splits["split"] == "test"].groupby("fold")]
    assert len(tests) == len(set(tests)) == 20
    assert {len(test) for test in tests} == {20}
    times_tested = splits[splits["split"] == "test"]["patient_key"].value_counts()
    assert 1 <= times_tested.mean() <= 5  # 20 repeats of one fifth: 4 on average over those that were ever tested


def test_site_holdout_tests_one_whole_site_and_nothing_else() -> None:
    patients = invented_patients(60)
    splits = split_patients(patients, SplitConfig(schemes=("site",))).merge(patients, on="patient_key")
    for fold, site in enumerate(["north", "south", "west"]):
        rows = splits[splits["fold"] == fold]
        assert set(rows["centre"][rows["split"] == "test"]) == {site}
        assert site not in set(rows["centre"][rows["split"] != "test"])
        rest = rows[rows["split"] != "test"]
        assert abs((rest["split"] == "train").mean() - 0.75) < 0.05


def test_named_sites_are_held_out_together() -> None:
    patients = invented_patients(60)
    config = SplitConfig(schemes=("site",), held_out=("north", "west"))
    splits = split_patients(patients, config).merge(patients, on="patient_key")
    assert set(splits["fold"]) == {0}
    assert set(splits["centre"][splits["split"] == "test"]) == {"north", "west"}


@pytest.mark.parametrize("held_out", [("east",), ("north", "south", "west")])
def test_a_held_out_site_must_exist_and_leave_one_to_train(held_out: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="held_out"):
        split_patients(invented_patients(60), SplitConfig(schemes=("site",), held_out=held_out))


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"is 1\.2; make it 1"):
        SplitConfig(train=0.8, tune=0.2, test=0.2)


def test_a_missing_stratum_names_what_the_table_has() -> None:
    with pytest.raises(InputError, match=r"missing columns site, num_slides; the table has patient_key, label"):
        split_patients(pd.DataFrame({"patient_key": ["a"], "label": ["benign"]}), SplitConfig())


def test_a_patient_with_two_rows_is_refused() -> None:
    patients = invented_patients(4)
    with pytest.raises(InputError, match="1 patients have more than one row"):
        split_patients(pd.concat([patients, patients[:1]]), SplitConfig())


def test_no_patients_is_an_error_not_an_empty_split() -> None:
    with pytest.raises(InputError, match="no patients"):
        split_patients(invented_patients(4)[:0], SplitConfig())


def test_an_earlier_split_with_a_patient_twice_is_refused() -> None:
    patients = invented_patients(10)
    before = split_patients(patients, SplitConfig())
    with pytest.raises(GateError, match="1 patients twice"):
        split_patients(patients, SplitConfig(), pd.concat([before, before[:1]]))


def test_the_table_of_patients_takes_the_worst_label_and_the_most_frequent_site() -> None:
    slides = pd.DataFrame({
        "patient_key": ["b", "a", "a", "a", "b"],
        "label": ["benign", "benign", "cancer", "in_situ", "not_assessable"],
        "site": ["skin", "breast", "breast", "node", None],
        "y_cancer": [0, 0, 1, 1, np.nan],
    })  # fmt: skip
    table = patient_table(slides).set_index("patient_key")
    assert table["label"].to_dict() == {"a": "cancer", "b": "benign"}
    assert table["site"].to_dict() == {"a": "breast", "b": "skin"}
    assert table["num_slides"].to_dict() == {"a": 3, "b": 2}
    assert table["y_cancer"].to_dict() == {"a": 1, "b": 0}


def test_patients_that_turn_out_to_be_one_on_two_sides_stop_the_split_until_acknowledged() -> None:
    before = pd.DataFrame({"patient_key": ["a", "b", "c", "d"], "scheme": "holdout", "fold": 0,
                           "split": ["tune", "test", "test", "test"]})  # fmt: skip
    with pytest.raises(GateError, match="1 patients join rows of different parts"):
        merge_places(before, {"b": "a"})
    merged = merge_places(before, {"b": "a", "d": "c"}, acknowledged=True)
    assert places_of(merged) == {"a": "train", "c": "test"}


def test_merging_within_one_part_needs_no_acknowledgement() -> None:
    before = pd.DataFrame({"patient_key": ["c", "d"], "scheme": "holdout", "fold": 0, "split": ["test", "test"]})
    assert places_of(merge_places(before, {"d": "c"})) == {"c": "test"}


def test_the_split_column_follows_the_patient_and_is_empty_without_a_place() -> None:
    splits = pd.DataFrame({"patient_key": ["a", "b"], "scheme": "holdout", "fold": 0, "split": ["train", "test"]})
    column = default_split(pd.DataFrame({"patient_key": ["b", "a", "x"]}), splits)
    assert column[:2].tolist() == ["test", "train"]
    assert column.isna().tolist() == [False, False, True]
    with pytest.raises(ConfigError, match="no scheme kfold5"):
        default_split(pd.DataFrame({"patient_key": ["b"]}), splits, "kfold5")
