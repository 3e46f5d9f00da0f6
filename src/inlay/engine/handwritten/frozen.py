"""Frozen weights of linear layers that read the same input, as one matrix.

They stay in memory as they were loaded, and are widened for a matmul where the processor multiplies another dtype
faster: a CPU without 16-bit units takes four times as long for a matmul in bfloat16 as for one in float32.

Shapes: I inputs; O outputs of all layers stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.models.memory_mapped import page_out
from inlay.models.quantization import QUANTIZATIONS


class Frozen:
    """Frozen linear layers as one matrix."""

    def __init__(self, linears: Sequence[Any], compute: torch.dtype) -> None:
        """`compute` is the dtype of the matmuls."""
        self.compute = compute
        self._quantized = [] if all(type(linear) is nn.Linear for linear in linears) else list(linears)
        self._held_OI = None if self._quantized else _stacked(linears)
        has_bias = any(linear.bias is not None for linear in linears)
        self.bias_O = torch.cat([_bias(one) for one in linears]).to(compute) if has_bias else None

    def weight(self) -> Tensor:
        """(O, I) in the dtype of the matmuls, made anew at each call where it is held in another one."""
        if self._held_OI is not None:
            return self._held_OI.to(self.compute)
        parts = [_dense(linear).to(self.compute) for linear in self._quantized]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stacked(linears: Sequence[Any]) -> Tensor:
    """One weight over all the layers. Their own weights become views of it: nothing is held twice."""
    if len(linears) == 1:
        return linears[0].weight.detach()  # type: ignore[no-any-return]
    weight_OI = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, weight_OI.split([len(linear.weight) for linear in linears]), strict=True):
        before = (linear.weight.data_ptr(), linear.weight.nbytes) if linear.weight.is_cpu else None
        linear.weight.data = part
        if before is not None:
            page_out(*before)
    return weight_OI


def _dense(linear: Any) -> Tensor:
    if type(linear) is nn.Linear:
        return linear.weight.detach()
    return QUANTIZATIONS["nf4"].dequantise(linear)


def _bias(linear: Any) -> Tensor:
    """Zero where the layer has none, beside layers that have one."""
    bias_P: Tensor | None = linear.bias
    if bias_P is not None:
        return bias_P.detach()
    return torch.zeros(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
