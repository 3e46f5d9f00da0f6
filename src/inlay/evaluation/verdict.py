"""The verdict of two models on the same rows: a difference with its interval is better, worse or neither.

`Difference.verdict` decides. `inlay.evaluation.bootstrap` makes the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from inlay.evaluation.p_values import t_quantile
from inlay.typed_json import JsonObject

Verdict = Literal["better", "worse", "not distinguishable"]

MIN_ROWS = 8
"""Fewer rows give no verdict: their interval depends on the method more than on the models."""

_POWER = 0.965
"""Aimed at, so that the minimum detectable effect is found in 95 of 100 comparisons: the spread of the rows is an
estimate too, and on heavy tails that takes up to 1.5 of them. The figures are in the decision."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`other` minus `base` on the same rows, with its interval. Swapping the two mirrors it exactly."""

    base: float
    other: float
    difference: float
    low: float
    high: float
    wins: int
    """Rows that `other` scores better than `base`, in the metric's own direction."""
    ties: int
    losses: int
    n: int
    level: float
    higher_is_better: bool
    standard_error: float = 0.0
    """Standard error of the difference, by the jackknife over rows (over clusters where rows come in clusters)."""
    p: float = 1.0
    """Two-sided, before any correction: exact McNemar for right/wrong rows, else from the resamples."""
    test: str = "bootstrap"
    """bootstrap, mcnemar, or t where `other` is several models."""
    clusters: int | None = None
    """Groups of rows that were drawn together; None when each row was drawn by itself."""
    seeds: int | None = None
    """Number of trainings whose mean `other` is: rows and seeds then both vary. None for one model."""

    @property
    def mde(self) -> float | None:
        """The smallest true difference that rows like these would show in 95 of 100 comparisons.

        None where no two rows differ: then nothing is known of the spread. Nor is it stated over seeds.
        """
        units = self.clusters or self.n
        if self.standard_error == 0 or units < 2 or self.seeds is not None:
            return None
        # the interval reaches this far to its longer side; the estimate falls short of the truth by the other term
        reach = max(self.high - self.difference, self.difference - self.low)
        return reach + t_quantile(_POWER, units - 1) * math.sqrt(units / (units - 1)) * self.standard_error

    @property
    def verdict(self) -> Verdict:
        """better or worse where the interval excludes 0 and enough rows differ; else not distinguishable."""
        if self._too_few() or self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"

    @property
    def reason(self) -> str:
        """The cause of the verdict, in one line."""
        contains = "contains" if self.low <= 0 <= self.high else "excludes"
        return self._too_few() or f"the {100 * self.level:g}% interval {contains} 0"

    def _too_few(self) -> str:
        """The reason that no verdict can be given; empty where one can."""
        units, what = (self.n, "rows") if self.clusters is None else (self.clusters, "groups of rows")
        if units < MIN_ROWS:
            return f"only {units} {what}; a verdict needs {MIN_ROWS}"
        # k rows that all go one way come up by chance with probability 2 * 2^-k.
        needed = math.ceil(1 - math.log2(1 - self.level))
        changed = self.wins + self.losses
        if 0 < changed < needed:
            return f"only {changed} of {self.n} rows differ; a verdict needs {needed}"
        return ""

    def to_json(self) -> JsonObject:
        """The difference as JSON; `mde` is null where no two rows differ."""
        return {
            "base": self.base, "adapter": self.other, "difference": self.difference,
            "low": self.low, "high": self.high, "level": self.level,
            "wins": self.wins, "ties": self.ties, "losses": self.losses, "n": self.n, "clusters": self.clusters,
            "seeds": self.seeds, "standard_error": self.standard_error, "mde": self.mde, "p": self.p, "test": self.test,
            "verdict": self.verdict, "reason": self.reason,
        }  # fmt: skip
