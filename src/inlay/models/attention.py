"""Attention implementations that transformers has for a base."""

from __future__ import annotations

from typing import Any, Final, get_args

import torch

from inlay.config.sections.model import ModelConfig
from inlay.errors import ModelError

_KINDS: Final = tuple(kind for kind in get_args(ModelConfig.model_fields["attention"].annotation) if kind != "auto")


def refuse_attention(known: Any, attention: str) -> None:
    """Raises: ModelError when transformers cannot compute this base's attention so; `known` is its transformers config."""
    if attention == "auto" or (why := _refusal(known, attention)) is None:
        return
    other = " or ".join(
        f"model.attention={kind}" for kind in _KINDS if kind != attention and _refusal(known, kind) is None
    )
    cause = "needs the package flash-attn and an NVIDIA GPU" if isinstance(why, ImportError) else "is not available"
    in_place = f"Set {other}, or leave it out" if other else "Leave it out"
    raise ModelError(
        f"model.attention {attention}: {cause} for a {known.model_type} in transformers here. {in_place}: auto takes what works."
    )


def _refusal(known: Any, attention: str) -> Exception | None:
    """The error with which transformers refuses to build the model so; no weights are made."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(known, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        return error
    return None
