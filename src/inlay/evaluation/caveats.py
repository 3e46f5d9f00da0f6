"""Facts that weaken a verdict, as values; `inlay.evaluation.summary` has their words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelCaution:
    """A model's run failed its proofs, or its base is only named."""

    caution: str


@dataclass(frozen=True, slots=True)
class ChangedSettings:
    """Settings of the evaluation that differ from those of the run."""

    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowsLeftOut:
    """Rows that are too long to be scored."""

    count: int


@dataclass(frozen=True, slots=True)
class DifferentTokenizers:
    """Loss per token cannot be compared."""


@dataclass(frozen=True, slots=True)
class NoAnswers:
    """No answers were generated, as nothing that was requested needs them."""


@dataclass(frozen=True, slots=True)
class SeveralModels:
    """So many models are compared on the same rows."""

    count: int


@dataclass(frozen=True, slots=True)
class SeedsOfOneConfig:
    """Models that differ in the seed alone and are compared one by one."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelectedCheckpoint:
    """The model is the best of so many checkpoints by the loss on the evaluation rows."""

    checkpoints: int


@dataclass(frozen=True, slots=True)
class ArmsOnTheSameRows:
    """The arms of `inlay advise` are compared on the same rows."""


@dataclass(frozen=True, slots=True)
class TrainedWithoutPassages:
    """The adapter has seen no retrieved passages in training."""


@dataclass(frozen=True, slots=True)
class PromptsOverBudget:
    """Held-out rows that fit no prompt of the budget."""

    count: int


@dataclass(frozen=True, slots=True)
class RepeatedTrainingRows:
    """Training rows that repeat a held-out row: they are not retrieved."""

    count: int


@dataclass(frozen=True, slots=True)
class RepeatedPassages:
    """Passages of documents with a held-out prompt and its answer: they are not retrieved."""

    count: int


@dataclass(frozen=True, slots=True)
class FilesPassedOver:
    """Files among the documents that are not text."""

    count: int


Caveat = (
    ModelCaution
    | ChangedSettings
    | RowsLeftOut
    | DifferentTokenizers
    | NoAnswers
    | SeveralModels
    | SeedsOfOneConfig
    | SelectedCheckpoint
    | ArmsOnTheSameRows
    | TrainedWithoutPassages
    | PromptsOverBudget
    | RepeatedTrainingRows
    | RepeatedPassages
    | FilesPassedOver
)
