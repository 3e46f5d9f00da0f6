"""How often a test on live traffic ends with which verdict, and how soon, where the truth is known.

Run: PYTHONPATH=src python benchmarks/ab_error_rates.py [repetitions] [scores]     (2,000 and 6,000; three minutes)
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inlay.serving.sequential import ArmTest, Limit, Rule

Array = npt.NDArray[np.float64]
MARGIN, ALPHA = 0.05, 0.05


class Truth(NamedTuple):
    """Probability of score 1 in each arm, and the share of B."""

    a: float
    b: float
    share_b: float


NULLS = [Truth(p, p, share) for share in (0.5, 0.1) for p in (0.5, 0.1, 0.9)]
EFFECTS = [Truth(0.5, 0.55, 0.5), Truth(0.5, 0.6, 0.5), Truth(0.5, 0.6, 0.1), Truth(0.9, 0.85, 0.5)]


def simulated(
    truth: Truth, repetitions: int, scores: int, *, seed: int = 0, share: Callable[[ArmTest], Array] | None = None
) -> ArmTest:
    """Tests of right or wrong answers, looked at after every score. `share` is that of B by what was seen, where it changes."""
    draw = np.random.default_rng(seed)
    test = ArmTest(Rule(MARGIN, scores + 1, ALPHA), repetitions, with_interval=False)
    share_R = np.full(repetitions, truth.share_b)
    for _ in range(scores):
        share_R = share_R if share is None else share(test)
        is_b_R = draw.random(repetitions) < share_R
        score_R = draw.random(repetitions) < np.where(is_b_R, truth.b, truth.a)
        test.add(score_R.astype(np.float64), ~is_b_R, is_b_R, 1 - share_R, share_R)
    return test


def rates(test: ArmTest) -> tuple[Array, float | None]:
    """(share of tests by their outcome; median of the scores that a verdict took, None without one)."""
    ended_R = test.ended_at_R[test.outcome_R > 0]
    return np.bincount(test.outcome_R, minlength=5) / len(test.outcome_R), float(np.median(ended_R)) if len(
        ended_R
    ) else None


def by_the_leader(test: ArmTest) -> Array:
    """A share of B that follows the scores: 80% for the arm that leads, which would mislead a difference of plain means."""
    means_R2 = test.sums_R2 / np.maximum(test.counts_R2, 1)
    return np.where(means_R2[:, 1] > means_R2[:, 0], 0.8, 0.2)


def false_alarms_by_guards(limit: float, share: float, repetitions: int, answers: int) -> float:
    """Share of arms that a guard takes out."""
    draw, watch = np.random.default_rng(1), Limit(limit, ALPHA, repetitions)
    found_R = np.zeros(repetitions, bool)
    for _ in range(answers):
        found_R = watch.add(draw.random(repetitions) < share)
    return float(found_R.mean())


def main(repetitions: int = 2_000, scores: int = 6_000) -> None:
    """Prints the page."""
    began = time.perf_counter()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(
        f"`python benchmarks/ab_error_rates.py {repetitions} {scores}`, commit {commit.strip()}, {datetime.now(UTC):%Y-%m-%d}.\n"
    )
    print(
        "| truth of A and B | share of B | better | worse | the same within 0.05 | not yet | scores to a verdict, median |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = [(f"{t.a:g} and {t.b:g}", f"{t.share_b:.0%}", simulated(t, repetitions, scores)) for t in (*NULLS, *EFFECTS)]
    led = simulated(Truth(0.5, 0.5, 0.5), repetitions, scores, share=by_the_leader)
    for truth, share, test in [*rows, ("0.5 and 0.5", "80% to the leader", led)]:
        found, median = rates(test)
        figures = " | ".join(f"{100 * found[n]:.1f}%" for n in (1, 2, 3, 0))
        print(f"| {truth} | {share} | {figures} | {f'{median:,.0f}' if median else ''} |")
    print("\n| guard | true share | taken out |\n|---|---|---|")
    for limit, share in ((0.02, 0.02), (0.05, 0.05), (0.02, 0.04), (0.05, 0.1)):
        found_guard = false_alarms_by_guards(limit, share, repetitions, scores)
        print(f"| at most {limit:.0%} | {share:.0%} | {100 * found_guard:.1f}% |")
    print(f"\n{time.perf_counter() - began:.0f} s, one thread.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
