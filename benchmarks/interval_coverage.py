"""How often the 95% intervals of several bootstraps cover the true difference, on rows of several shapes.

Run: PYTHONPATH=src python benchmarks/interval_coverage.py [trials] [resamples]     (needs scipy; minutes)
"""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np
from scipy import stats

from inlay.evaluation.metrics import METRICS
from inlay.evaluation.verdict import compare_scores

NORMAL = NormalDist()
METHODS = ("percentile", "expanded", "bca", "bootstrap-t", "student t", "inlay")


def rows(kind: str, n: int, trials: int) -> tuple[np.ndarray, float]:
    """(trials, n) differences other - base, and their true mean."""
    noise = np.random.default_rng(n)
    draw = noise.random((trials, n))
    kinds = {
        "exponential": lambda: (noise.exponential(1, (trials, n)), 1.0),
        "lognormal": lambda: (noise.lognormal(0, 1, (trials, n)), np.exp(0.5)),
        "30% gamma, 70% zero": lambda: ((draw < 0.3) * noise.gamma(0.7, 1, (trials, n)), 0.21),
        "exponential - exponential": lambda: (
            noise.exponential(1.3, (trials, n)) - noise.exponential(1, (trials, n)),
            0.3,
        ),
        "beta - beta": lambda: (noise.beta(0.4, 0.6, (trials, n)) - noise.beta(0.3, 0.9, (trials, n)), 0.15),
        "15% wins, 5% losses": lambda: ((draw < 0.15) * 1.0 - (draw > 0.95), 0.1),
        "null: 5% wins, 5% losses": lambda: ((draw < 0.05) * 1.0 - (draw > 0.95), 0.0),
        "null: 2% wins, 2% losses": lambda: ((draw < 0.02) * 1.0 - (draw > 0.98), 0.0),
    }
    return kinds[kind]()


KINDS = (
    "exponential",
    "lognormal",
    "30% gamma, 70% zero",
    "exponential - exponential",
    "beta - beta",
    "15% wins, 5% losses",
    "null: 5% wins, 5% losses",
    "null: 2% wins, 2% losses",
)


def textbook(change: np.ndarray, counts_RN: np.ndarray) -> dict[str, tuple[float, float]]:
    """Intervals of the mean of `change` by the methods that we did not choose."""
    n, resamples = len(change), len(counts_RN)
    mean, spread = change.mean(), change.std()
    drawn = counts_RN @ change / n
    ordered = np.sort(drawn)

    def between(low: float, high: float) -> tuple[float, float]:
        first = max(1, int(low * (resamples + 1)))
        last = max(1, int((1 - high) * (resamples + 1)))
        return float(ordered[first - 1]), float(ordered[resamples - last])

    t = stats.t.ppf(0.975, n - 1)
    expanded = NORMAL.cdf(-t * np.sqrt(n / (n - 1)))
    found = {"percentile": between(0.025, 0.975), "expanded": between(expanded, 1 - expanded)}
    below = (drawn < mean).mean() + (drawn == mean).mean() / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    skewness = ((change - mean) ** 3).mean() / spread**3 if spread else 0.0
    tails = [NORMAL.cdf(bias + (bias + z) / (1 - skewness / 6 / np.sqrt(n) * (bias + z))) for z in (-1.96, 1.96)]
    found["bca"] = between(*tails)
    variance = counts_RN @ (change - mean) ** 2 / n - (drawn - mean) ** 2
    with np.errstate(all="ignore"):
        studentised = (drawn - mean) / np.sqrt(np.maximum(variance, 0))
    studentised = np.sort(np.nan_to_num(studentised, nan=0.0, posinf=1e9, neginf=-1e9))
    rank = int(0.025 * (resamples + 1))
    found["bootstrap-t"] = (
        mean - studentised[resamples - rank] * spread,
        mean - studentised[rank - 1] * spread,
    )
    found["student t"] = (mean - t * spread / np.sqrt(n - 1), mean + t * spread / np.sqrt(n - 1))
    return found


def main(trials: int = 2000, resamples: int = 2000) -> None:
    metric = METRICS["token_f1"]
    error = 100 * (0.05 * 0.95 / trials) ** 0.5
    print(f"{trials} trials, {resamples} resamples; coverage in %, standard error {error:.1f}")
    print("| row differences | n | " + " | ".join(METHODS) + " |\n|" + "---|" * (2 + len(METHODS)))
    for kind in KINDS:
        for n in (20, 50, 100, 200):
            changes, truth = rows(kind, n, trials)
            counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
            ones = np.ones(n)
            pairs = {
                str(trial): (np.stack([0 * ones, ones], 1), np.stack([change, ones], 1), metric)
                for trial, change in enumerate(changes)
            }
            ours = compare_scores(pairs, resamples=resamples, seed=0)
            covered = dict.fromkeys(METHODS, 0)
            for trial, change in enumerate(changes):
                d = ours[str(trial)]
                for method, (low, high) in {**textbook(change, counts), "inlay": (d.low, d.high)}.items():
                    covered[method] += low - 1e-12 <= truth <= high + 1e-12
            shares = " | ".join(f"{100 * covered[method] / trials:.1f}" for method in METHODS)
            print(f"| {kind} | {n} | {shares} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
