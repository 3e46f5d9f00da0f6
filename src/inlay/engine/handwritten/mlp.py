"""The gated feed-forward half of a layer: x + down(act(gate(n)) · up(n)) with n = norm(x).

Shapes: T tokens, H hidden, I inner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from inlay.engine import cpu_ops, gpu_ops
from inlay.engine.handwritten.lora import Projection, Span
from inlay.engine.handwritten.norm import RmsNorm

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


def gated(name: str, gate_up: Tensor) -> Tensor:
    """act(gate) · up (T, I) of both beside each other (T, 2 I)."""
    gate_TI, up_TI = gate_up.chunk(2, 1)
    if name == "silu" and gpu_ops.takes(gate_up):
        return gpu_ops.gated_silu(gate_up)
    if cpu_ops.takes(gate_TI, up_TI):
        return cpu_ops.gated(name, gate_TI, up_TI)
    return _act(name, gate_TI).mul_(up_TI)


def gated_backward(name: str, dh_TI: Tensor, gate_up: Tensor) -> None:
    """Writes the gradients by gate and up over them, and over dh what may be."""
    gate_TI, up_TI = gate_up.chunk(2, 1)
    if name == "silu" and gpu_ops.takes(gate_up):
        gpu_ops.gated_silu_backward(dh_TI, gate_up)
        return
    if cpu_ops.takes(dh_TI, gate_TI, up_TI):
        cpu_ops.gated_backward(name, dh_TI, gate_TI, up_TI)
        return
    dup_TI = dh_TI * _act(name, gate_TI)
    dh_TI.mul_(up_TI)
    up_TI.copy_(dup_TI)
    if name == "silu":
        torch.ops.aten.silu_backward.grad_input(dh_TI, gate_TI, grad_input=gate_TI)
    else:
        torch.ops.aten.gelu_backward.grad_input(dh_TI, gate_TI, approximate="tanh", grad_input=gate_TI)


def _act(name: str, gate_TI: Tensor) -> Tensor:
    return F.silu(gate_TI) if name == "silu" else F.gelu(gate_TI, approximate="tanh")


class _Saved(NamedTuple):
    x_TH: Tensor
    factor_T1: Tensor
    gate_up: Tensor  # (T, 2 I)
    lows: list[Tensor]
    down_lows: list[Tensor]
    post: tuple[Tensor, Tensor] | None  # what the norm behind it read, and its factor


class Mlp:
    """The feed-forward half of a layer, forward and backward."""

    def __init__(
        self, norm: RmsNorm, gate_up: Sequence[Any], down: Any, post: RmsNorm | None, name: str,
        adapters: Sequence[str], compute: torch.dtype,
    ) -> None:  # fmt: skip
        self.norm, self.post, self.act = norm, post, name
        self.gate_up, self.down = Projection(gate_up, adapters, compute), Projection([down], adapters, compute)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its stacks of linear layers."""
        return self.gate_up, self.down

    def forward(self, x_TH: Tensor, spans: Sequence[Span]) -> tuple[Tensor, _Saved]:
        """(y, all that the backward pass needs)"""
        n_TH, factor_T1 = self.norm.forward(x_TH)
        gate_up, lows = self.gate_up.forward(n_TH, spans)
        y_TH, down_lows = self.down.forward(gated(self.act, gate_up), spans)
        post = None
        if self.post is not None:
            raw_TH = y_TH
            y_TH, post_factor_T1 = self.post.forward(raw_TH)
            post = (raw_TH, post_factor_T1)
        saved = _Saved(x_TH, factor_T1, gate_up, lows, down_lows, post)
        return x_TH + y_TH, saved

    def backward(self, dy_TH: Tensor, saved: _Saved, spans: Sequence[Span], wants_dx: bool) -> Tensor | None:
        """Uses up what was saved: the gradient by `gate_up` is written over it."""
        x_TH, factor_T1, gate_up, lows, down_lows, post = saved
        draw_TH = dy_TH
        if self.post is not None and post is not None:
            draw_TH = self.post.backward(dy_TH, *post)
        dh_TI = self.down.backward(draw_TH, gated(self.act, gate_up), down_lows, spans)
        assert dh_TI is not None
        gated_backward(self.act, dh_TI, gate_up)
        n_TH = self.norm.scaled(x_TH, factor_T1)
        dn_TH = self.gate_up.backward(gate_up, n_TH, lows, spans, wants_dx)
        if dn_TH is None:
            return None
        return self.norm.backward(dn_TH, x_TH, factor_T1, dy_TH)
