"""Intervals of a difference: the paired bootstrap over rows.

Both models are scored on the same rows, so a resample draws rows and takes both sides of each. Every metric sees the
same resamples. `_interval` makes an interval of them; `inlay.evaluation.verdict` decides by it.
Shape suffixes: N rows, S statistics of a metric, R resamples, K distinct columns of all metrics.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from inlay.errors import ConfigError, DataError
from inlay.evaluation.metrics import LOSS_METRICS, Array, Metric
from inlay.evaluation.p_values import mcnemar, t_quantile
from inlay.evaluation.verdict import Difference

_CELLS = 1 << 21
"""Numbers in one block of resample counts (16 MB): small enough for any machine, large enough for BLAS."""


def paired_bootstrap(
    stats_a: Array,
    stats_b: Array,
    metric: Metric,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Difference b minus a of one metric; see `compare_scores`."""
    pairs = {metric.name: (stats_a, stats_b, metric)}
    return compare_scores(pairs, resamples=resamples, seed=seed, level=level)[metric.name]


def compare_scores(
    pairs: Mapping[str, tuple[Array, Array, Metric]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Difference]:
    """By name the difference b minus a of (a_NS, b_NS, metric), all over the same resamples of the rows.

    `clusters` names the group of each row: rows of one group are drawn together. A pure function of its arguments:
    sums are exact, so BLAS, threads and the other metrics change no bit.
    Raises: ConfigError when `resamples` cannot give an interval of `level`; DataError when the rows of the
    two sides do not match or a statistic is not finite.
    """
    if not 0 < level < 1 or int((1 - level) / 2 * (resamples + 1) + 1e-9) < 1:
        raise ConfigError(
            f"compare: {resamples} resamples cannot give an interval of level {level}. "
            "Allowed: a level between 0 and 1 and at least 2 / (1 - level) resamples."
        )
    n = _row_count(pairs)
    columns = _Columns(None if clusters is None else _places(clusters, n))
    places = {name: (columns.add(a), columns.add(b)) for name, (a, b, _) in pairs.items()}
    columns_UK = columns.matrix()
    sums_RK = _resampled_sums(columns_UK, resamples, seed)
    result = {}
    for name, (a, b) in places.items():
        units = (columns_UK[:, a], columns_UK[:, b])
        drawn = (sums_RK[:, a], sums_RK[:, b])
        found = _difference(name, pairs[name], units, drawn, level)
        result[name] = found if clusters is None else replace(found, clusters=len(columns_UK))
    return result


def loss_difference(
    base: tuple[Array, Array],
    adapter: tuple[Array, Array],
    resamples: int,
    seed: int,
    examples: Array | None = None,
) -> Difference:
    """Held-out loss of adapter minus base from two (nll, weight) pairs over the same sequences.

    `examples` names the example of each sequence. The sequences of one are drawn together, as `compare_models` does;
    without it each is drawn by itself.
    """
    sides = [np.stack(side, 1).astype(np.float64) for side in (base, adapter)]
    if examples is not None:
        sides = [_per_example(side, examples) for side in sides]
    pair = (sides[0], sides[1], LOSS_METRICS["loss"])
    return compare_scores({"loss": pair}, resamples=resamples, seed=seed)["loss"]


def _per_example(statistics_NS: Array, examples: Array) -> Array:
    """Statistics summed over the sequences of each example, by its position."""
    found, places = np.unique(examples, return_inverse=True)
    summed = np.zeros((len(found), statistics_NS.shape[1]))
    np.add.at(summed, places, statistics_NS)
    return summed


def _places(clusters: Sequence[Hashable], n: int) -> npt.NDArray[np.int64]:
    """(N,) number of the cluster of each row, in the order in which they first come."""
    if len(clusters) != n:
        raise DataError(f"compare: {len(clusters)} cluster names for {n} rows. Give one a row.")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(c, len(seen)) for c in clusters], dtype=np.int64)


def _row_count(pairs: Mapping[str, tuple[Array, Array, Metric]]) -> int:
    """The N that all pairs share."""
    n = None
    for name, (a, b, metric) in pairs.items():
        n = len(a) if n is None else n
        if a.shape != b.shape or a.shape != (n, metric.size) or not n:
            raise DataError(
                f"compare: {name}: the two sides have statistics of shape {a.shape} and {b.shape}. "
                f"Both need ({n or 'rows'}, {metric.size}). Score the same rows with both models."
            )
        for side in (a, b):
            if not np.isfinite(side).all():
                row = int(np.nonzero(~np.isfinite(side).all(axis=1))[0][0])
                raise DataError(
                    f"compare: {name}: row {row} has a statistic that is not finite "
                    f"(got {side[row].tolist()}). Check the model's output on this row."
                )
    if n is None:
        raise DataError("compare: no metric to compare. Give at least one.")
    return n


class _Columns:
    """The distinct columns of all statistics: what two metrics or both sides share is summed once."""

    def __init__(self, places: npt.NDArray[np.int64] | None = None) -> None:
        self._clusters = places
        self._index: dict[bytes, int] = {}
        self._columns: list[Array] = []

    def add(self, stats_NS: Array) -> list[int]:
        """Position in `matrix()` of each column of `stats_NS`."""
        places = []
        for column in np.ascontiguousarray(stats_NS.T, dtype=np.float64):
            key = column.tobytes()
            if key not in self._index:
                self._index[key] = len(self._columns)
                if self._clusters is not None:
                    column = np.bincount(self._clusters, weights=column)
                self._columns.append(_on_exact_grid(column))
            places.append(self._index[key])
        return places

    def matrix(self) -> Array:
        """(units, K), contiguous: rows, or clusters of rows added up."""
        return np.ascontiguousarray(np.stack(self._columns, axis=1))


