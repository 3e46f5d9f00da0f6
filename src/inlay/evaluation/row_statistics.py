"""Losses and answers of one model as statistics of each row, by metric: every number of a report is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inlay.evaluation.answer_failures import ANSWER_FAILURES, STOPPED
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.metrics import LOSS_METRICS, Array, Metric, TextMetric
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.task_metrics import metrics_for
from inlay.evaluation.verdict import MIN_ROWS

BEHAVIOUR: Mapping[str, Metric] = {**ANSWER_FAILURES, STOPPED.name: STOPPED}
"""Metrics of how the answers behave; they have no part in the verdict."""


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Statistics of one metric, for the rows that it scores."""

    metric: Metric
    rows: tuple[int, ...]
    """Positions of the scored rows in the evaluation set."""
    values_NS: Array
    """(N, S), a line for each of them."""

    @property
    def total(self) -> float:
        """The metric over all its rows."""
        return float(self.metric.value(self.values_NS.sum(0)))

    def over_all_rows(self, count: int) -> Array:
        """(count, S) with NaN for the rows that are not scored."""
        found = np.full((count, self.metric.size), np.nan)
        found[list(self.rows)] = self.values_NS
        return found


def text_metrics(rows: EvalSet, wanted: MetricSpecs = ()) -> dict[str, TextMetric]:
    """The metrics for the reference answers of these rows; none where no row has one. Raises: ConfigError."""
    return metrics_for([rows.references[n] for n in rows.prompt_ids], wanted) if rows.prompt_ids else {}


def answered_rows(rows: EvalSet, score: Score) -> list[int]:
    """Positions of the rows with a prompt and a generated answer."""
    return [n for n in rows.prompt_ids if score.answers[n] is not None]


def row_statistics(rows: EvalSet, score: Score, texts: Mapping[str, TextMetric]) -> dict[str, RowStatistics]:
    """By name: the loss metrics, `texts` and BEHAVIOUR; those of answers only where answers were generated."""
    every = tuple(range(len(rows.examples)))
    found = {
        name: RowStatistics(metric, every, np.stack(_loss_statistics(name, rows, score), 1))
        for name, metric in LOSS_METRICS.items()
    }
    answered = answered_rows(rows, score)
    for name, metric in {**texts, **BEHAVIOUR}.items() if answered else ():
        if isinstance(metric, TextMetric):
            scored = [n for n in answered if metric.covers(rows.references[n])]
            values = [metric.statistics(score.answers[n] or "", rows.references[n]) for n in scored]
        else:
            scored, values = answered, [np.array([float(score.stopped[n]), 1.0]) for n in answered]
        found[name] = RowStatistics(metric, tuple(scored), np.stack(values))
    return found


def _loss_statistics(name: str, rows: EvalSet, score: Score) -> tuple[Array, Array]:
    """The two statistics of one of LOSS_METRICS, (N,) each."""
    if name == "bits_per_byte":
        return score.nll / math.log(2), np.maximum(rows.trained_bytes, 1)
    return score.hits if name == "token_accuracy" else score.nll, score.weight


def clusters_of(rows: EvalSet) -> list[str] | None:
    """Source file of each row where there are enough files to draw files, else None: rows are drawn."""
    files = [e.source.file for e in rows.examples]
    return files if MIN_ROWS <= len(set(files)) < len(files) else None


def by_scored_rows(statistics: Mapping[str, RowStatistics], names: Sequence[str]) -> list[list[str]]:
    """The named metrics in groups that score the same rows: each group is drawn together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        groups.setdefault(statistics[name].rows, []).append(name)
    return list(groups.values())
