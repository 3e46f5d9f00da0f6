"""A stored adapter in the form in which many are served at once over one base.

Shapes: I inputs and O outputs of a module, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from inlay.adapters.lowrank import Factors, lowrank_of, parameters_of
from inlay.errors import AdapterError
from inlay.generation.gain import Gain
from inlay.methods.adapter_state import AdapterState
from inlay.methods.base_modules import base_modules
from inlay.models.quantization import QUANTIZATIONS

_ROOT: Final = "base_model.model."
_MAGNITUDE: Final = ".lora_magnitude_vector"


def gains_of(state: AdapterState, base: nn.Module) -> dict[str, Gain]:
    """The adapter by the exact names of the modules that it changes, in memory of its own. Leaves the base as it is.

    Raises: AdapterError for a method that changes more than modules' outputs, and where it does not fit this base.
    """
    state = state.exported()
    modules = dict(base_modules(base))
    if state.method.name == "lora":
        return _of_lora(state, base, modules)
    if state.method.name == "ia3":
        return {module: _of_vector(vector, _module(modules, module)) for module, vector in _vectors(state).items()}
    reasons = {
        "prompt": "prompt tuning puts virtual tokens before the input, which moves every position",
        "full": "full fine-tuning changes all weights",
    }
    reason = reasons.get(state.method.name, f"{state.method.title} changes more than the outputs of modules")
    raise AdapterError(f"adapter: {reason}, so it cannot share a base with others. Serve it as a base of its own.")


def _of_lora(state: AdapterState, base: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Gain]:
    magnitudes = {
        name.removeprefix(_ROOT).removesuffix(_MAGNITUDE): tensor.float().reshape(-1)
        for name, tensor in state.tensors.items()
        if name.endswith(_MAGNITUDE)
    }
    plain = {name: tensor for name, tensor in state.tensors.items() if not name.endswith(_MAGNITUDE)}
    change = lowrank_of(AdapterState(state.settings | {"use_dora": False}, plain), "", parameters_of(base))
    biases = {name.removesuffix(".bias"): bias for name, bias in change.biases.items()}
    gains = {}
    for name in sorted({*change.factors, *biases}):
        module = _module(modules, name)
        gain = Gain(b_O=biases[name]) if name in biases else Gain()
        if name in change.factors:
            factors = _fitting(name, change.factors[name], module)
            is_embedding = name in change.embeddings
            gain = Gain(factors.A_RI, factors.B_OR, b_O=gain.b_O, is_embedding=is_embedding)
            if name in magnitudes:
                gain = _with_magnitude(gain, magnitudes[name], module)
            elif is_embedding and (scale := getattr(module, "embed_scale", None)) is not None:
                gain = Gain(factors.A_RI, factors.B_OR * float(scale), b_O=gain.b_O, is_embedding=True)
        gains[name] = gain
    return gains


def _with_magnitude(gain: Gain, magnitude_O: Tensor, module: Any) -> Gain:
    """DoRA: g = m / ‖W + B A‖ of each output, which also scales B A but not the bias.

    Source: Liu et al. 2024, "DoRA", equation 5.
    """
    assert gain.A_RI is not None
    assert gain.B_OR is not None
    norm_O = torch.addmm(_weight(module), gain.B_OR, gain.A_RI).norm(dim=1)
    if magnitude_O.shape != norm_O.shape:
        raise AdapterError(
            f"adapter: has {len(magnitude_O)} magnitudes for a module with {len(norm_O)} outputs. It is damaged, or belongs to "
            "another base."
        )
    g_O = magnitude_O / norm_O
    b_O, bias_O = gain.b_O, getattr(module, "bias", None)
    if bias_O is not None:
        rest_O = (1 - g_O) * bias_O.detach().float().cpu()
        b_O = rest_O if b_O is None else b_O + rest_O
    return Gain(gain.A_RI, g_O[:, None] * gain.B_OR, g_O, None, b_O, gain.is_embedding)


def _vectors(state: AdapterState) -> dict[str, Tensor]:
    return {name.removeprefix(_ROOT).removesuffix(".ia3_l"): tensor.float() for name, tensor in state.tensors.items()}


def _of_vector(vector: Tensor, module: Any) -> Gain:
    """IA3: a column scales the output and its bias, a row the input."""
    outputs, inputs = _weight_shape(module)
    if tuple(vector.shape) == (outputs, 1):
        return Gain(g_O=vector[:, 0].clone())
    if tuple(vector.shape) == (1, inputs):
        return Gain(h_I=vector[0].clone())
    raise AdapterError(
        f"adapter: has a vector of shape {tuple(vector.shape)} for a module with {inputs} inputs and {outputs} outputs. It is "
        "damaged, or belongs to another base."
    )


def _fitting(name: str, factors: Factors, module: Any) -> Factors:
    wanted, found = _weight_shape(module), (len(factors.B_OR), factors.A_RI.shape[1])
    if wanted != found:
        raise AdapterError(
            f"adapter: changes {name} from {found[1]} inputs to {found[0]} outputs; this base has {wanted[1]} and {wanted[0]} "
            "there. It is damaged, or belongs to another base."
        )
    return factors


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise AdapterError(f"adapter: changes {name}, which this base has not. It belongs to another base.")
    return modules[name]


def _weight_shape(module: Any) -> tuple[int, int]:
    """(O, I)"""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    if type(module).__name__ == "Conv1D":
        inputs, outputs = module.weight.shape
        return outputs, inputs
    if not hasattr(module, "out_features"):
        raise AdapterError(f"adapter: changes a {type(module).__name__}, which is no linear layer. Serve it merged.")
    return module.out_features, module.in_features


def _weight(module: Any) -> Tensor:
    """(O, I) in float32 on the CPU, whatever it is held in."""
    held = module.weight.detach()
    if hasattr(module.weight, "quant_state"):
        held = QUANTIZATIONS["nf4"].dequantise(module)
    elif hasattr(module.weight, "SCB"):
        held = QUANTIZATIONS["int8"].dequantise(module)
    is_transposed = isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"
    weight_OI: Tensor = (held.T if is_transposed else held).float().cpu()
    return weight_OI
