"""Which path computes a run's gradients: the direct one where it is known, proven equal and no slower, else the plain one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from inlay.data.batches import Batch
from inlay.engine import cpu_ops, gpu_ops
from inlay.engine.autograd import Engine, PlainModel
from inlay.engine.memory import first_line, is_out_of_memory, release
from inlay.errors import ConfigError, StorageError
from inlay.hardware.facts import cpu_facts, library_versions
from inlay.hardware.probe import dtype_name, product_dtype, synchronize
from inlay.methods.adapter import trained_parameters
from inlay.methods.lora import lora_layers, starts_from_weights
from inlay.methods.method import TRAINED
from inlay.methods.table import adapters_on
from inlay.models.dropout import own_dropout
from inlay.storage import cache_folder, write_file

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
_QUANTIZATIONS = ("none", "nf4")  # int8 rounds what enters a layer too
_LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Relative difference of loss and of the whole gradient. The bf16 one is what rounding alone makes of the plain path."""
_KNOWN_FASTER = ("cpu",)
"""Devices on which benchmarks have shown the direct path to be the faster one. On others a run times both."""


def choose(
    wanted: str,
    peft_model: Any,
    batch: Batch,
    device: str,
    dtype: torch.dtype,
    quantization: str,
    recompute: bool,
    offload: bool = False,
    heavy: Batch | None = None,
) -> tuple[Engine, str]:
    """(the path, why) for `train.engine`; `batch` is a micro batch to try the direct path on, `heavy` one to time both
    on where it is not known to be the faster one.

    Leaves weights, gradients and torch's random state as they were. Raises: ConfigError when `direct` was asked for
    and cannot be had.
    """
    plain = PlainModel(peft_model, device, None if dtype == torch.float32 else dtype, offload)
    if wanted == "plain":
        return plain, "as set"
    reason = "it offloads no activations" if offload else refusal(peft_model, dtype, quantization)
    if reason is None:
        from inlay.engine.direct.model import DirectModel

        compute = product_dtype(device, dtype)
        try:
            direct = DirectModel(peft_model, recompute=recompute, compute=compute)
            error, when = _difference(peft_model, plain, direct, batch, dtype, device)
            is_timed = wanted == "auto" and not _is_known_faster(device) and error <= _LARGEST_ERROR[dtype]
            speed = _speed(peft_model, (plain, direct), heavy or batch, device) if is_timed else None
        except Exception as failed:  # the kernels are others' and compiled here: the plain path needs none
            if is_out_of_memory(failed):
                reason = f"no memory to check it ({first_line(failed)})"
            elif wanted == "direct" or _is_known_faster(device):
                raise
            else:
                reason = f"the check fails here ({type(failed).__name__}: {first_line(failed)})"
        else:
            if error > _LARGEST_ERROR[dtype]:
                reason = (
                    f"its gradient differs from the plain one's by {error:.1e}, more than {_LARGEST_ERROR[dtype]:.0e}"
                )
            elif speed is not None and speed < 1:
                reason = f"it is {speed:.2f} times as fast on one micro batch here"
            else:
                products = f", products in {dtype_name(compute)}, which is faster here" if compute != dtype else ""
                faster = "" if speed is None else f", {speed:.2f} times as fast"
                if speed == float("inf"):
                    faster = ", and the plain one has no room for a micro batch"
                kernels = _kernels(device, compute)
                return direct, f"{when}: its gradient is the plain one's to {error:.0e}{faster}{products}{kernels}"
        finally:
            if device != "cpu" or reason is not None:
                release(device)
    if wanted == "direct":
        raise ConfigError(f"train.engine direct: {reason}. Leave train.engine at auto.")
    return plain, f"not the direct one: {reason}"


def _kernels(device: str, compute: torch.dtype) -> str:
    """In words, what computes that which is no product."""
    if device.startswith("cuda"):
        kernels = ", Liger's kernels" if (against := gpu_ops.reason()) is None else f", no fused kernels ({against})"
        return kernels + ("" if gpu_ops.has_flash() else ", no flash attention (torch 2.12 has it)")
    if device != "cpu":
        return ""
    if (against := cpu_ops.reason(compute)) is None:
        return ", fused loops"
    return f", no fused loops ({against})"


def expected(wanted: str, peft_model: Any, device: str, dtype: torch.dtype, quantization: str) -> str:
    """The name of the path that `choose` will take, told without computing anything; where that is timed, of the one that
    holds more."""
    takes_direct = wanted == "direct" or (wanted == "auto" and device == "cpu")
    return "direct" if takes_direct and refusal(peft_model, dtype, quantization) is None else "plain"


def refusal(peft_model: Any, dtype: torch.dtype, quantization: str) -> str | None:
    """Why the direct path does not know how to compute this model, None where it does."""
    method = adapters_on(peft_model)[TRAINED]
    if method.name != "lora":
        return f"it knows LoRA only, not {method.title}"
    model = peft_model.get_base_model()
    config = model.config
    if config.model_type not in FAMILIES:
        return f"it does not know {config.model_type}"
    if quantization not in _QUANTIZATIONS:
        return f"it does not know a base in {quantization}"
    if dtype not in _LARGEST_ERROR:
        return f"it does not compute in {dtype_name(dtype)}"
    from inlay.engine.direct.mlp import ACTIVATIONS
    from inlay.engine.direct.model import activation

    if activation(config) not in ACTIVATIONS:
        return f"it does not know the activation {activation(config)}"
    if own_dropout(model):
        return "the base's own dropout is on (train.base_dropout)"
    if getattr(config, "use_bidirectional_attention", False):
        return "the base looks ahead"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"it does not know the attention {config._attn_implementation}"
    return _adapter_refusal(peft_model)


