"""One model, measured once: who it is, its losses and answers on the evaluation rows, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inlay.evaluation.metrics import LOSS_METRICS, Array, TextMetric
from inlay.evaluation.row_statistics import BEHAVIOUR, RowStatistics, answered_rows, row_statistics
from inlay.evaluation.score import EvalSet, Score


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
