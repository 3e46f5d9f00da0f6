"""One model, measured once: who it is, its losses and answers, and their statistics of each row by metric.

Every number of a report is computed from these statistics. Shape suffixes: N rows, S statistics of a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.metrics import BEHAVIOUR, LOSS_METRICS, Array, Metric, TextMetric
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.task_metrics import metrics_for
from inlay.evaluation.verdict import MIN_ROWS


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Name, origin and training of a model, as far as they are known without measuring it."""

    name: str
    kind: str
    """base, run, checkpoint, adapter (a folder) or model (a complete one)."""
    base: str
    """Folder, hub id or built-in name of the base's weights."""
    caution: str = ""
    """One line where its run failed its proofs; else empty."""
    config_key: str | None = None
    """Equal for trainings that differ in the seed alone; None for what is no finished run."""
    seed: int = 0
    training_s: float | None = None
    """None where it was not trained here."""
    stored_bytes: int = 0
    """Bytes to keep beside the base: those of the adapter, or all weights of a complete model."""
    selected_from: int = 0
    """Number of checkpoints of which it is the best by the loss on the evaluation rows; 0 where none was selected so."""


@dataclass(frozen=True, slots=True)
class RowEmbeddings:
    """Hidden states of one base, by row position, (depths, width) each."""

    prompts: Mapping[int, Array]
    references: Mapping[int, Array]
    answers: Mapping[int, Array]
    """Those of the model itself; prompts and references are shared by all models."""


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model on the evaluation rows: losses, answers, and the statistics of every metric."""

    facts: ModelFacts
    rows: EvalSet
    """The rows of the evaluation: one object for all its models, with the token counts of the first one's tokenizer."""
    score: Score
    statistics: Mapping[str, RowStatistics]
    """By metric; see `row_statistics`."""
    embeddings: RowEmbeddings | None = None
    """None where the base is another than the first model's, or where one model is measured alone."""
    retention: Score | None = None
    """Loss on rows that none of the models was trained for."""

    @staticmethod
    def of(
        facts: ModelFacts,
        rows: EvalSet,
        score: Score,
        texts: Mapping[str, TextMetric],
        embeddings: RowEmbeddings | None = None,
        retention: Score | None = None,
    ) -> MeasuredModel:
        """With the statistics of the loss metrics, of `texts`, and of how the answers behave."""
        return MeasuredModel(facts, rows, score, row_statistics(rows, score, texts), embeddings, retention)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.facts.name

    @property
    def answered(self) -> list[int]:
        """Positions of the rows with a generated answer to a prompt."""
        return answered_rows(self.rows, self.score)

    @property
    def text_metrics(self) -> list[str]:
        """Names of the metrics that compare answers with references."""
        return [name for name in self.statistics if name not in LOSS_METRICS and name not in BEHAVIOUR]

    def answer(self, row: int) -> str:
        """Answer to the prompt of a row; empty where there is none."""
        return self.score.answers[row] or ""

    def totals(self) -> dict[str, float]:
        """The loss metrics and the text metrics over all rows."""
        return {name: self.statistics[name].total for name in (*LOSS_METRICS, *self.text_metrics)}


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
    """By name: the loss metrics, `texts` and BEHAVIOUR; those of answers only where they score one."""
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
        if not values:  # a metric of several folds, none of whose rows is in this one
            continue
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
