"""A rule that says when a test on live traffic may stop. It may be looked at after every score: false alarms stay below alpha.

Each hypothesis has a bettor, whose wealth grows only where the hypothesis is false. Where it is true, the wealth ever reaches 1/a
with probability at most a (Ville's inequality). Between two arms the bets are on z, whose mean is the difference of their mean
scores, however the users are shared out: z = (m_B - m_A) + (y - m_B)/p_B for a score y of arm B, (m_B - m_A) - (y - m_A)/p_A for
one of arm A, m_B - m_A for one of a third arm. m is the mean of an arm's earlier scores, p the share of the arm.
A score costs the same time however many came before it.

Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024), sections 4 and 5.
Shape suffixes: R independent tests side by side (1 in a server, thousands in a simulation), G means that are bet against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Outcome = Literal["not yet", "better", "worse", "the same within margin", "undecided"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("not yet", "better", "worse", "the same within margin", "undecided")
"""By their number in `ArmTest.outcome_R`."""
_NOT_YET, _BETTER, _WORSE, _SAME, _UNDECIDED = range(5)
_LARGEST_BET: Final = 0.5
"""Share of its wealth that a bettor may lose by one score."""
_CAUTION: Final = 50
"""Bets begin as if so many scores without a finding had come before: first scores are noise."""
_STEPS: Final = 200
"""Differences on each side of 0 that an interval is made of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a test between two arms ends."""

    margin: float
    """Arms whose mean scores differ by less are the same for whoever runs the test."""
    horizon: int
    """Scores after which it ends without a verdict."""
    alpha: float = 0.05
    """Probability of "better" or "worse" where there is no difference, at most."""


class Bettors:
    """Bettors against "the mean is at most g" (`sign` 1) or "the mean is at least g" (`sign` -1), one for each g."""

    def __init__(self, g_G: Array, sign: int, repetitions: int) -> None:
        self.g_G, self._sign = g_G, sign
        self._log_wealth_RG = np.zeros((repetitions, len(g_G)))
        self.highest_RG = np.zeros((repetitions, len(g_G)))
        """Logarithm of the highest wealth that each has had."""

    def bet(self, value_R: Array, mean_R: Array, variance_R: Array, edge_R: Array) -> None:
        """Bets on a value by the mean and variance of those before it. `edge_R` is how far it may lie on the losing side of 0."""
        lead_RG = self._sign * (mean_R[:, None] - self.g_G)
        most_RG = _LARGEST_BET / (edge_R[:, None] + self._sign * self.g_G)
        stake_RG = np.clip(lead_RG / (variance_R[:, None] + lead_RG**2), 0, most_RG)
        self._log_wealth_RG += np.log1p(stake_RG * self._sign * (value_R[:, None] - self.g_G))
        np.maximum(self.highest_RG, self._log_wealth_RG, out=self.highest_RG)

    def has_reached(self, place: int, wealth: float) -> Flags:
        """Whether the bettor at this place in `g_G` has ever had so much."""
        reached_R: Flags = self.highest_RG[:, place] >= math.log(wealth)
        return reached_R


class ArmTest:
    """Arm B against arm A, score by score."""

    def __init__(self, rule: Rule, repetitions: int = 1, *, with_interval: bool = True) -> None:
        """Without an interval only the differences of the rule are bet against, which is faster."""
        ends = np.array([-rule.margin, 0.0, rule.margin])
        g_G = np.union1d(np.arange(-_STEPS, _STEPS + 1) / _STEPS, ends) if with_interval else ends
        self.rule = rule
        self._low, self._zero, self._high = (int(place) for place in np.searchsorted(g_G, ends))
        self._above, self._below = Bettors(g_G, 1, repetitions), Bettors(g_G, -1, repetitions)
        self.counts_R2, self.sums_R2 = np.zeros((repetitions, 2)), np.zeros((repetitions, 2))
        """Scores of A and of B, and their sums."""
        self.n, self._sum_R, self._squares_R = 0, np.zeros(repetitions), np.zeros(repetitions)
        self.outcome_R, self.ended_at_R = np.zeros(repetitions, int), np.zeros(repetitions, int)
        """Number in `OUTCOMES`, and scores at which it was first given: it stands."""

    def add(self, score_R: Array, is_a_R: Flags, is_b_R: Flags, share_a_R: Array, share_b_R: Array) -> None:
        """One score in [0, 1] of each test, with its arm, and the shares of A and B at the time the arm was given."""
        m_R2 = (self.sums_R2 + 0.5) / (self.counts_R2 + 1)
        z_R = m_R2[:, 1] - m_R2[:, 0]
        z_R = z_R + is_b_R * (score_R - m_R2[:, 1]) / share_b_R - is_a_R * (score_R - m_R2[:, 0]) / share_a_R
        mean_R = self._sum_R / (self.n + _CAUTION)
        variance_R = np.maximum((self._squares_R + 2) / (self.n + 1) - mean_R**2, 0.05)
        for bettors in (self._above, self._below):
            bettors.bet(z_R, mean_R, variance_R, _largest(share_a_R, share_b_R))
        self.n += 1
        self._sum_R, self._squares_R = self._sum_R + z_R, self._squares_R + z_R**2
        is_of_R2 = np.stack([is_a_R, is_b_R], 1)
        self.counts_R2, self.sums_R2 = self.counts_R2 + is_of_R2, self.sums_R2 + is_of_R2 * score_R[:, None]
        self._decide()

    def add_one(self, score: float, arm: Literal["a", "b", "other"], share_a: float, share_b: float) -> Outcome:
        """The same for a single test; its outcome after this score."""
        flags = np.array([arm == "a"]), np.array([arm == "b"])
        self.add(np.array([score]), *flags, np.array([share_a]), np.array([share_b]))
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        """The outcome of a single test."""
        return OUTCOMES[int(self.outcome_R[0])]

    @property
    def difference(self) -> float:
        """Mean score of B minus that of A, estimated whatever the shares were; 0 before the first score."""
        return max(-1.0, min(1.0, float(self._sum_R[0] / max(self.n, 1))))

    def intervals(self) -> tuple[Array, Array]:
        """Low and high end of the difference: at no time outside of them with probability 1 - alpha. In steps of 0.005."""
        g_G, enough = self._above.g_G, np.log(2 / self.rule.alpha)
        # an end is moved out to its neighbour, so that differences between two steps are covered, too
        low_R = np.argmax(self._above.highest_RG < enough, axis=1) - 1
        high_R = len(g_G) - np.argmax(self._below.highest_RG[:, ::-1] < enough, axis=1)
        return g_G[np.maximum(low_R, 0)], g_G[np.minimum(high_R, len(g_G) - 1)]

    def interval(self) -> tuple[float, float]:
        """The interval of a single test."""
        low_R, high_R = self.intervals()
        return float(low_R[0]), float(high_R[0])

    def _decide(self) -> None:
        sure, alpha = 2 / self.rule.alpha, self.rule.alpha
        is_above_R, is_below_R = self._above.has_reached(self._zero, sure), self._below.has_reached(self._zero, sure)
        is_same_R = self._above.has_reached(self._low, 1 / alpha) & self._below.has_reached(self._high, 1 / alpha)
        otherwise = _UNDECIDED if self.n >= self.rule.horizon else _NOT_YET
        found_R = np.select([is_above_R, is_below_R, is_same_R], [_BETTER, _WORSE, _SAME], otherwise)
        is_new_R = (self.outcome_R == _NOT_YET) & (found_R != _NOT_YET)
        self.outcome_R = np.where(is_new_R, found_R, self.outcome_R)
        self.ended_at_R = np.where(is_new_R, self.n, self.ended_at_R)


def _largest(share_a_R: Array, share_b_R: Array) -> Array:
    """The largest |z|: 1 for m_B - m_A, and 1 / share for the score, of whichever arm has the smaller share."""
    return 1 + 1 / np.minimum(share_a_R, share_b_R)


class Limit:
    """A watch on the share of one arm's answers that fail, or are slow: does it exceed the limit?"""

    def __init__(self, limit: float, alpha: float = 0.05, repetitions: int = 1) -> None:
        """`alpha`: probability of ever saying so where the share is the limit or less."""
        self.limit, self._alpha = limit, alpha
        self._bettors = Bettors(np.array([limit]), 1, repetitions)
        self.n, self.sum_R = 0, np.zeros(repetitions)

    def add(self, is_bad_R: Flags) -> Flags:
        """One answer of each repetition. Whether the limit is exceeded by now."""
        mean_R = (self.sum_R + _CAUTION * self.limit) / (self.n + _CAUTION)
        self._bettors.bet(is_bad_R.astype(np.float64), mean_R, mean_R * (1 - mean_R), np.zeros_like(mean_R))
        self.n, self.sum_R = self.n + 1, self.sum_R + is_bad_R
        return self._bettors.has_reached(0, 1 / self._alpha)

    def add_one(self, is_bad: bool) -> bool:
        """The same for a single arm."""
        return bool(self.add(np.array([is_bad]))[0])
