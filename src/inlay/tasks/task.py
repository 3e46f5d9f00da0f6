"""The seam of tasks: what differs between, say, a causal language model and a classifier, in one place.

`TASKS` lists them; each is made of functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from inlay.config import Config
from inlay.config.sections.data import DataConfig
from inlay.data.batches import Batch, collate
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet
from inlay.engine.loss import Collate, Loss, causal_loss, score_rows
from inlay.generation.generate import Answer, full_answers
from inlay.models import base as bases
from inlay.models.base import BaseRef


@dataclass(frozen=True, slots=True)
class Task:
    """A task that a base is trained for. Training, evaluation and generation ask it wherever tasks differ."""

    architecture: Callable[[BaseRef], Any]
    """The transformers config of a base. Raises: ModelError for a base that cannot do the task."""
    load_model: Callable[..., Any]
    """The model of a base with its weights; arguments as in `inlay.models.base.load_model`."""
    random_model: Callable[[Any, str, torch.dtype], Any]
    """A model of a transformers config, an attention implementation and a dtype, with random weights, for measuring."""
    encoder: Callable[[Any, DataConfig, str | None, int | None], Encoder]
    """The encoder of a tokenizer; arguments as in `Encoder.of`."""
    collate: Collate
    """Rows to a batch, ready for the model."""
    loss: Loss
    """Loss sum, weight and hits of each row of a batch. The engine adds the gradient of the sums."""
    answers: Callable[..., list[Answer]]
    """Answers of a model to prompts; arguments as in `inlay.generation.generate.full_answers`."""

    def batch(self, tokens: TokenSet, rows: Sequence[int], pad_id: int, device: str) -> Batch:
        """The rows as a batch on the device."""
        return self.collate(tokens, rows, pad_id).to(device)

    def score_rows(
        self, model: Any, tokens: TokenSet, shares: Iterable[Sequence[int]], pad_id: int, device: str,
        dtype: torch.dtype | None, *, hits: bool = False,
    ) -> Tensor:  # fmt: skip
        """Loss, weight and, with `hits`, hits of each sequence; see `inlay.engine.loss.score_rows`."""
        return score_rows(model, tokens, shares, pad_id, device, dtype, self.collate, self.loss, hits=hits)


def _random_causal_model(architecture: Any, attention: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    implementation = None if attention == "auto" else attention
    return AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation)


CAUSAL: Final = Task(
    architecture=bases.architecture,
    load_model=bases.load_model,
    random_model=_random_causal_model,
    encoder=Encoder.of,
    collate=collate,
    loss=causal_loss,
    answers=full_answers,
)
"""Causal language modelling: the model continues a text, and learns the answers in it token by token."""

TASKS: Final[dict[str, Task]] = {"causal": CAUSAL}
"""Name -> task. The functions of a new one lie in a file of their own, and it has an entry here; docs/architecture.md
lists the places that still take a causal language model for granted."""


def task_of(config: Config) -> Task:  # noqa: ARG001 -- every config trains a causal language model today
    """The task of a run."""
    return TASKS["causal"]