def _adapter_refusal(peft_model: Any) -> str | None:
    settings = peft_model.peft_config[TRAINED]
    if starts_from_weights(peft_model):
        return "it does not know an adapter that starts from the base's weights"
    if settings.use_dora:
        return "it does not know DoRA"
    if settings.lora_dropout:
        return "it does not know adapter dropout"
    known = {id(layer) for name, layer in lora_layers(peft_model) if _is_known(name, layer)}
    for name, layer in lora_layers(peft_model):
        if id(layer) not in known:
            return f"it does not know an adapter on {name}"
    if any(p.requires_grad and "lora_" not in name for name, p in peft_model.named_parameters()):
        return "more than the adapter's matrices is trained"
    return None


def _is_known(name: str, layer: Any) -> bool:
    base = layer.get_base_layer()
    is_linear = type(base) is nn.Linear or getattr(base.weight, "quant_state", None) is not None
    return is_linear and ".layers." in name and name.rpartition(".")[2] in _PROJECTIONS


def _difference(
    peft_model: Any, plain: Engine, direct: Engine, batch: Batch, dtype: torch.dtype, device: str
) -> tuple[float, str]:
    """(the larger relative difference of loss and gradient, whether it was seen now or before).

    Remembered, where it is small enough, for the model's shape, adapter, dtype, libraries and machine.
    """
    note = cache_folder("direct") / _key(peft_model, dtype, device)
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(note.read_text(encoding="ascii"))
        return float(kept["error"]), "checked before"
    with _nothing_at_zero(peft_model) as parameters:
        factor = 1.0 / float(batch.weights.sum())
        losses, gradients = [], []
        for engine in (plain, direct):
            losses.append(engine.add_gradient(batch, factor).cpu().double())
            gradients.append(_taken(parameters))
    error = max(_relative(losses[1], losses[0]), _relative(gradients[1], gradients[0]))
    if error <= _LARGEST_ERROR[dtype]:
        with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
            write_file(note, json.dumps({"error": error}))
    return error, "checked on one micro batch"


def _is_known_faster(device: str) -> bool:
    return device.partition(":")[0] in _KNOWN_FASTER


def _speed(peft_model: Any, engines: Sequence[Engine], batch: Batch, device: str) -> float:
    """Time of the first over that of the second: medians of three passes in turns behind one of each. Infinite where only
    the second has room for the batch, 0 where it has none."""
    seconds: list[list[float]] = [[] for _ in engines]
    with _nothing_at_zero(peft_model):
        for _ in range(4):
            for engine, taken in zip(engines, seconds, strict=True):
                taken.append(_seconds(engine, batch, device))
    first, second = (statistics.median(taken[1:]) for taken in seconds)
    return 0.0 if second == float("inf") else first / second


def _seconds(engine: Engine, batch: Batch, device: str) -> float:
    synchronize(torch.device(device))
    began = time.perf_counter()
    try:
        engine.add_gradient(batch, 1.0)
        synchronize(torch.device(device))
    except (MemoryError, RuntimeError) as failed:
        if not is_out_of_memory(failed):
            raise
    else:
        return time.perf_counter() - began
    release(device)
    return float("inf")


@contextlib.contextmanager
def _nothing_at_zero(peft_model: Any) -> Iterator[list[nn.Parameter]]:
    """Inside, no B is zero, where A would have no gradient; afterwards all is as it was."""
    trained = trained_parameters(peft_model)
    kept = [p.detach().clone() for p in trained.values()]
    random = torch.Generator().manual_seed(0)
    try:
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=random).to(parameter) * 0.02)
        yield list(trained.values())
    finally:
        for parameter, before in zip(trained.values(), kept, strict=True):
            parameter.data.copy_(before)
            parameter.grad = None


def _taken(parameters: list[nn.Parameter]) -> Tensor:
    """The gradient as one vector; the parameters have none afterwards."""
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).cpu() for p in parameters
    ]  # not every device has float64
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([part.double().reshape(-1) for part in parts])


def _relative(got: Tensor, expected: Tensor) -> float:
    error = float((got - expected).norm() / expected.norm())
    return error if error == error else float("inf")  # not a number is no equality


def _key(peft_model: Any, dtype: torch.dtype, device: str) -> str:
    config = peft_model.get_base_model().config.to_dict()
    about = {
        "config": {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")},
        "attention": peft_model.get_base_model().config._attn_implementation,
        "adapter": [(name, layer.r[TRAINED], layer.scaling[TRAINED]) for name, layer in lora_layers(peft_model)],
        "dtype": str(dtype),
        "products": str(product_dtype(device, dtype)),
        "weights": [str(getattr(p, "quant_type", p.dtype)) for p in peft_model.parameters() if not p.requires_grad],
        "device": [device, *_card(device)],
        "precision": torch.get_float32_matmul_precision(),
        "versions": library_versions(),
        "cpu": cpu_facts(),
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _card(device: str) -> tuple[Any, ...]:
    if not device.startswith("cuda"):
        return ()
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _code_digest() -> str:
    engine = resources.files("inlay") / "engine"
    files = [
        engine / "lm_head.py",
        engine / "cpu_ops.py",
        engine / "cpu_loops.py",
        engine / "gpu_ops.py",
        *(file for file in (engine / "direct").iterdir() if file.name.endswith(".py")),
    ]
    ordered = sorted(files, key=lambda file: file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in ordered)).hexdigest()
