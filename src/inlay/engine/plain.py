"""The plain path: transformers' forward and autograd's backward, for any architecture."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from inlay.data.batches import Batch
from inlay.engine.loss import autocast, weighted_nll
from inlay.engine.profile import timed


class Engine(Protocol):
    """What the loop asks of a path."""

    name: str

    def add_gradient(self, batch: Batch, factor: float) -> Tensor:
        """(B,) summed weighted nll of each row in nats. Adds `factor` times the gradient of their sum to the
        parameters' gradients, unless a loss is not finite."""
        ...


class PlainModel:
    name = "plain"

    def __init__(self, model: Any, device: str, autocast_dtype: torch.dtype | None = None) -> None:
        self.model, self.device, self.autocast_dtype = model, device, autocast_dtype

    @timed("forward")
    def add_gradient(self, batch: Batch, factor: float) -> Tensor:
        """See `Engine.add_gradient`."""
        with autocast(self.device, self.autocast_dtype):
            nll_B, _ = weighted_nll(self.model, batch)
        if bool(torch.isfinite(nll_B).all()):
            _backward(nll_B.sum() * factor)
        return nll_B.detach()


@timed("backward")
def _backward(loss: Tensor) -> None:
    loss.backward()
