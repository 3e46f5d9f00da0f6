"""Frozen linear layers that read the same input, as one matmul, with LoRA on chosen ones and K adapters at once.

Shapes: T tokens, of which each adapter has a span; I inputs; O outputs of all layers stacked; R ranks of all layers
stacked; P outputs and r rank of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from inlay.engine.handwritten.frozen import Frozen
from inlay.engine.profile import timed


class Span(NamedTuple):
    """Tokens that belong to one adapter."""

    adapter: int
    """Its place among the adapters of the model."""
    tokens: slice
    wants_gradient: bool = True
    """False where the adapter's loss is not finite: its parameters get no gradient then."""


class _Lora:
    """One adapter on one of the stacked layers: its fp32 master weights and their place in the stack."""

    def __init__(self, layer: Any, adapter: str, outputs: slice, ranks: slice) -> None:
        self.down_rI, self.up_Pr = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        self.scale = float(layer.scaling[adapter])
        self.outputs, self.ranks = outputs, ranks
        self.scaled_up_Pr = self.up_Pr.detach()

    def cast(self, dtype: torch.dtype) -> None:
        self.scaled_up_Pr = (self.up_Pr.detach() * self.scale).to(dtype)


class Projection:
    """y = W x + b + s·B A x, where A, B and s are those of the adapter that a token belongs to."""

    def __init__(self, layers: Sequence[Any], adapters: Sequence[str], compute: torch.dtype) -> None:
        """`compute` is the dtype of the matmuls."""
        linears = [getattr(layer, "base_layer", layer) for layer in layers]
        self.frozen = Frozen(linears, compute)
        self.loras = [_loras(layers, linears, adapter) for adapter in adapters]
        self._none_0I = torch.empty(0, linears[0].in_features, dtype=compute, device=linears[0].weight.device)
        self.downs_RI: list[Tensor] = []

    @property
    def is_adapted(self) -> bool:
        """True where an adapter is on one of the layers."""
        return any(self.loras)

    @timed("adapter")
    def cast(self) -> None:
        """Takes the adapters' present values, in the dtype of the matmuls."""
        dtype = self.frozen.compute
        for loras in self.loras:
            for lora in loras:
                lora.cast(dtype)
        self.downs_RI = [
            torch.cat([lora.down_rI.detach().to(dtype) for lora in loras]) if loras else self._none_0I
            for loras in self.loras
        ]

    def forward(self, x_TI: Tensor, spans: Sequence[Span]) -> tuple[Tensor, list[Tensor]]:
        """y (T, O), and A x (span, R) of each span for the backward pass."""
        y_TO = F.linear(x_TI, self.frozen.weight(), self.frozen.bias_O)
        return y_TO, self._add_adapters(y_TO, x_TI, spans)

    @timed("adapter")
    def _add_adapters(self, y_TO: Tensor, x_TI: Tensor, spans: Sequence[Span]) -> list[Tensor]:
        lows = [x_TI[span.tokens] @ self.downs_RI[span.adapter].T for span in spans]
        for span, low_SR in zip(spans, lows, strict=True):
            for lora in self.loras[span.adapter]:
                y_TO[span.tokens, lora.outputs].addmm_(low_SR[:, lora.ranks], lora.scaled_up_Pr.T)
        return lows

    def backward(
        self, dy_TO: Tensor, x_TI: Tensor, lows: Sequence[Tensor], spans: Sequence[Span], wants_dx: bool = True
    ) -> Tensor | None:
        """Adds dB = s·((A x)ᵀ dy)ᵀ and dA = (s·Bᵀ dyᵀ) x to the adapters' gradients; gives dx = dy W + (s·dy B) A."""
        dx_TI = dy_TO @ self.frozen.weight() if wants_dx else None
        self._adapters_backward(dx_TI, dy_TO, x_TI, lows, spans)
        return dx_TI

    @timed("adapter")
    def _adapters_backward(
        self, dx_TI: Tensor | None, dy_TO: Tensor, x_TI: Tensor, lows: Sequence[Tensor], spans: Sequence[Span]
    ) -> None:
        for span, low_SR in zip(spans, lows, strict=True):
            down_RI, loras = self.downs_RI[span.adapter], self.loras[span.adapter]
            if not loras or not span.wants_gradient:
                continue
            dlow_SR = torch.empty_like(low_SR)
            for lora in loras:
                dy_SP = dy_TO[span.tokens, lora.outputs]
                torch.mm(dy_SP, lora.scaled_up_Pr, out=dlow_SR[:, lora.ranks])
                dup_rP = low_SR[:, lora.ranks].T @ dy_SP  # quicker than its transpose, with few rows in the result
                _add(lora.up_Pr, dup_rP.mul_(lora.scale).T)
            ddown_RI = dlow_SR.T @ x_TI[span.tokens]
            for lora in loras:
                _add(lora.down_rI, ddown_RI[lora.ranks])
            if dx_TI is not None:
                dx_TI[span.tokens].addmm_(dlow_SR, down_RI)


def _loras(layers: Sequence[Any], linears: Sequence[Any], adapter: str) -> list[_Lora]:
    loras, output, rank = [], 0, 0
    for layer, linear in zip(layers, linears, strict=True):
        outputs = slice(output, output := output + linear.out_features)
        if adapter in getattr(layer, "lora_A", {}):
            ranks = slice(rank, rank := rank + len(layer.lora_A[adapter].weight))
            loras.append(_Lora(layer, adapter, outputs, ranks))
    return loras


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    whole = torch.contiguous_format
    parameter.grad = gradient.clone(memory_format=whole) if parameter.grad is None else parameter.grad.add_(gradient)
