"""Causal language modelling: the model continues a text, and learns the answers in it token by token."""

from __future__ import annotations

from typing import Any, Final

import torch

from inlay.data.batches import collate
from inlay.data.encoding.encoder import Encoder
from inlay.engine.loss import causal_loss
from inlay.generation.generate import full_answers
from inlay.models import base as bases
from inlay.tasks.task import Task


def _random_model(architecture: Any, attention: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    implementation = None if attention == "auto" else attention
    return AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation)


CAUSAL: Final = Task(
    architecture=bases.architecture,
    load_model=bases.load_model,
    random_model=_random_model,
    encoder=Encoder.of,
    collate=collate,
    loss=causal_loss,
    answers=full_answers,
)
