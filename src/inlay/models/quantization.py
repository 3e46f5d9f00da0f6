"""Quantised layers that train correctly, each compared with the dense layer that it stands for.

A 4-bit layer can compute the right loss and hand no gradient down, and only after somebody evaluated the
model. So a kind of quantisation counts as working when its outputs and gradients equal those of its
dequantised weight before, in and after an evaluation pass.

Shapes: B rows, I input features, O output features.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import ModelError, count_shown, unknown_name
from inlay.hardware.probe import DTYPES, FAILURES, Probe, first_line, relative_error, untested

CPU_REPACK_FLAG = "support_avx512bf16_for_cpu"


@dataclass(frozen=True, slots=True)
class Quantization:
    """One kind of quantised layer: how to build it, and how far it may be from its dense layer."""

    build: Callable[[Tensor, str, torch.dtype], nn.Module]
    """(weight_OI, device, compute dtype) -> the quantised layer, without bias."""
    dequantise: Callable[[Any], Tensor]
    output_tolerance: float
    gradient_tolerance: float


def _build_nf4(weight_OI: Tensor, device: str, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    out, width = weight_OI.shape
    layer: nn.Module = Linear4bit(width, out, bias=False, compute_dtype=compute_dtype, quant_type="nf4")
    layer.load_state_dict({"weight": weight_OI})
    return layer.to(device)


def _dequantise_nf4(layer: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.weight
    dense_OI: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dense_OI


def _build_int8(weight_OI: Tensor, device: str, compute_dtype: torch.dtype) -> nn.Module:  # noqa: ARG001
    from bitsandbytes.nn import Linear8bitLt

    out, width = weight_OI.shape
    layer: nn.Module = Linear8bitLt(width, out, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight_OI})
    return layer.to(device)


def _dequantise_int8(layer: Any) -> Tensor:
    holder = layer.state if layer.state.CB is not None else layer.weight  # the first forward moves them
    dense_OI: Tensor = holder.CB.float() * (holder.SCB.float().unsqueeze(1) / 127.0)
    return dense_OI


QUANTIZATIONS: dict[str, Quantization] = {
    "nf4": Quantization(_build_nf4, _dequantise_nf4, output_tolerance=0.02, gradient_tolerance=0.02),
    "int8": Quantization(_build_int8, _dequantise_int8, output_tolerance=0.05, gradient_tolerance=0.02),
}
"""int8 also rounds the activations to 8 bits, which moves outputs by about 1%; its gradient does not."""


def dequantised_weight(model: Any, parameter: str, kind: str, bare: nn.Module) -> Tensor | None:
    """The fp32 weight that a quantized layer computes with, on the CPU; None for a parameter that is not quantized.

    `parameter` is its name in the model. `bare` is the model without quantization, on the meta device, for the shape.
    """
    path, _, last = parameter.rpartition(".")
    if last != "weight":
        return None
    layer = model.get_submodule(path) if path else model
    if not isinstance(getattr(layer, "weight", None), Tensor) or not (
        hasattr(layer.weight, "quant_state") or hasattr(layer.weight, "SCB")
    ):
        return None
    dense = QUANTIZATIONS[kind].dequantise(layer).float().cpu()
    shape = bare.get_parameter(parameter).shape
    return dense if dense.shape == shape else dense.T  # GPT-2's Conv1D is quantized as a linear layer


BITSANDBYTES_MISSING = "bitsandbytes is not installed. Run: pip install 'bitsandbytes>=0.50,<0.51'"


def probe_quantization(kind: str, device: str, compute_dtype: str) -> Probe:
    """Whether a quantised layer gives outputs and input gradients of its dequantised self, also after
    evaluation.

    Raises:
        ModelError: `kind` is not in `QUANTIZATIONS` or `compute_dtype` not in `DTYPES`.
    """
    if kind not in QUANTIZATIONS:
        raise ModelError(f"quantization: {unknown_name('quantization', kind, QUANTIZATIONS)}")
    if compute_dtype not in DTYPES:
        raise ModelError(f"dtype: {unknown_name('dtype', compute_dtype, DTYPES)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        return Probe(False, BITSANDBYTES_MISSING)
    with _quiet_bitsandbytes():
        seen = _check_fresh_layer(kind, device, compute_dtype, repack=True)
        if not seen.works:
            cured = _check_fresh_layer(kind, device, compute_dtype, repack=False)
            if cured.works:
                seen = replace(cured, reason=f"{cured.reason}; needs {CPU_REPACK_FLAG}=False ({seen.reason})")
    return replace(seen, reason=seen.reason + untested(device))


def _check_fresh_layer(kind: str, device: str, compute_dtype: str, *, repack: bool) -> Probe:
    quantization, dtype = QUANTIZATIONS[kind], DTYPES[compute_dtype]
    chance = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(128, 256, generator=chance) / 16
    x_BI = torch.randn(8, 256, generator=chance)
    try:
        layer = quantization.build(weight_OI.to(dtype), device, dtype)
        if not repack:
            forbid_cpu_repack(layer)
        dense = nn.Linear(256, 128, bias=False, device="meta")
        dense.weight = nn.Parameter(quantization.dequantise(layer).to(device, dtype), requires_grad=False)
        tolerances = quantization.output_tolerance, quantization.gradient_tolerance
        return check_gradient(layer, dense, x_BI.to(device, dtype), *tolerances)
    except FAILURES as error:
        return Probe(False, first_line(error))


def forbid_cpu_repack(model: nn.Module) -> int:
    """Keep every 4-bit layer of the model trainable after an evaluation pass; the number of layers set.

    On a CPU with AVX512-BF16, bitsandbytes repacks a `Linear4bit` at the first no-grad forward in eval mode
    and then computes it by a kernel without autograd: the loss stays, the gradients below the layer are gone.
    Source: bitsandbytes 0.50 nn/modules.py `Linear4bit.forward`, autograd/_functions.py `matmul_4bit`.
    """
    layers = [module for module in model.modules() if hasattr(module, CPU_REPACK_FLAG)]
    for layer in layers:
        setattr(layer, CPU_REPACK_FLAG, False)
    return len(layers)


def check_gradient(
    layer: nn.Module,
    reference: nn.Module,
    x_BI: Tensor,
    output_tolerance: float = 0.02,
    gradient_tolerance: float = 0.02,
) -> Probe:
    """Whether `layer` has outputs and input gradients of `reference` before, in and after an evaluation pass.

    Tolerances are relative distances (`relative_error`). `layer` is left in training mode. The reason names
    the first thing that differs, or the largest distances seen.
    """
    cotangent_BO = torch.randn(reference(x_BI).shape, generator=torch.Generator().manual_seed(1)).to(x_BI)
    expected_BO, expected_BI = _output_and_gradient(reference, x_BI, cotangent_BO)
    worst_output = worst_gradient = 0.0
    for when in ("before", "after"):
        output_BO, gradient_BI = _output_and_gradient(layer, x_BI, cotangent_BO)
        if gradient_BI is None or expected_BI is None:
            return Probe(False, f"no gradient reaches the input {when} an evaluation pass")
        checks = [(f"output {when} an evaluation pass", output_BO, expected_BO, output_tolerance)]
        checks.append((f"gradient {when} an evaluation pass", gradient_BI, expected_BI, gradient_tolerance))
        if when == "before":
            layer.eval()
            with torch.no_grad():
                checks.append(("output in evaluation", layer(x_BI), expected_BO, output_tolerance))
            layer.train()
        for name, got, expected, tolerance in checks:
            distance = relative_error(got, expected)
            if not distance <= tolerance:  # also true for NaN
                return Probe(False, f"{name} is {distance:.1%} away from the dense layer")
            if name.startswith("output"):
                worst_output = max(worst_output, distance)
            else:
                worst_gradient = max(worst_gradient, distance)
    return Probe(
        True,
        f"outputs within {worst_output:.2%} and gradients within {worst_gradient:.2%} of the dense layer",
    )


def _output_and_gradient(layer: nn.Module, x_BI: Tensor, cotangent_BO: Tensor) -> tuple[Tensor, Tensor | None]:
    layer.train()
    leaf_BI = x_BI.detach().clone().requires_grad_()
    output_BO = layer(leaf_BI)
    if output_BO.requires_grad:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "bitsandbytes::gemv_4bit", UserWarning)  # no gradient: detected below
            output_BO.backward(cotangent_BO.to(output_BO.dtype))
    return output_BO.detach(), leaf_BI.grad


@contextmanager
def _quiet_bitsandbytes() -> Iterator[None]:
    """Silences its warnings about slow code paths; `inlay doctor` measures the speed."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def quantized_summary(model: nn.Module, kind: str) -> str:
    """Number and bytes of the quantised linear layers of a loaded base, in words. Raises: ModelError when there are none."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layers = [m for m in model.modules() if isinstance(m, Linear4bit if kind == "nf4" else Linear8bitLt)]
    if not layers:
        raise ModelError(f"model.quantization {kind}: no layer of this base could be quantised. Leave it out.")
    size = sum(m.weight.numel() * m.weight.element_size() + constant_bytes(m) for m in layers)
    values = sum(m.in_features * m.out_features for m in layers)
    hold = count_shown(len(layers), "linear layer holds", "linear layers hold")
    return f"{hold} {values:,} weights in {size:,} bytes ({8 * size / values:.2f} bits each)"


def constant_bytes(layer: nn.Module) -> int:
    """Bytes of the quantization constants that bitsandbytes keeps beside a layer's weight; 0 for an ordinary layer."""
    weight = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        constants = [state.absmax, state.code]
        if state.nested:
            constants += [state.offset, state.state2.absmax, state.state2.code]
    else:
        scales = getattr(weight, "SCB", None)
        moved = getattr(getattr(layer, "state", None), "SCB", None)  # the first forward moves them
        constants = [c for c in (scales if scales is not None else moved,) if c is not None]
    return sum(c.numel() * c.element_size() for c in constants)
