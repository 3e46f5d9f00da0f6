"""Rows that a matmul needs so that each of them is computed as in any larger one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inlay.engine.loss import autocast

_TRIED = (*range(1, 17), 20, 24, 31, 32, 48, 64, 96)
_MOST = 16
"""Padding to more rows would cost more than it is worth."""


def row_floor(model: Any, device: torch.device, autocast_dtype: torch.dtype | None = None) -> int:
    """The least number of rows from which on every linear layer of the model gives a row the same bits; 1 where there is
    none that is small, and answers are then equal within rounding only."""
    layers = {(type(m), tuple(m.weight.shape), m.weight.dtype): m for m in model.modules() if _is_linear(m)}
    with torch.inference_mode(), autocast(str(device), autocast_dtype):
        floor = max((_floor_of(layer, device) for layer in layers.values()), default=1)
    return floor if floor <= _MOST else 1


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _floor_of(layer: Any, device: torch.device) -> int:
    width = layer.weight.shape[0 if type(layer).__name__ == "Conv1D" else 1]
    drawn = torch.randn(max(_TRIED), width, generator=torch.Generator().manual_seed(0))
    x_MI = drawn.to(device, layer.weight.dtype)
    whole: Tensor = layer(x_MI[None])[0]
    differing = [rows for rows in _TRIED if not torch.equal(layer(x_MI[None, :rows])[0], whole[:rows])]
    return max(differing, default=0) + 1
