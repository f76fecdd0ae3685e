"""Balance: weights instead of lost rows, in training only, and the numbers of the paper in the paper's order."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from ingest.balance import BalanceConfig, balance_weights, paper_cohort, plan_cohort
from ingest.errors import ConfigError, InputError
from ingest.split import SplitConfig
from tests.invented_cohort import invented_slides


def rows(split: str, patients: str, targets: str) -> pd.DataFrame:
    """One slide per letter: patient, and target 0, 1 or ? (unknown)."""
    return pd.DataFrame({
        "slide_key": [f"{split}-{number}" for number in range(len(patients))],
        "patient_key": list(patients),
        "split": split,
        "y_cancer": [np.nan if letter == "?" else int(letter) for letter in targets],
    })  # fmt: skip


def drawn(slides: pd.DataFrame, weights: "pd.Series[float]") -> dict[tuple[str, float], int]:
    rows = slides[weights > 0]
    return dict(Counter(zip(rows["split"], rows["y_cancer"], strict=True)))


def test_only_training_is_balanced_and_tune_and_test_keep_their_prevalence() -> None:
    slides = pd.concat([rows("train", "abcdef", "000011"), rows("tune", "gh", "00"), rows("test", "ijk", "001")])
    weights = balance_weights(slides.reset_index(drop=True), BalanceConfig())
    assert drawn(slides.reset_index(drop=True), weights) == {
        ("train", 0): 2, ("train", 1): 2, ("tune", 0): 2, ("test", 0): 2, ("test", 1): 1,
    }  # fmt: skip
    assert len(weights) == len(slides)
    assert set(weights.unique()) == {0.0, 1.0}
    assert weights.dtype == "float32"


def test_the_ratio_allows_more_of_the_frequent_class() -> None:
    slides = rows("train", "abcdefgh", "00000011")
    assert drawn(slides, balance_weights(slides, BalanceConfig(ratio=2.0))) == {("train", 0): 4, ("train", 1): 2}


def test_weight_mode_draws_every_slide_and_gives_each_class_the_same_sum() -> None:
    slides = rows("train", "abcdefgh", "00000011")
    weights = balance_weights(slides, BalanceConfig(mode="weight"))
    assert weights[:6].tolist() == pytest.approx([8 / 12] * 6)
    assert weights[6:].tolist() == pytest.approx([2.0] * 2)


def test_mode_none_leaves_every_weight_at_one() -> None:
    slides = rows("train", "abcd", "0001")
    assert balance_weights(slides, BalanceConfig(mode="none")).tolist() == [1.0] * 4


def test_all_parts_can_be_balanced_when_asked_for() -> None:
    slides = rows("test", "abcd", "0001")
    config = BalanceConfig(parts=("train", "test"))
    assert drawn(slides, balance_weights(slides, config)) == {("test", 0): 1, ("test", 1): 1}


def test_the_cap_keeps_at_most_n_slides_of_a_patient_and_the_rarer_class_first() -> None:
    slides = rows("train", "aaaaab", "000010")
    weights = balance_weights(slides, BalanceConfig(mode="none", max_slides_per_patient=2))
    assert weights[:5].sum() == 2
    assert weights[4] == 1, "the one positive slide is kept"
    assert weights[5] == 1


def test_slides_without_a_value_are_left_as_they_are() -> None:
    slides = rows("train", "abcde", "0001?")
    assert balance_weights(slides, BalanceConfig())[4] == 1


def test_three_classes_come_down_to_the_rarest() -> None:
    slides = rows("train", "abcdef", "000112")
    assert drawn(slides, balance_weights(slides, BalanceConfig())) == {
        ("train", 0): 1,
        ("train", 1): 1,
        ("train", 2): 1,
    }


def test_a_training_part_with_one_class_keeps_all_its_slides() -> None:
    slides = rows("train", "abc", "000")
    assert balance_weights(slides, BalanceConfig()).tolist() == [1.0] * 3


def test_weights_do_not_depend_on_row_order() -> None:
    slides = invented_slides(80).assign(split="train")
    weights = balance_weights(slides, BalanceConfig(max_slides_per_patient=3))
    shuffled = slides.sample(frac=1, random_state=3)
    again = balance_weights(shuffled, BalanceConfig(max_slides_per_patient=3))
    assert again.sort_index().equals(weights)
    other_seed = balance_weights(slides, BalanceConfig(max_slides_per_patient=3, seed=18))
    assert not other_seed.equals(weights)


def test_a_target_that_is_not_there_or_no_class_is_refused() -> None:
    slides = rows("train", "ab", "01")
    with pytest.raises(ConfigError, match=r"y_egfr: no such column; the slides have y_cancer"):
        balance_weights(slides, BalanceConfig(target="y_egfr"))
    with pytest.raises(ConfigError, match="not classes"):
        balance_weights(slides.assign(y_cancer=[0.5, 1.0]), BalanceConfig())


def test_a_slide_listed_twice_is_refused() -> None:
    slides = rows("train", "ab", "01").assign(slide_key="same")
    with pytest.raises(InputError, match="1 slides are listed twice"):
        balance_weights(slides, BalanceConfig())


def paper_slides() -> pd.DataFrame:
    """77,768 invented slides of 20,000 patients: 67,654 negative, 10,114 positive (Campanella et al. 2024)."""
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1], [67_654, 10_114])
    patients = np.concatenate([generator.integers(0, 20_000, 67_654), generator.integers(0, 5_000, 10_114)])
    return pd.DataFrame({
        "slide_key": [f"s{number}" for number in range(len(targets))],
        "patient_key": [f"p{number}" for number in patients],
        "label": np.where(targets == 1, "cancer", "benign"),
        "site": "breast",
        "y_cancer": targets,
    })  # fmt: skip


def test_paper_mode_reproduces_the_numbers_of_the_paper_in_its_order() -> None:
    slides = paper_slides()
    cohort = plan_cohort(slides, SplitConfig(), BalanceConfig(mode="paper"))
    chosen = slides[cohort.weights > 0].assign(split=cohort.split)
    assert len(slides) == 77_768
    assert chosen["y_cancer"].value_counts().to_dict() == {0: 8_151, 1: 8_151}
    assert chosen["split"].value_counts().to_dict() == {"train": 13_050, "tune": 3_252}
    assert (chosen.groupby("patient_key")["split"].nunique() == 1).all()
    balance = cohort.facts["balance"]
    assert balance["left_out_by_class"] == {"0": 59_503, "1": 1_963}
    assert (chosen[chosen["split"] == "tune"]["y_cancer"].mean() - 0.5) < 0.01
    assert set(cohort.splits["scheme"]) == {"paper"}
    assert set(cohort.splits["patient_key"]) == set(chosen["patient_key"]), (
        "patients without a drawn slide have no place"
    )


def test_paper_mode_on_a_small_cohort_takes_all_of_the_rarer_class() -> None:
    slides = invented_slides(100)
    splits, weights = paper_cohort(slides, BalanceConfig(mode="paper"))
    num_positive = int(slides["y_cancer"].sum())
    assert slides[weights > 0]["y_cancer"].value_counts().to_dict() == {0: num_positive, 1: num_positive}
    part = slides["patient_key"].map(dict(zip(splits["patient_key"], splits["split"].astype(str), strict=True)))
    num_tune = int(((part == "tune") & (weights > 0)).sum())
    assert abs(num_tune - 2 * num_positive * 3252 / 16302) <= 1


def test_paper_mode_needs_two_classes() -> None:
    slides = invented_slides(10).assign(y_cancer=0)
    with pytest.raises(InputError, match="needs two classes"):
        paper_cohort(slides, BalanceConfig(mode="paper"))


def test_without_a_holdout_scheme_the_weights_balance_every_slide() -> None:
    slides = invented_slides(100)
    cohort = plan_cohort(slides, SplitConfig(schemes=("mccv",), num_repeats=4), BalanceConfig())
    counts = slides[cohort.weights > 0]["y_cancer"].value_counts()
    assert counts[0] == counts[1] == int(slides["y_cancer"].sum())


def test_the_facts_add_up_to_the_cohort() -> None:
    slides = invented_slides(100)
    facts = plan_cohort(slides, SplitConfig(), BalanceConfig()).facts["balance"]
    assert sum(part["slides"] for part in facts["parts"].values()) == len(slides)
    assert sum(part["patients"] for part in facts["parts"].values()) == 100
    for name, number in facts["slides_by_class"].items():
        assert facts["drawn_by_class"].get(name, 0) + facts["left_out_by_class"].get(name, 0) == number
