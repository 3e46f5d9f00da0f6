"""The winner of a sweep: chosen on some rows, judged on others. Shapes: N rows, T trials, D trials with
different losses, R resamples, U groups of rows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from inlay.errors import DataError
from inlay.evaluation.metrics import LOSS_METRICS, Array
from inlay.evaluation.verdict import MIN_ROWS, Difference, compare_scores, holm, t_quantile

LEAST_ROWS: Final = 50
"""Rows that choose, and rows that judge: with fewer, chance decides more than the settings do."""
_RESAMPLES: Final = 2_000
_LEVEL: Final = 0.05
_MISSED: Final = 0.035
"""Share of sweeps that may miss a gain of that size on the rows that choose; the rest of 5% is for those that judge."""
_PER_TRIAL: Final = 80
"""Resamples for each trial: with fewer, no p-value could be as small as the correction for so many asks."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The trial that won on the rows that choose. Neither the order of rows or trials nor a repeated trial changes it."""

    winner: int
    """Its place among the trials."""
    finalists: list[int]
    """Places of the trials that cannot be told from the best one, itself included."""
    least_gain: float | None
    """The smallest gain over all other trials that rows like these show to be one in 95 of 100 sweeps; None where no two
    trials differ."""
    optimism: float
    """How far the least of these losses lies below what the same choice has on new rows, in nats per token."""


def choose(
    nll_TN: Array, weight_N: Array, sizes_T: Sequence[int], groups: Sequence[Hashable], *, resamples: int, seed: int
) -> Choice:
    """The smallest adapter among the trials that are not worse than the best one, beyond chance.

    `nll_TN` are summed losses of each row, `weight_N` the weights of its trained tokens. Ties go to the smaller, then to
    the better, then to the earlier trial. Raises: DataError for a loss that is not finite.
    """
    if not np.isfinite(nll_TN).all():
        raise DataError("sweep: a loss is not finite, so no trial can be chosen by it.")
    # resamples draw places: in this order neither that of the rows nor that of the trials changes a draw or a sum
    order = sorted(range(len(groups)), key=lambda row: (repr(groups[row]), weight_N[row]))
    nll_TN, weight_N, groups = nll_TN[:, order], weight_N[order], [groups[row] for row in order]
    # trials with the same losses are asked once: repeats would make the correction stricter for all others
    nll_DN, place_T = np.unique(nll_TN, axis=0, return_inverse=True)
    resamples = max(resamples, _PER_TRIAL * len(nll_DN))
    losses_D = nll_DN.sum(1) / weight_N.sum()
    best = int(np.argmin(losses_D))
    differences = {
        place: loss_between(nll_DN[best], nll_DN[place], weight_N, groups, resamples=resamples, seed=seed)
        for place in range(len(nll_DN))
        if place != best
    }
    asked = holm({str(place): found.p for place, found in differences.items()})
    worse = {int(place) for place, p in asked.items() if p is not None and p <= _LEVEL}
    errors = [found.standard_error for found in differences.values() if found.standard_error]
    places = [int(place) for place in place_T.ravel()]
    finalists = [trial for trial, place in enumerate(places) if place not in worse]
    winner = min(finalists, key=lambda trial: (sizes_T[trial], losses_D[places[trial]], trial))
    return Choice(winner, finalists, _least_gain(errors, len(set(groups))), optimism(nll_DN, weight_N, groups, seed))


def loss_between(
    base_N: Array, other_N: Array, weight_N: Array, groups: Sequence[Hashable], *, resamples: int, seed: int
) -> Difference:
    """Held-out loss of `other` minus `base`; rows of one group are drawn together."""
    pair = (np.stack([base_N, weight_N], 1), np.stack([other_N, weight_N], 1), LOSS_METRICS["loss"])
    clusters = groups if len(set(groups)) < len(groups) else None
    return compare_scores({"loss": pair}, resamples=resamples, seed=seed, clusters=clusters)["loss"]


def least_gain(choice: Choice, judged: Difference) -> float | None:
    """Nats per token that a sweep must gain to be seen: on the rows that choose, and on those that judge."""
    found = [gain for gain in (choice.least_gain, judged.mde) if gain is not None]
    return max(found) if found else None


def _least_gain(errors: Sequence[float], units: int) -> float | None:
    """From the standard errors of the differences to the best trial: each of them must come out, at its corrected level."""
    if not errors:
        return None
    reach = t_quantile(1 - _LEVEL / 2 / len(errors), units - 1) + t_quantile(1 - _MISSED / len(errors), units - 1)
    return reach * math.sqrt(units / (units - 1)) * max(errors)


def optimism(nll_TN: Array, weight_N: Array, groups: Sequence[Hashable], seed: int) -> float:
    """Nats per token by which the least of T losses flatters itself; 0 with one trial.

    Over resamples of the groups of rows: the loss, on groups that were not drawn, of the trial that is best on those that
    were, minus its loss there.
    """
    names = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    place_N = np.array([names[group] for group in groups])
    units = len(names)
    if len(nll_TN) < 2 or units < MIN_ROWS:
        return 0.0
    nll_TU = np.stack([np.bincount(place_N, row, units) for row in nll_TN])
    weight_U = np.bincount(place_N, weight_N, units)
    counts_RU = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), _RESAMPLES)
    apart_RU = counts_RU == 0
    some_R = (apart_RU @ weight_U > 0) & (counts_RU @ weight_U > 0)
    counts_RU, apart_RU = counts_RU[some_R], apart_RU[some_R]
    inside_RT = counts_RU @ nll_TU.T / (counts_RU @ weight_U)[:, None]
    outside_RT = apart_RU @ nll_TU.T / (apart_RU @ weight_U)[:, None]
    chosen_R1 = inside_RT.argmin(1)[:, None]
    # against the mean of all trials: how hard the drawn rows are falls out
    inside_RT, outside_RT = (side - side.mean(1, keepdims=True) for side in (inside_RT, outside_RT))
    gaps = np.take_along_axis(outside_RT, chosen_R1, 1) - np.take_along_axis(inside_RT, chosen_R1, 1)
    return float(max(0.0, gaps.mean()))
