"""Several seeds of one config, judged as one: rows and seeds are two sources of chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inlay.errors import DataError
from inlay.evaluation import summary
from inlay.evaluation.measured_model import MeasuredModel, by_scored_rows, clusters_of
from inlay.evaluation.metrics import LOSS_METRICS, Array, Metric
from inlay.evaluation.verdict import Difference, compare_scores, t_cdf, t_quantile


@dataclass(frozen=True, slots=True)
class SeedLevel:
    """The mean of several trainings against the base."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, Difference]
    each: dict[str, list[float]]
    """By metric the difference of each training."""

    @property
    def title(self) -> str:
        """Heading: number and names of the trainings."""
        return summary.seeds_title(self.names)

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.each[metric])

    def to_json(self) -> dict[str, object]:
        """Names, seeds, and by metric the difference with that of each training."""
        return {
            "models": list(self.names),
            "seeds": list(self.seeds),
            "metrics": {
                name: d.to_json() | {"each": self.each[name], "spread": self.spread(name)}
                for name, d in self.metrics.items()
            },
        }


def seed_levels(
    models: Sequence[MeasuredModel], *, resamples: int, seed: int, per_token: bool
) -> tuple[SeedLevel, ...]:
    """Every config with several seeds among `models[1:]`, against the first model."""
    base, further = models[0], models[1:]
    return tuple(
        _seed_level(base, [further[n] for n in places], resamples=resamples, seed=seed, per_token=per_token)
        for places in by_seed([config_and_seed(one) for one in further])
    )


def _seed_level(
    base: MeasuredModel, others: Sequence[MeasuredModel], *, resamples: int, seed: int, per_token: bool
) -> SeedLevel:
    losses = [name for name in LOSS_METRICS if per_token or name == "bits_per_byte"]
    metrics = [*losses, *base.text_metrics]
    clusters = clusters_of(base.rows)
    found: dict[str, tuple[Difference, list[float]]] = {}
    for names in by_scored_rows(base.statistics, metrics):
        first, *rest = [[one.statistics[name].values_NS for name in names] for one in (base, *others)]
        places = base.statistics[names[0]].rows
        drawn = None if clusters is None else [clusters[n] for n in places]
        found |= over_seeds(
            first,
            rest,
            [base.statistics[name].metric for name in names],
            resamples=resamples,
            seed=seed,
            clusters=drawn,
        )
    return SeedLevel(
        tuple(one.name for one in others), tuple(one.facts.seed for one in others),
        {name: found[name][0] for name in metrics}, {name: found[name][1] for name in metrics},
    )  # fmt: skip


def config_and_seed(one: MeasuredModel) -> tuple[str, int] | None:
    """Config and seed of a finished run; None for any other model."""
    return None if one.facts.config_key is None else (one.facts.config_key, one.facts.seed)


def by_seed(keys: Sequence[tuple[str, int] | None]) -> list[list[int]]:
    """Positions that are one config with two or more seeds; of one seed the first. `keys`: (config, seed) of each."""
    found: dict[str, dict[int, int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            found.setdefault(key[0], {}).setdefault(key[1], place)
    return [list(places.values()) for places in found.values() if len(places) > 1]


def over_seeds(
    base: Sequence[Array],
    others: Sequence[Sequence[Array]],
    metrics: Sequence[Metric],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, tuple[Difference, list[float]]]:
    """By metric the mean over trainings minus the base, with rows and seeds as two sources of chance, and each training's.

    `base`: (N, S) statistics by metric; `others`: the same of each training. The interval over rows, of the mean, is
    widened by that of the seeds: the two halves add as squares. It is at least as long as one that knew the rows and
    the seeds to be independent, since what a seed changes row by row is counted in both.
    Sources: G. Zou and A. Donner, "Construction of confidence limits about effect measures", 2008 (adding the halves);
    F. Satterthwaite, "An approximate distribution of estimates of variance components", 1946 (degrees of freedom of p).
    """
    count = len(others)
    if count < 2:
        raise DataError(f"compare: {count} training has no spread over seeds. Give two or more.")
    pairs = {}
    for place, metric in enumerate(metrics):
        sides = np.tile(base[place], count), np.concatenate([one[place] for one in others], axis=1)
        pairs[metric.name] = (*sides, _mean_of(metric, count))
    over_rows = compare_scores(pairs, resamples=resamples, seed=seed, level=level, clusters=clusters)
    found = {}
    for place, metric in enumerate(metrics):
        d = over_rows[metric.name]
        each = [float(metric.value(one[place].sum(axis=0))) - d.base for one in others]
        found[metric.name] = (_with_spread(d, each), each)
    return found


def _mean_of(metric: Metric, count: int) -> Metric:
    """The mean of a metric over several models whose statistics stand side by side."""

    def mean(value: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda statistics: np.asarray(
            np.mean([value(one) for one in np.split(statistics, count, axis=-1)], axis=0)
        )

    return Metric(
        name=metric.name, higher_is_better=metric.higher_is_better, description=metric.description,
        size=count * metric.size, value=mean(metric.value), row_value=mean(metric.row_value or metric.value),
    )  # fmt: skip


def _with_spread(over_rows: Difference, each: Sequence[float]) -> Difference:
    """The same with the spread of the trainings in its interval and p."""
    count, d = len(each), over_rows
    if d.interval is None or d.standard_error is None:
        return replace(d, test="t", seeds=count)
    error = float(np.std(each, ddof=1)) / math.sqrt(count)
    reach = t_quantile((1 + d.level) / 2, count - 1) * error
    total_error = math.hypot(d.standard_error, error)
    units = d.clusters or d.n
    p = 1.0
    if total_error > 0:
        parts = (d.standard_error / total_error) ** 4 / max(units - 1, 1) + (error / total_error) ** 4 / (count - 1)
        p = 2 * t_cdf(-abs(d.difference) / total_error, max(1, int(1 / parts)))
    low, high = d.interval
    return replace(
        d, low=d.difference - math.hypot(d.difference - low, reach),
        high=d.difference + math.hypot(high - d.difference, reach),
        standard_error=total_error, p=None if d.too_few else p, test="t", seeds=count,
    )  # fmt: skip
