"""Two measured models row by row: each row's statistics of both, and the differences drawn from these pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inlay.evaluation.bootstrap import compare_scores
from inlay.evaluation.measured_model import MeasuredModel
from inlay.evaluation.metrics import Array, Metric
from inlay.evaluation.row_statistics import by_scored_rows, clusters_of
from inlay.evaluation.score import EvalSet
from inlay.evaluation.verdict import Difference

Pair = tuple[Array, Array, Metric]
"""Statistics of the base and of the other model, a line a row, and their metric."""


def paired_rows(base: MeasuredModel, other: MeasuredModel, metric: str) -> Pair:
    """The statistics of both models for the rows that the metric scores."""
    before, after = base.statistics[metric], other.statistics[metric]
    assert before.rows == after.rows, f"{metric}: {base.name} and {other.name} have different rows"
    return before.values_NS, after.values_NS, before.metric


def paired_over_all_rows(base: MeasuredModel, other: MeasuredModel, metric: str) -> Pair:
    """The same over all rows, NaN where a row is not scored."""
    sides = []
    for one in (base, other):
        found = one.statistics[metric].over_all_rows(len(one.rows.examples))
        found[one.score.weight == 0] = np.nan
        sides.append(found)
    return sides[0], sides[1], base.statistics[metric].metric


def differences(
    base: MeasuredModel, other: MeasuredModel, metrics: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """By metric `other` minus `base`; metrics of the same rows are drawn together."""
    found: dict[str, Difference] = {}
    for names in by_scored_rows(base.statistics, metrics):
        pairs = {name: paired_rows(base, other, name) for name in names}
        found |= drawn(pairs, base.rows, base.statistics[names[0]].rows, resamples=resamples, seed=seed)
    return found


def drawn(
    pairs: Mapping[str, Pair], rows: EvalSet, places: Sequence[int], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """The differences of pairs over the rows at `places`; files are drawn where the rows come from enough of them."""
    clusters = clusters_of(rows)
    picked = None if clusters is None else [clusters[n] for n in places]
    return compare_scores(pairs, resamples=resamples, seed=seed, clusters=picked)
