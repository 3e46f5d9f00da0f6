"""The gated feed-forward half of a layer: x + down(act(gate(n)) · up(n)) with n = norm(x).

Shapes: T tokens, H hidden, I inner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from inlay.engine.direct.lora import Projection
from inlay.engine.direct.norm import RmsNorm

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


def act(name: str, gate_TI: Tensor) -> Tensor:
    return F.silu(gate_TI) if name == "silu" else F.gelu(gate_TI, approximate="tanh")


def act_backward(name: str, d_TI: Tensor, gate_TI: Tensor) -> Tensor:
    """The gradient by the activation's input."""
    if name == "silu":
        return torch.ops.aten.silu_backward(d_TI, gate_TI)  # type: ignore[no-any-return]
    return torch.ops.aten.gelu_backward(d_TI, gate_TI, approximate="tanh")  # type: ignore[no-any-return]


class _Saved(NamedTuple):
    x_TH: Tensor
    factor_T1: Tensor
    n_TH: Tensor
    gate_up: Tensor  # (T, 2 I)
    lows: list[Tensor]
    down_lows: list[Tensor]
    post: tuple[Tensor, Tensor] | None  # what the norm behind it read, and its factor


class Mlp:
    def __init__(
        self, norm: RmsNorm, gate_up: Sequence[Any], down: Any, post: RmsNorm | None, name: str, adapters: Sequence[str]
    ) -> None:
        self.norm, self.post, self.act = norm, post, name
        self.gate_up, self.down = Projection(gate_up, adapters), Projection([down], adapters)

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.gate_up, self.down

    def forward(self, x_TH: Tensor, spans: Sequence[slice]) -> tuple[Tensor, _Saved]:
        n_TH, factor_T1 = self.norm.forward(x_TH)
        gate_up, lows = self.gate_up.forward(n_TH, spans)
        gate_TI, up_TI = gate_up.chunk(2, 1)
        y_TH, down_lows = self.down.forward(act(self.act, gate_TI).mul_(up_TI), spans)
        post = None
        if self.post is not None:
            raw_TH = y_TH
            y_TH, post_factor_T1 = self.post.forward(raw_TH)
            post = (raw_TH, post_factor_T1)
        saved = _Saved(x_TH, factor_T1, n_TH, gate_up, lows, down_lows, post)
        return x_TH + y_TH, saved

    def backward(self, dy_TH: Tensor, saved: _Saved, spans: Sequence[slice], wants_dx: bool) -> Tensor | None:
        x_TH, factor_T1, n_TH, gate_up, lows, down_lows, post = saved
        draw_TH = dy_TH
        if self.post is not None and post is not None:
            draw_TH = self.post.backward(dy_TH, *post)
        gate_TI, up_TI = gate_up.chunk(2, 1)
        active_TI = act(self.act, gate_TI)
        dh_TI = self.down.backward(draw_TH, active_TI * up_TI, down_lows, spans)
        assert dh_TI is not None
        dgate_up = torch.empty_like(gate_up)
        dgate_TI, dup_TI = dgate_up.chunk(2, 1)
        torch.mul(dh_TI, active_TI, out=dup_TI)
        dgate_TI.copy_(act_backward(self.act, dh_TI.mul_(up_TI), gate_TI))
        dn_TH = self.gate_up.backward(dgate_up, n_TH, lows, spans, wants_dx)
        if dn_TH is None:
            return None
        return self.norm.backward(dn_TH, x_TH, factor_T1).add_(dy_TH)