def _on_exact_grid(column: Array) -> Array:
    """`column` rounded to multiples of a power of two, so fine that any N of its values add without rounding.

    Counts and 0/1 scores stay as they are, others keep 11 digits at 10,000 rows. A sum then does not depend
    on the order in which BLAS adds, so equal columns give equal sums and swapped sides give mirrored results.
    """
    largest = float(np.abs(column).max()) * len(column)
    step = math.ldexp(1.0, max(math.frexp(largest)[1] - 52, -1000))
    return np.asarray(np.round(column / step) * step)


def _resampled_sums(columns_NK: Array, resamples: int, seed: int) -> Array:
    """(R, K) sums over resamples of the N rows: multinomial counts times columns, block by block."""
    n = len(columns_NK)
    generator = np.random.Generator(np.random.SFC64(seed))
    block = max(1, min(resamples, _CELLS // n))
    sums_RK = np.empty((resamples, columns_NK.shape[1]))
    counts = np.empty((block, n))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        for row, draws in enumerate(generator.integers(0, n, size=(size, n))):
            counts[row] = np.bincount(draws, minlength=n)
        sums_RK[start : start + size] = counts[:size] @ columns_NK
    return sums_RK


def _difference(
    name: str,
    pair: tuple[Array, Array, Metric],
    units: tuple[Array, Array],
    drawn: tuple[Array, Array],
    level: float,
) -> Difference:
    before, after, metric = pair
    base, other = (float(metric.value(side.sum(axis=0))) for side in units)
    drawn_R = metric.value(drawn[1]) - metric.value(drawn[0])
    scores = metric.scores(after) - metric.scores(before)
    for found in (np.float64(other - base), drawn_R, scores):
        if not np.isfinite(found).all():
            raise DataError(
                f"compare: {name}: a row or a resample of rows has no score. Leave out rows without weight."
            )
    influence = _influence(metric, units)
    low, high = _interval(drawn_R, influence, level)
    gains = scores if metric.higher_is_better else -scores
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    binary = _is_binary(before) and _is_binary(after)
    count = len(influence)
    # as many resamples on the far side of 0 as there are, and one that was not drawn
    far = 1 + min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
    return Difference(
        base=base,
        other=other,
        difference=other - base,
        low=low,
        high=high,
        wins=wins,
        ties=len(before) - wins - losses,
        losses=losses,
        n=len(before),
        level=level,
        higher_is_better=metric.higher_is_better,
        standard_error=math.sqrt(float(np.mean(influence**2)) / max(count - 1, 1)),
        p=mcnemar(wins, losses) if binary and count == len(before) else min(1.0, 2 * far / (len(drawn_R) + 1)),
        test="mcnemar" if binary and count == len(before) else "bootstrap",
    )


def _is_binary(stats_NS: Array) -> bool:
    """True where each row counts once and is right or wrong."""
    return bool(stats_NS.shape[1] == 2 and (stats_NS[:, 1] == 1).all() and np.isin(stats_NS[:, 0], (0, 1)).all())


def _influence(metric: Metric, rows: tuple[Array, Array]) -> Array:
    """(N,) effect of each row on the difference, centred: jackknife, in units of the row's own difference."""
    n = len(rows[0])
    if n < 2:
        return np.zeros(n)
    base, other = (metric.value(side.sum(axis=0) - side) for side in rows)
    without = other - base
    return np.asarray((n - 1) * (without.mean() - without))


def _interval(drawn_R: Array, influence_N: Array, level: float) -> tuple[float, float]:
    """Expanded percentile interval, its longer tail lengthened for skewness.

    Order statistics without interpolation, counted from both ends alike, so that -drawn gives (-high, -low).
    Sources: T. Hesterberg, "What teachers should know about the bootstrap", 2015, section 5 (tail areas of t
    instead of normal; the percentile interval misses kappa (t^2 + 2) of the skewness term kappa (2 t^2 + 1)).
    Why this one: docs/decisions/bootstrap-interval.md.
    """
    n, resamples = len(influence_N), len(drawn_R)
    ordered = np.sort(drawn_R)
    if n < 2:
        return float(ordered[0]), float(ordered[-1])
    t = t_quantile((1 + level) / 2, n - 1)
    tail = NormalDist().cdf(-t * math.sqrt(n / (n - 1)))
    rank = max(1, int(tail * (resamples + 1)))
    low, high = float(ordered[rank - 1]), float(ordered[resamples - rank])
    spread = math.sqrt(float(np.mean(influence_N**2)))
    if spread == 0:
        return low, high
    scaled_N = influence_N / spread
    # Not **3: pow of a negative number need not be minus pow of the positive one in the last bit.
    skewness = float(np.mean(scaled_N * scaled_N * scaled_N))
    missing = skewness / (6 * math.sqrt(n)) * (t * t + 2) * spread / math.sqrt(n - 1)
    return low + min(missing, 0.0), high + max(missing, 0.0)
