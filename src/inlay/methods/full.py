"""Full fine-tuning: all weights of a base are trained, in fp32. The base's own files stay as they are, and its weights
come back from them whenever the base is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from inlay.config.sections.model import ModelConfig
from inlay.models import base as bases

FULL: Final = "FULL"
_ORIGINALS = "_original_weights"
Weights = Mapping[str, Tensor]


def open_up(model: nn.Module, originals: Callable[[], Weights]) -> nn.Module:
    """The model with all its weights trainable; `originals` gives those of the base by name."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    setattr(model, _ORIGINALS, originals)
    return model


def is_whole(model: Any) -> bool:
    """Whether this is a model whose own weights are, or were, trained."""
    return hasattr(model, _ORIGINALS)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Its weights by name, tied ones once; they are not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def original_weights(model: nn.Module) -> Iterator[None]:
    """Inside, the model has the weights of the base. Both are in memory then."""
    trained = weights_of(model)
    _put(model, getattr(model, _ORIGINALS)())
    try:
        yield
    finally:
        _put(model, trained)


def put_on(model: nn.Module, tensors: Weights) -> nn.Module:
    """The base with these weights in place of its own, ready for inference."""
    own = weights_of(model)
    setattr(model, _ORIGINALS, lambda: own)
    _put(model, tensors)
    return model.eval()


def take_off(model: nn.Module) -> nn.Module:
    """The base again, frozen, with its own weights."""
    _put(model, getattr(model, _ORIGINALS)())
    delattr(model, _ORIGINALS)
    model.zero_grad(set_to_none=True)
    return model.requires_grad_(False).eval()


def read(folder: Path) -> dict[str, Tensor]:
    """The weights in a model folder, fp32, under the names that they have in the model. Raises: ModelError."""
    settings = ModelConfig(base_model=str(folder))
    return weights_of(bases.load_model(bases.find_base(str(folder)), settings, torch.float32, "cpu", "none"))


def _put(model: nn.Module, tensors: Weights) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = tensors[name].to(parameter.device, parameter.dtype)
