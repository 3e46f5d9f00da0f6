"""Rows that a matmul needs so that each of them is computed as in any larger one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    return row_counts(model, device, autocast_dtype)[-1]


def row_counts(model: Any, device: torch.device, autocast_dtype: torch.dtype | None = None) -> tuple[int, ...]:
    """Numbers of rows below the floor at which a row has those bits, too, and the floor: MKL on two threads takes 8 rows as
    it takes 12 and more, but not 9."""
    layers = {(type(m), _width(m), tuple(m.weight.shape), m.weight.dtype): m for m in model.modules() if _is_linear(m)}
    with torch.inference_mode(), autocast(str(device), autocast_dtype):
        return counts_of(((_on_rows(layer), _width(layer), _dtype(layer)) for layer in layers.values()), device)


def counts_of(
    matmuls: Iterable[tuple[Callable[[Tensor], Tensor], int, torch.dtype]], device: torch.device
) -> tuple[int, ...]:
    """The same for functions of rows of that width and dtype."""
    differing = {rows for matmul in matmuls for rows in _differing(*matmul, device)}
    floor = max(differing, default=0) + 1
    return (*(n for n in range(1, floor) if n not in differing), floor) if floor <= _MOST else (1,)


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _on_rows(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda x_MI: layer(x_MI[None])[0]


def _width(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[0])


def _dtype(layer: Any) -> torch.dtype:
    return layer.weight.dtype if layer.weight.is_floating_point() else torch.float32


def _differing(matmul: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype, device: torch.device) -> list[int]:
    """Numbers of rows with other bits than many have."""
    drawn = torch.randn(max(_TRIED), width, generator=torch.Generator().manual_seed(0))
    x_MI = drawn.to(device, dtype)
    whole = matmul(x_MI)
    return [rows for rows in _TRIED if not torch.equal(matmul(x_MI[:rows]), whole[:rows])]
