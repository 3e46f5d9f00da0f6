"""How often a sweep names a gain that is none, and finds one that is, where the truth is known.

Run: PYTHONPATH=src python benchmarks/sweep_error_rates.py [sweeps] [trials] [rows]     (200, 16 and 400; four minutes)
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inlay.evaluation.verdict import Difference
from inlay.workflows.sweep.winner import choose, least_gain, loss_between

Array = npt.NDArray[np.float64]
RESAMPLES = 2_000


class Swept(NamedTuple):
    """Outcome of one simulated sweep. Trial 0 is the config as it is; differences are those to it."""

    winner: int
    judged: Difference
    naive: Difference
    """Of the least loss, on the rows that chose it."""
    least_gain: float


def losses(trials: int, rows: int, seed: int) -> tuple[Array, Array]:
    """(T, N) summed losses of trials whose true losses are equal, (N,) tokens: rows differ in how hard they are, some are
    very hard, and each trial's own noise grows with that."""
    chance = np.random.default_rng(seed)
    weight_N = np.exp(chance.normal(3.2, 0.7, rows)).round() + 1
    hard_N = chance.gamma(3.0, 0.6, rows)
    own_TN = chance.standard_t(5, (trials, rows)) * 0.08 * np.sqrt(hard_N)
    return (hard_N + own_TN) * weight_N, weight_N


def swept(trials: int, rows: int, seed: int, gain: float = 0.0, resamples: int = RESAMPLES) -> Swept:
    """One sweep; the last trial is better than all others by `gain` in truth. All adapters but that of trial 0 are small."""
    nll_TN, weight_N = losses(trials, rows, seed)
    nll_TN[-1] -= gain * weight_N
    first, second, half = slice(0, rows // 2), slice(rows // 2, rows), list(range(rows // 2))
    options = {"resamples": resamples, "seed": seed}
    choice = choose(nll_TN[:, first], weight_N[first], [2, *[1] * (trials - 1)], half, **options)
    best = int(np.argmin(nll_TN[:, first].sum(1)))
    judged = loss_between(nll_TN[0, second], nll_TN[choice.winner, second], weight_N[second], half, **options)
    naive = loss_between(nll_TN[0, first], nll_TN[best, first], weight_N[first], half, **options)
    return Swept(choice.winner, judged, naive, least_gain(choice, judged) or 0.0)


def share(hits: list[bool]) -> str:
    """Percent, with the standard error of a share."""
    rate = float(np.mean(hits))
    return f"{100 * rate:.1f}% ± {100 * np.sqrt(max(rate * (1 - rate), 1e-9) / len(hits)):.1f}"


def main() -> None:
    given = [int(text) for text in sys.argv[1:4]]
    sweeps, trials, rows = [*given, *(200, 16, 400)[len(given) :]]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    print(
        f"`python benchmarks/sweep_error_rates.py {sweeps} {trials} {rows}`, commit {commit.strip()}, {datetime.now(UTC):%Y-%m-%d}.\n"
    )
    print("| truth | verdict of the sweep | naive: the least loss on the rows that chose it |\n|---|---|---|")
    equal = [swept(trials, rows, seed) for seed in range(sweeps)]
    calm = share([one.judged.verdict == "not distinguishable" for one in equal])
    wrong = share([one.naive.verdict == "better" for one in equal])
    print(f"| all {trials} trials equal | not distinguishable in {calm} | better in {wrong} |", flush=True)
    gain = float(np.median([one.least_gain for one in equal]))
    for factor in (1.0, 0.5, 0.25):
        found = [swept(trials, rows, 10_000 + seed, gain * factor) for seed in range(sweeps)]
        right = share([one.winner == trials - 1 and one.judged.verdict == "better" for one in found])
        print(
            f"| one is better by {gain * factor:.4f} ({factor:g} of the gain that is told) | found in {right} | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
