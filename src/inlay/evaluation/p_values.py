"""p-values: exact for right/wrong rows, and corrected for several metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted so that, over all of them, one false alarm comes with at most the stated chance.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, running = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda k: p[k])):
        running = max(running, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p}


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value that `wins` and `losses` are as likely; ties do not count. 1 where nothing changed."""
    changed, fewer = wins + losses, min(wins, losses)
    below, term = 0, 1
    for k in range(fewer + 1):
        below += term
        term = term * (changed - k) // (k + 1)
    return min(1.0, 2 * below / (1 << changed)) if changed < 1000 else _large_mcnemar(below, changed)


def _large_mcnemar(below: int, changed: int) -> float:
    # both numbers are beyond a float; their ratio is not
    return min(1.0, math.exp(math.log(2 * below) - changed * math.log(2)))
