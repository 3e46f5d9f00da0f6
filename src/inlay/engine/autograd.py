"""The autograd engine: transformers' forward pass and autograd's backward pass, for any architecture."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor

from inlay.data.batches import Batch
from inlay.engine.loss import Loss, autocast, causal_loss
from inlay.engine.profile import timed


class Engine(Protocol):
    """Computes the loss of a batch and adds its gradient to the parameters."""

    name: str

    def add_gradient(self, batch: Batch, factor: float) -> Tensor:
        """(B,) summed weighted nll of each row in nats. Adds `factor` times the gradient of their sum to the
        parameters' gradients, unless a loss is not finite."""
        ...


class AutogradEngine:
    """Loss and gradient by transformers' forward pass and autograd."""

    name = "autograd"

    def __init__(
        self, model: Any, device: str, autocast_dtype: torch.dtype | None = None, offload: bool = False,
        loss: Loss = causal_loss,
    ) -> None:  # fmt: skip
        """`offload` keeps what autograd saves in host memory (RAM)."""
        self.model, self.device, self.autocast_dtype, self.offload = model, device, autocast_dtype, offload
        self._loss = loss

    @timed("forward")
    def add_gradient(self, batch: Batch, factor: float) -> Tensor:
        """See `Engine.add_gradient`."""
        with autocast(self.device, self.autocast_dtype), self._kept():
            nll_B = self._loss(self.model, batch).sum_B
        if bool(torch.isfinite(nll_B).all()):
            _backward(nll_B.sum() * factor)
        return nll_B.detach()

    def _kept(self) -> contextlib.AbstractContextManager[Any]:
        return offloaded(self.model, self.device) if self.offload else contextlib.nullcontext()


def offloaded(model: Any, device: str) -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, what autograd saves goes to host memory (RAM), and comes back when the backward pass asks for it. The
    model's own weights stay where they are: autograd saves those of every linear layer too."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    pinned = device.startswith("cuda")

    def away(saved: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if saved.untyped_storage().data_ptr() in weights or saved.numel() < _WORTH_MOVING:
            return saved
        there = torch.empty(saved.shape, dtype=saved.dtype, pin_memory=pinned)
        return saved.device, there.copy_(saved, non_blocking=pinned)

    def back(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[1].to(kept[0], non_blocking=pinned)

    return torch.autograd.graph.saved_tensors_hooks(away, back)


_WORTH_MOVING = 1 << 12


@timed("backward")
def _backward(loss: Tensor) -> None:
    loss.backward()
