"""Operations between matmuls on a GPU, by Triton kernels of Liger (the extra `gpu`), and attention over rows of any length
by torch's flash kernel. Where there are none (`takes`, `attends`), the caller computes the same with torch.

Shapes: T tokens of all rows one after another, N query heads, M key heads, D values of a head, I inner.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from inlay.engine.lm_head import Head
from inlay.engine.profile import timed

_LARGEST_HEAD = 256  # values that the flash kernel takes, in steps of 8
_FLASH = (torch.bfloat16,)


@functools.cache
def reason() -> str | None:
    """The reason why there are no kernels for norms, activation and head here, None where there are."""
    if not find_spec("liger_kernel"):
        return "liger-kernel is not installed"
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
        from liger_kernel.ops.rms_norm import rms_norm_backward, rms_norm_forward
        from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward, swiglu_fused_gate_up_forward
    except (ImportError, RuntimeError, AttributeError) as error:  # Triton asks for a compiler and a driver
        return f"liger-kernel cannot be used: {error}"
    needed = {
        fused_linear_cross_entropy_forward: {"compute_gradients", "weight_requires_grad", "chunk_mem_const"},
        rms_norm_forward: {"row_mode"}, rms_norm_backward: {"needs_dw"}, swiglu_fused_gate_up_forward: {"y"},
        swiglu_fused_gate_up_backward: {"in_place"},
    }  # fmt: skip
    if all(names <= inspect.signature(kernel).parameters.keys() for kernel, names in needed.items()):
        return None
    return "this liger-kernel is another one than the extra `gpu` asks for"


def has_flash() -> bool:
    """True where torch has attention over rows of any length."""
    return _varlen() is not None


def takes(x: Tensor) -> bool:
    """True where there are kernels for the device of this tensor."""
    return is_on_gpu(x) and reason() is None


def is_on_gpu(x: Tensor) -> bool:
    """True for a tensor in the memory of a CUDA device."""
    return x.is_cuda


# ---------------------------------------------------------------- norms, activation, head


def rms_norm(x: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `inlay.engine.handwritten.norm.RmsNorm.forward`."""
    from liger_kernel.ops.rms_norm import rms_norm_forward

    y: Tensor
    y, _, factor, *_ = rms_norm_forward(x.contiguous(), weight_H, epsilon, 0.0, "gemma", None)
    return y, factor.view(*x.shape[:-1], 1)


def rms_norm_backward(dy: Tensor, x: Tensor, weight_H: Tensor, factor: Tensor, more: Tensor | None) -> Tensor:
    """See `inlay.engine.handwritten.norm.RmsNorm.backward`."""
    from liger_kernel.ops.rms_norm import rms_norm_backward as backward
    from liger_kernel.ops.utils import calculate_settings

    width = x.shape[-1]
    dx: Tensor
    dx, _ = backward(
        dy.contiguous(), x.contiguous().view(-1, width), weight_H, factor.view(-1), 0.0, _IN_FP32,
        *calculate_settings(width), in_place=False, row_mode=None, needs_dw=False,
    )  # fmt: skip
    return dx if more is None else dx.add_(more)


_IN_FP32 = 1
"""Liger's number for norms that are computed in fp32 and rounded once, as Gemma's are."""


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate)·up of (T, 2 I)."""
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

    h_TI: Tensor = swiglu_fused_gate_up_forward(gate_up)[1]
    return h_TI


def gated_silu_backward(dh_TI: Tensor, gate_up: Tensor) -> None:
    """Writes the gradients by gate and up over them."""
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

    swiglu_fused_gate_up_backward(gate_up, dh_TI, in_place=True)


@timed("head")
def nll_and_gradient(hidden_JH: Tensor, head: Head, targets_J: Tensor) -> tuple[Tensor, Tensor]:
    """See `inlay.engine.lm_head.nll_and_gradient`."""
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    words, hidden = head.weight_VH.shape
    nll_J, gradient_JH = hidden_JH.new_empty(len(hidden_JH), dtype=torch.float32), torch.empty_like(hidden_JH)
    for chunk in head.chunks(len(hidden_JH)):
        nll_J[chunk], _, _, _, gradient_JH[chunk], *_ = fused_linear_cross_entropy_forward(
            hidden_JH[chunk], head.weight_VH, targets_J[chunk], bias=head.bias_V, reduction="none", softcap=head.softcap,
            compute_gradients=True, weight_requires_grad=False,
            chunk_mem_const=-(-words // hidden),  # what it gets is one chunk to it
        )  # fmt: skip
    return nll_J, gradient_JH


# ---------------------------------------------------------------- attention


def attends(q_TND: Tensor, softcap: float | None) -> bool:
    """True where the flash kernel computes it: 16 bits, heads of a multiple of 8 values, no cap."""
    width = q_TND.shape[-1]
    fits = q_TND.dtype in _FLASH and width % 8 == 0 and width <= _LARGEST_HEAD
    return is_on_gpu(q_TND) and softcap is None and fits and _varlen() is not None


@timed("attention")
def attend(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, bounds: Tensor, longest: int, scale: float, window: int | None
) -> tuple[Tensor, Any]:
    """(T, N, D), and what `attend_backward` needs. `bounds` are the first tokens of all rows and the end, int32."""
    varlen = _varlen()
    assert varlen is not None
    inputs = [each.detach().requires_grad_() for each in (q_TND, k_TMD, v_TMD)]
    with torch.enable_grad():
        sees = (-1 if window is None else window - 1, 0)
        mixed_TND = varlen(*inputs, bounds, bounds, longest, longest, scale=scale, window_size=sees, enable_gqa=True)
    return mixed_TND.detach(), (mixed_TND, inputs)


@timed("attention")
def attend_backward(d_TND: Tensor, kept: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)"""
    mixed_TND, inputs = kept
    dq_TND, dk_TMD, dv_TMD = torch.autograd.grad(mixed_TND, inputs, d_TND)
    return dq_TND, dk_TMD, dv_TMD


@functools.cache
def _varlen() -> Callable[..., Any] | None:
    """Torch's attention over rows that lie one after another, None before it knew of shared key heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= known.keys() else None
