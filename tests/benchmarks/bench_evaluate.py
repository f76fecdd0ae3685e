"""How fast and how true the intervals of `evaluate` are; `python -m tests.benchmarks.bench_evaluate`.

Writes build/bench/evaluate.json. Cohorts are drawn from a two-level normal model whose true area is known: a patient
effect and a slide effect, 1 + Poisson(3) slides a patient.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import norm

from evaluate.bootstrap import bootstrap, percentile_interval
from evaluate.compare import nadeau_bengio
from evaluate.interval import auroc_interval, clustered_delong, delong, logit_interval
from evaluate.roc import Bools, Floats, Ints, NotDefinedError, auroc

OUTPUT = Path("build/bench/evaluate.json")
NUM_COHORTS = 1000
PATIENT_SPREAD, SLIDE_SPREAD = 1.0, 0.6
Cohort = tuple[Bools, Floats, Ints]


def main() -> None:
    generator = np.random.default_rng(0)
    seconds = bootstrap_seconds()
    print(f"bootstrap of 10,000 slides x 2,000 draws with ROC band: {seconds:.2f} s", flush=True)
    coverage: dict[str, dict[str, float]] = {}
    for num_patients, prevalence, gap in ((120, 0.5, 1.6), (120, 0.13, 2.4), (20, 0.5, 2.4), (10, 0.5, 3.2)):
        name = f"{num_patients} patients, {prevalence:.0%} positive, true AUROC {true_area(gap):.3f}"
        coverage[name] = coverages(num_patients, prevalence, gap, generator)
        print(name, coverage[name], flush=True)
    first = next(iter(coverage.values()))
    result = {
        "bootstrap_10k_slides_seconds": round(seconds, 3),
        "interval_coverage": first["patient score interval"],
        **{
            f"coverage, {setting}, {method}": value
            for setting, methods in coverage.items()
            for method, value in methods.items()
        },
        "num_cohorts": NUM_COHORTS,
        **{
            f"false rejections over 20 splits, {method}": value for method, value in false_rejections(generator).items()
        },
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, sort_keys=True), file=sys.stdout)


def bootstrap_seconds() -> float:
    """10,000 slides of 2,500 patients, scores without ties: the most points a curve can have."""
    generator = np.random.default_rng(1)
    patients = np.sort(generator.integers(0, 2500, 10_000))
    positive = (generator.random(2500) < 0.13)[patients]
    scores = generator.normal(size=2500)[patients] + generator.normal(size=10_000) + 2 * positive
    best = np.inf
    for _ in range(3):
        started_at = time.perf_counter()
        bootstrap(positive, scores, patients, num_resamples=2000)
        best = min(best, time.perf_counter() - started_at)
    return float(best)


def coverages(num_patients: int, prevalence: float, gap: float, generator: np.random.Generator) -> dict[str, float]:
    """Share of cohorts whose interval holds the true area, for our interval and for what others print."""
    truth = true_area(gap)
    held: dict[str, list[bool]] = {}
    for _ in range(NUM_COHORTS):
        cohort = draw_cohort(num_patients, prevalence, gap, generator)
        for name, method in METHODS.items():
            try:
                low, high = method(cohort)
            except NotDefinedError:  # perfect separation: these methods say nothing but the point
                low = high = auroc(cohort[0], cohort[1])
            held.setdefault(name, []).append(low <= truth <= high)
    return {name: round(float(np.mean(values)), 3) for name, values in held.items()}


def draw_cohort(num_patients: int, prevalence: float, gap: float, generator: np.random.Generator) -> Cohort:
    num_positive = round(num_patients * prevalence)
    slides = 1 + generator.poisson(3, num_patients)
    patients = np.repeat(np.arange(num_patients), slides)
    positive = patients < num_positive
    effect = generator.normal(scale=PATIENT_SPREAD, size=num_patients)[patients]
    scores = effect + generator.normal(scale=SLIDE_SPREAD, size=len(patients)) + gap * positive
    return positive, scores, patients


def true_area(gap: float) -> float:
    """The chance that a positive slide of one patient scores above a negative slide of another."""
    return float(norm.cdf(gap / np.sqrt(2 * (PATIENT_SPREAD**2 + SLIDE_SPREAD**2))))


def false_rejections(generator: np.random.Generator) -> dict[str, float]:
    """Two equally good models over 20 random 80/20 splits of one cohort: share of p < 0.05, which should be 0.05."""
    rejected: dict[str, list[bool]] = {"paired t": [], "Nadeau-Bengio": []}
    for _ in range(300):
        positive = np.arange(400) < 200
        signal = generator.normal(size=400) + 1.5 * positive
        scores = [signal + generator.normal(scale=0.7, size=400) for _ in range(2)]
        gaps = []
        for _ in range(20):
            test = generator.permutation(400)[:80]
            gaps.append(auroc(positive[test], scores[0][test]) - auroc(positive[test], scores[1][test]))
        for name, ratio in (("paired t", 0.0), ("Nadeau-Bengio", 0.25)):
            rejected[name].append(nadeau_bengio(gaps, ratio).p_value < 0.05)
    return {name: round(float(np.mean(values)), 3) for name, values in rejected.items()}


def _score(cohort: Cohort) -> tuple[float, float]:
    interval = auroc_interval(*cohort)
    return interval.low, interval.high


def _clustered(cohort: Cohort) -> tuple[float, float]:
    areas, covariance = clustered_delong(cohort[0], cohort[2], cohort[1])
    return logit_interval(float(areas[0]), float(covariance[0, 0]))


def _by_slide(cohort: Cohort) -> tuple[float, float]:
    areas, covariance = delong(cohort[0], cohort[1])
    return logit_interval(float(areas[0]), float(covariance[0, 0]))


def _draws(cohort: Cohort) -> tuple[float, float]:
    return percentile_interval(bootstrap(*cohort, num_resamples=400, specificities=()).aurocs)


METHODS: dict[str, Callable[[Cohort], tuple[float, float]]] = {
    "patient score interval": _score,
    "clustered DeLong, logit": _clustered,
    "patient bootstrap": _draws,
    "DeLong on slides, logit": _by_slide,
}


if __name__ == "__main__":
    main()
