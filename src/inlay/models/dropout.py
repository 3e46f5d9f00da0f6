"""Dropout of the base's own layers, set in its config; the adapter's is apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from inlay.errors import ModelError

_NAMES = ("drop", "jitter")
"""Parts of the attribute names of dropout rates: dropout, pdrop, layerdrop, a router's jitter."""


def own_dropout(model: nn.Module) -> float:
    """Largest dropout rate of the base's own layers; 0 without dropout."""
    return max((rate for _, _, rate in _rates(model)), default=0.0)


def switch_off(model: Any) -> None:
    """Sets all rates to 0: a training step then draws no random numbers, and its gradient does not depend on micro batches.

    Raises: ModelError where the architecture draws random numbers all the same.
    """
    for layer, name, _ in list(_rates(model)):
        setattr(layer, name, 0.0)
    if not next(model.parameters()).is_meta and _draws(model):
        raise ModelError(
            f"{type(model).__name__}: draws random numbers in training although its dropout is off. Keep its dropout with "
            "--set train.base_dropout=true."
        )


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    for path, layer in model.named_modules():
        if "lora_" in path:
            continue
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p:
            yield layer, "p", layer.p
        for name, value in vars(layer).items():
            if isinstance(value, float) and value > 0 and any(part in name for part in _NAMES):
                yield layer, name, value


def _draws(model: Any) -> bool:
    ids = torch.arange(3, device=model.device)[None] % len(model.get_input_embeddings().weight)
    was_training, before = model.training, _random_state(model.device)
    model.train()
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        model.train(was_training)
    return not all(torch.equal(a, b) for a, b in zip(before, _random_state(model.device), strict=True))


def _random_state(device: torch.device) -> list[torch.Tensor]:
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]
