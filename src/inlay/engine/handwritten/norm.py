"""RMS norm over the last dimension, forward and backward.

Shapes: any leading dimensions (written T), H values that are normalized together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.engine import cpu_ops, gpu_ops


class RmsNorm:
    """y = w · x / sqrt(mean(x²) + ε)."""

    def __init__(self, module: Any, offset: float) -> None:
        """`offset` is added to the stored weight: Gemma stores w - 1."""
        weight_H: Tensor = module.weight.detach()
        self.weight_H = weight_H.to(torch.promote_types(weight_H.dtype, torch.float32)) + offset
        self.epsilon = float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """y (T, H) and the factor 1 / rms (T, 1) that the backward pass needs."""
        if cpu_ops.takes(x_TH):
            return cpu_ops.rms_norm(x_TH, self.weight_H, self.epsilon)
        if gpu_ops.takes(x_TH):
            return gpu_ops.rms_norm(x_TH, self.weight_H, self.epsilon)
        wide = torch.promote_types(x_TH.dtype, torch.float32)
        square_T1 = torch.linalg.vector_norm(x_TH, dim=-1, keepdim=True, dtype=wide).square_()
        factor_T1 = square_T1.div_(x_TH.shape[-1]).add_(self.epsilon).rsqrt_()
        return self.scaled(x_TH, factor_T1), factor_T1

    def scaled(self, x_TH: Tensor, factor_T1: Tensor) -> Tensor:
        """y once more: cheaper to compute than to keep."""
        if cpu_ops.takes(x_TH):
            return cpu_ops.rms_scaled(x_TH, self.weight_H, factor_T1)
        if gpu_ops.takes(x_TH):
            return gpu_ops.rms_norm(x_TH, self.weight_H, self.epsilon)[0]
        y_TH: Tensor = (x_TH * factor_T1).mul_(self.weight_H)
        return y_TH.to(x_TH.dtype)

    def backward(self, dy_TH: Tensor, x_TH: Tensor, factor_T1: Tensor, more_TH: Tensor | None = None) -> Tensor:
        """dx = f·(w·dy) - x · f³ · mean((w·dy)·x), with the factor f, and more that goes to x."""
        if cpu_ops.takes(dy_TH, x_TH, x_TH if more_TH is None else more_TH):
            return cpu_ops.rms_norm_backward(dy_TH, x_TH, self.weight_H, factor_T1, more_TH)
        if gpu_ops.takes(x_TH):
            return gpu_ops.rms_norm_backward(dy_TH, x_TH, self.weight_H, factor_T1, more_TH)
        scaled_TH = dy_TH * self.weight_H
        inner_T1 = (scaled_TH * x_TH).sum(-1, keepdim=True, dtype=factor_T1.dtype)
        pull_T1 = inner_T1.mul_(factor_T1.pow(3)).div_(-x_TH.shape[-1])
        dx_TH: Tensor = (scaled_TH * factor_T1).addcmul_(x_TH.to(factor_T1.dtype), pull_T1)
        dx_TH = dx_TH.to(x_TH.dtype)
        return dx_TH if more_TH is None else dx_TH.add_(more_TH)
