from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluate.interval import (
    auroc_interval,
    cluster_rows,
    clustered_delong,
    delong,
    hanley_mcneil_variance,
    logit_interval,
    newcombe_interval,
    proportion_interval,
    wilson_interval,
)
from evaluate.roc import NotDefinedError, auroc
from ingest.errors import InputError

# DeLong, DeLong and Clarke-Pearson (1988), the complete records as printed in the SAS/STAT guide (PROC LOGISTIC,
# "Comparing Receiver Operating Characteristic Curves"): albumin, total protein, K-G score, 1 = no benefit of surgery.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def ovarian() -> Any:
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 3], table[:, 0], 10 - table[:, 2], table[:, 1]


def test_delong_reproduces_the_published_areas_and_errors_of_the_1988_example() -> None:
    areas, covariance = delong(*ovarian())
    np.testing.assert_allclose(areas, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1028, 0.1000], atol=5e-5)


def test_delong_reproduces_the_published_contrasts_of_the_1988_example() -> None:
    areas, covariance = delong(*ovarian())
    for other, gap, error, p_value in ((0, 0.0108, 0.0953, 0.9102), (2, -0.0780, 0.1046, 0.4561)):
        variance = covariance[other, other] + covariance[1, 1] - 2 * covariance[other, 1]
        assert areas[other] - areas[1] == pytest.approx(gap, abs=5e-5)
        assert np.sqrt(variance) == pytest.approx(error, abs=5e-5)
        assert 2 * stats.norm.sf(abs(areas[other] - areas[1]) / np.sqrt(variance)) == pytest.approx(p_value, abs=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    gaps = contrast @ areas
    chi_square = gaps @ np.linalg.solve(contrast @ covariance @ contrast.T, gaps)
    assert chi_square == pytest.approx(2.5340, abs=5e-4)
    assert stats.chi2.sf(chi_square, 2) == pytest.approx(0.2817, abs=5e-5)


def obuchowski_by_pairs(labels: Any, patients: Any, first: Any, second: Any) -> Any:
    """The formulas of Obuchowski (1997), with loops over pairs and clusters."""
    labels, patients = np.asarray(labels), np.asarray(patients)
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, keys = len(positives), len(negatives), sorted(set(patients))
    sums = []
    for scores in (first, second):
        kernel = np.array(
            [[(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in negatives] for i in positives]
        )
        area = kernel.mean()
        up = [sum(kernel[k].mean() - area for k in range(m) if patients[positives[k]] == key) for key in keys]
        down = [sum(kernel[:, k].mean() - area for k in range(n) if patients[negatives[k]] == key) for key in keys]
        sums.append((np.array(up), np.array(down)))
    with_positive, with_negative = len(set(patients[positives])), len(set(patients[negatives]))
    (u1, d1), (u2, d2) = sums
    s10 = with_positive / ((with_positive - 1) * m) * (u1 @ u2)
    s01 = with_negative / ((with_negative - 1) * n) * (d1 @ d2)
    s11 = len(keys) / (len(keys) - 1) * (u1 @ d2 + d1 @ u2)
    return s10 / m + s01 / n + s11 / (m * n)


def test_clustered_covariance_equals_the_formulas_written_with_loops() -> None:
    generator = np.random.default_rng(5)
    patients = np.sort(generator.integers(0, 12, 50))
    labels = generator.integers(0, 2, 50)  # patients with both classes are in
    first, second = np.round(generator.normal(size=(2, 50)) + labels, 1)
    areas, covariance = clustered_delong(labels, patients, first, second)
    assert areas[0] == pytest.approx(auroc(labels, first), abs=1e-12)
    for row, a in enumerate((first, second)):
        for column, b in enumerate((first, second)):
            expected = obuchowski_by_pairs(labels, patients, a, b)
            assert covariance[row, column] == pytest.approx(expected, rel=1e-10)


def test_rows_of_one_patient_widen_the_interval_and_copies_of_a_slide_add_nothing() -> None:
    generator = np.random.default_rng(6)
    labels = np.repeat([0, 1], 20)
    scores = generator.normal(size=40) + labels
    _, once = clustered_delong(labels, np.arange(40), scores)
    patients, copies = np.repeat(np.arange(40), 4), np.repeat(scores, 4)
    _, clustered = clustered_delong(np.repeat(labels, 4), patients, copies)
    _, blind = delong(np.repeat(labels, 4), copies)
    assert clustered[0, 0] == pytest.approx(once[0, 0], rel=1e-9)
    assert blind[0, 0] < 0.3 * clustered[0, 0]


def test_perfect_separation_of_ten_patients_leaves_room_for_doubt() -> None:
    labels, patients = (
        np.repeat([0, 1], [12, 9]),
        np.r_[np.repeat(np.arange(5), [3, 3, 2, 2, 2]), 5, 5, 6, 6, 7, 7, 8, 9, 9],
    )
    scores = labels * 1.0
    interval = auroc_interval(labels, scores, patients)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(newcombe_interval(1.0, 5, 5)[0])
    assert 0.5 < interval.low < 0.75
    assert (
        interval.method == "Newcombe 2006 method 5 at perfect separation, 5 patients with positives, 5 with negatives"
    )
    assert auroc_interval(labels, -scores, patients).low == 0.0
    assert auroc_interval(labels, -scores, patients).high < 0.5


def test_more_patients_at_perfect_separation_say_more() -> None:
    lows = [newcombe_interval(1.0, num, num)[0] for num in (2, 5, 20, 100)]
    assert lows == sorted(lows)
    assert lows[-1] > 0.96


def test_newcombe_limits_lie_where_the_score_equation_holds() -> None:
    low, high = newcombe_interval(0.8, 20, 30)
    for limit in (low, high):
        assert abs(0.8 - limit) / np.sqrt(hanley_mcneil_variance(limit, 20, 30)) == pytest.approx(1.959964, abs=1e-5)
    assert low < 0.8 < high


def test_many_patients_bring_the_score_interval_to_the_clustered_delong_one() -> None:
    generator = np.random.default_rng(7)
    patients = np.repeat(np.arange(3000), 2)
    labels = (patients % 2 == 0).astype(int)
    scores = generator.normal(size=3000)[patients] + generator.normal(size=6000) + labels
    interval = auroc_interval(labels, scores, patients)
    areas, covariance = clustered_delong(labels, patients, scores)
    low, high = logit_interval(float(areas[0]), float(covariance[0, 0]))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("gap", "num_patients"), [(1.6, 60), (3.2, 12)])
def test_the_score_interval_holds_the_truth_in_a_small_simulation(gap: float, num_patients: int) -> None:
    generator, held = np.random.default_rng(8), 0
    truth = stats.norm.cdf(gap / np.sqrt(2 * 1.36))
    for _ in range(200):
        patients = np.repeat(np.arange(num_patients), 1 + generator.poisson(3, num_patients))
        labels = (patients % 2 == 0).astype(int)
        scores = (
            generator.normal(size=num_patients)[patients] + 0.6 * generator.normal(size=len(patients)) + gap * labels
        )
        interval = auroc_interval(labels, scores, patients)
        held += interval.low <= truth <= interval.high
    assert 0.91 <= held / 200 <= 1.0


def test_wilson_equals_scipy() -> None:
    for successes, num in ((0, 10), (3, 10), (10, 10), (95, 100)):
        expected = stats.binomtest(successes, num).proportion_ci(method="wilson")
        assert wilson_interval(successes / num, num) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_proportion_counts_patients_and_not_their_slides() -> None:
    successes = np.repeat([True, True, True, False], 10)
    together = proportion_interval(successes, np.repeat(np.arange(4), 10))
    apart = proportion_interval(successes, np.arange(40))
    assert together.high - together.low > 1.8 * (apart.high - apart.low)
    everyone = proportion_interval(np.ones(40, dtype=bool), np.repeat(np.arange(4), 10))
    assert (everyone.low, everyone.high) == pytest.approx((wilson_interval(1.0, 4)[0], 1.0))
    assert "4 effective of 40 rows" in everyone.method


def test_undefined_variance_and_missing_patients_are_named() -> None:
    with pytest.raises(NotDefinedError, match="1 have positives, 2 have negatives"):
        clustered_delong([1, 1, 0, 0], ["a", "a", "b", "c"], [0.9, 0.8, 0.1, 0.2])
    for missing in (None, float("nan"), ""):
        with pytest.raises(InputError, match="1 of 2 rows have no patient"):
            cluster_rows(np.array(["a", missing], dtype=object), np.array([True, False]))
    with pytest.raises(NotDefinedError, match="perfect separation"):
        logit_interval(1.0, 0.0)
    with pytest.raises(NotDefinedError, match="no rows"):
        proportion_interval(np.zeros(0, dtype=bool), [])
