"""From the statistics of two models' rows to a verdict: difference, interval, p-value.

Both models are scored on the same rows, so a resample of the paired bootstrap draws rows and takes both sides of each.
Every metric sees the same resamples. `_interval` makes an interval of them; `Difference.verdict` decides by it.
Shape suffixes: N rows, S statistics of a metric, R resamples, K distinct columns of all metrics.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from inlay.errors import ConfigError, DataError, count_shown
from inlay.evaluation.metrics import LOSS_METRICS, Array, Metric
from inlay.typed_json import JsonObject

_CELLS = 1 << 21
"""Numbers in one block of resample counts (16 MB): small enough for any machine, large enough for BLAS."""

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
    low: float | None
    """Ends of the interval; None of both where a single row, or a single group of rows, gives none."""
    high: float | None
    wins: int
    """Rows that `other` scores better than `base`, in the metric's own direction."""
    ties: int
    losses: int
    n: int
    level: float
    higher_is_better: bool
    standard_error: float | None = 0.0
    """Standard error of the difference, by the jackknife over rows (over clusters where rows come in clusters); None of
    a single one."""
    p: float | None = 1.0
    """Two-sided, before any correction: exact McNemar for right/wrong rows, else from the resamples. None where there
    are too few rows for a verdict."""
    test: str = "bootstrap"
    """bootstrap, mcnemar, or t where `other` is several models."""
    clusters: int | None = None
    """Groups of rows that were drawn together; None when each row was drawn by itself."""
    seeds: int | None = None
    """Number of trainings whose mean `other` is: rows and seeds then both vary. None for one model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high); None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def excludes_zero(self) -> bool:
        """True where there is an interval and 0 lies outside it."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def mde(self) -> float | None:
        """The smallest true difference that rows like these would show in 95 of 100 comparisons.

        None where no two rows differ: then nothing is known of the spread. Nor is it stated over seeds.
        """
        units = self.clusters or self.n
        if self.interval is None or not self.standard_error or self.seeds is not None:
            return None
        # the interval reaches this far to its longer side; the estimate falls short of the truth by the other term
        reach = max(self.interval[1] - self.difference, self.difference - self.interval[0])
        return reach + t_quantile(_POWER, units - 1) * math.sqrt(units / (units - 1)) * self.standard_error

    @property
    def verdict(self) -> Verdict:
        """better or worse where the interval excludes 0 and enough rows differ; else not distinguishable."""
        if self.too_few or self.interval is None or not self.excludes_zero:
            return "not distinguishable"
        return "better" if (self.interval[0] > 0) == self.higher_is_better else "worse"

    @property
    def reason(self) -> str:
        """The cause of the verdict, in one line."""
        contains = "excludes" if self.excludes_zero else "contains"
        return self.too_few or f"the {100 * self.level:g}% interval {contains} 0"

    @property
    def too_few(self) -> str:
        """The reason that no verdict can be given; empty where one can."""
        if self.clusters is None and self.n < MIN_ROWS:
            return f"only {count_shown(self.n, 'row')}; a verdict needs {MIN_ROWS}"
        if self.clusters is not None and self.clusters < MIN_ROWS:
            groups = count_shown(self.clusters, "group of rows", "groups of rows")
            return f"only {groups}; a verdict needs {MIN_ROWS}"
        # k rows that all go one way come up by chance with probability 2 * 2^-k.
        needed = math.ceil(1 - math.log2(1 - self.level))
        changed = self.wins + self.losses
        if 0 < changed < needed:
            differ = "differs" if changed == 1 else "differ"
            return f"only {changed} of {count_shown(self.n, 'row')} {differ}; a verdict needs {needed}"
        return ""

    def to_json(self) -> JsonObject:
        """The difference as JSON, null for what these rows cannot give."""
        return {
            "base": self.base, "adapter": self.other, "difference": self.difference,
            "low": self.low, "high": self.high, "level": self.level,
            "wins": self.wins, "ties": self.ties, "losses": self.losses, "n": self.n, "clusters": self.clusters,
            "seeds": self.seeds, "standard_error": self.standard_error, "mde": self.mde, "p": self.p, "test": self.test,
            "verdict": self.verdict, "reason": self.reason,
        }  # fmt: skip


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
        if clusters is not None:
            found = replace(found, clusters=len(columns_UK))
        result[name] = replace(found, p=None) if found.too_few else found
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
    low, high = _interval(drawn_R, influence, level) or (None, None)
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
        standard_error=math.sqrt(float(np.mean(influence**2)) / (count - 1)) if count > 1 else None,
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


def _interval(drawn_R: Array, influence_N: Array, level: float) -> tuple[float, float] | None:
    """Expanded percentile interval, its longer tail lengthened for skewness; None of a single row.

    Order statistics without interpolation, counted from both ends alike, so that -drawn gives (-high, -low).
    Sources: T. Hesterberg, "What teachers should know about the bootstrap", 2015, section 5 (tail areas of t
    instead of normal; the percentile interval misses kappa (t^2 + 2) of the skewness term kappa (2 t^2 + 1)).
    Why this one: docs/decisions/bootstrap-interval.md.
    """
    n, resamples = len(influence_N), len(drawn_R)
    if n < 2:
        return None
    ordered = np.sort(drawn_R)
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


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """The p-values adjusted so that, over all of them, one false alarm comes with at most the stated chance.

    None stays None: what has no p claims nothing, so it is no hypothesis.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, running = {}, 0.0
    tested = sorted((value, place, name) for place, (name, value) in enumerate(p.items()) if value is not None)
    for rank, (value, _, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * value))
        adjusted[name] = running
    return {name: adjusted.get(name) for name in p}


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
