"""One config trained with several seeds, as one thing: rows and seeds both are luck."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.evaluation.compare import clusters_of, covered, difference_json, measure, same_rows, text_metrics
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.metrics import LOSS_METRICS, Metric
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.statistics import Difference, over_seeds


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
        return f"{len(self.names)} seeds of one config: {', '.join(self.names)}"

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.each[metric])

    def to_json(self) -> dict[str, Any]:
        return {
            "models": list(self.names),
            "seeds": list(self.seeds),
            "metrics": {
                name: difference_json(d) | {"each": self.each[name], "spread": self.spread(name)}
                for name, d in self.metrics.items()
            },
        }


def seed_level(
    rows: EvalSet,
    base: Score,
    others: Mapping[int, Score],
    *,
    resamples: int,
    seed: int,
    wanted: MetricSpecs = (),
    per_token: bool = True,
) -> SeedLevel:
    """Every metric of the trainings `others`, by seed, against `base` on the same rows."""
    texts = text_metrics(rows, wanted)
    losses = {name: metric for name, metric in LOSS_METRICS.items() if per_token or name == "bits_per_byte"}
    metrics: dict[str, Metric] = {**losses, **texts}
    sides = [measure(rows, one, texts).statistics for one in (base, *others.values())]
    clusters = clusters_of(rows)
    found: dict[str, tuple[Difference, list[float]]] = {}
    for names in same_rows(metrics, rows):
        places = covered(metrics[names[0]], rows)
        first, *rest = [[side[name] for name in names] for side in sides]
        drawn = None if clusters is None else [clusters[n] for n in places]
        found |= over_seeds(
            first, rest, [metrics[name] for name in names], resamples=resamples, seed=seed, clusters=drawn
        )
    return SeedLevel(
        tuple(one.name for one in others.values()), tuple(others),
        {name: found[name][0] for name in metrics}, {name: found[name][1] for name in metrics},
    )  # fmt: skip


def by_seed(keys: Sequence[tuple[str, int] | None]) -> list[list[int]]:
    """Places that are one config with two or more seeds; of one seed the first. `keys`: (config, seed) of each."""
    found: dict[str, dict[int, int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            found.setdefault(key[0], {}).setdefault(key[1], place)
    return [list(places.values()) for places in found.values() if len(places) > 1]
