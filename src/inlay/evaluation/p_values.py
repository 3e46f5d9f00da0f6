"""p-values: exact for right/wrong rows, by Student's t over seeds, and corrected for several metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist


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


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t: exact below 7 degrees of freedom, from there to 0.002 at levels up to 0.99.

    Source: Abramowitz and Stegun 26.7.5 (expansion around the normal quantile).
    """
    if freedom < 7:
        return _exact_t_quantile(probability, freedom)
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def _exact_t_quantile(probability: float, freedom: int) -> float:
    low, high = -1e6, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """Probability below t. Source: Abramowitz and Stegun 26.7.3 and 26.7.4 (finite series)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
