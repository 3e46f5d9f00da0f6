"""The engine of a run: the hand-written one where it is known, proven equal and no slower, else autograd."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from inlay.data.batches import Batch
from inlay.engine import cpu_ops, gpu_ops
from inlay.engine.autograd import AutogradEngine, Engine
from inlay.engine.handwritten.mlp import ACTIVATIONS
from inlay.engine.handwritten.model import HandwrittenEngine, activation
from inlay.engine.loss import Loss, causal_loss
from inlay.engine.memory import first_line, is_out_of_memory, release
from inlay.errors import ConfigError, StorageError
from inlay.hardware.facts import cpu_facts, library_versions
from inlay.hardware.probe import dtype_name, matmul_dtype, synchronize
from inlay.methods.adapter import only, trained_parameters
from inlay.methods.lora import lora_layers, starts_from_weights
from inlay.methods.method import TRAINED
from inlay.methods.table import adapters_on, is_adapter_parameter
from inlay.models.dropout import own_dropout
from inlay.storage import cache_folder, write_file

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
_QUANTIZATIONS = ("none", "nf4")  # int8 rounds what enters a layer too
_LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest relative difference of loss and whole gradient. That in bf16 is what rounding alone makes of autograd's."""
_KNOWN_FASTER = ("cpu",)
"""Devices on which benchmarks have shown the hand-written engine to be the faster one. On others a run times both."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine of a run, and what was found of the hand-written one."""

    engine: Engine
    refused: str | None = None
    """The reason why the hand-written engine is not taken; None where it is, or where the autograd engine was set."""
    error: float | None = None
    """Relative difference of loss and gradient from autograd's; None where they were not compared."""
    is_remembered: bool = False
    """True where an earlier run of the same shape compared them."""
    speedup: float | None = None
    """Time of the autograd engine over that of the hand-written one; infinite where only the latter has room for a micro
    batch, None where they were not timed."""
    matmul_dtype: torch.dtype | None = None
    """Dtype of matmuls, where it is not that of the base's weights."""
    kernels: tuple[str, ...] = ()
    """Kernels of all but matmuls, in words."""

    @property
    def is_handwritten(self) -> bool:
        """True where the hand-written engine is taken."""
        return self.engine.name == "handwritten"

    def summary(self) -> str:
        """The reason behind the choice, in one line."""
        if not self.is_handwritten:
            return "as set" if self.refused is None else f"not the hand-written engine: {self.refused}"
        when = "checked before" if self.is_remembered else "checked on one micro batch"
        found = [f"{when}: its gradient is autograd's to {self.error:.0e}"]
        if self.speedup == float("inf"):
            found.append("and autograd has no room for a micro batch")
        elif self.speedup is not None:
            found.append(f"{self.speedup:.2f} times as fast")
        if self.matmul_dtype is not None:
            found.append(f"matmuls in {dtype_name(self.matmul_dtype)}, which is faster here")
        return ", ".join([*found, *self.kernels])


def select_engine(
    wanted: str, peft_model: Any, batch: Batch, device: str, dtype: torch.dtype, quantization: str, recompute: bool,
    offload: bool = False, heavy: Batch | None = None, adapter: str = TRAINED, loss: Loss = causal_loss,
) -> EngineChoice:  # fmt: skip
    """The engine for `train.engine` and an adapter. On `batch` the hand-written engine is compared with autograd, on `heavy`
    both are timed where it is not known to be the faster one.

    Weights, gradients and torch's random state stay as they were. Raises: ConfigError when `handwritten` was set and
    cannot be had.
    """
    autograd = AutogradEngine(peft_model, device, None if dtype == torch.float32 else dtype, offload, loss)
    if wanted == "autograd":
        return EngineChoice(autograd)
    reason = "it offloads no activations" if offload else refusal(peft_model, dtype, quantization, adapter, loss)
    choice = EngineChoice(autograd, reason)
    if reason is None:
        may_fail = wanted != "handwritten" and not _is_known_faster(device)
        try:
            choice = _tried(autograd, batch, heavy or batch, dtype, recompute, wanted == "auto", adapter)
        except Exception as failed:  # the kernels are others' and compiled here: autograd needs none
            if not is_out_of_memory(failed) and not may_fail:
                raise
            choice = EngineChoice(autograd, _failure(failed))
        finally:
            if device != "cpu" or not choice.is_handwritten:
                release(device)
    if wanted == "handwritten" and not choice.is_handwritten:
        raise ConfigError(f"train.engine handwritten: {choice.refused}. Leave train.engine at auto.")
    return choice


def _tried(
    autograd: AutogradEngine, batch: Batch, heavy: Batch, dtype: torch.dtype, recompute: bool, may_be_timed: bool, adapter: str
) -> EngineChoice:  # fmt: skip
    """The hand-written engine where its gradient is autograd's and it is no slower, else the autograd engine."""
    device, peft_model = autograd.device, autograd.model
    compute = matmul_dtype(device, dtype)
    handwritten = HandwrittenEngine(peft_model, (adapter,), recompute=recompute, compute=compute)
    error, is_remembered = _difference(autograd, handwritten, batch, dtype, adapter)
    if error > _LARGEST_ERROR[dtype]:
        reason = f"its gradient differs from autograd's by {error:.1e}, more than {_LARGEST_ERROR[dtype]:.0e}"
        return EngineChoice(autograd, reason, error, is_remembered)
    speedup = None
    if may_be_timed and not _is_known_faster(device):
        speedup = _speedup(peft_model, (autograd, handwritten), heavy, device, adapter)
        if speedup < 1:
            reason = f"it is {speedup:.2f} times as fast on one micro batch here"
            return EngineChoice(autograd, reason, error, is_remembered, speedup)
    narrow = compute if compute != dtype else None
    return EngineChoice(handwritten, None, error, is_remembered, speedup, narrow, _kernels(device, compute))


def _failure(failed: Exception) -> str:
    if is_out_of_memory(failed):
        return f"no memory to check it ({first_line(failed)})"
    return f"the check fails here ({type(failed).__name__}: {first_line(failed)})"


def _kernels(device: str, compute: torch.dtype) -> tuple[str, ...]:
    """Kernels of all but matmuls, in words."""
    if device.startswith("cuda"):
        kernels = "Liger's kernels" if (against := gpu_ops.reason()) is None else f"no fused kernels ({against})"
        return (kernels,) if gpu_ops.has_flash() else (kernels, "no flash attention (torch 2.12 has it)")
    if device != "cpu":
        return ()
    return ("fused loops",) if (against := cpu_ops.reason(compute)) is None else (f"no fused loops ({against})",)


def expected_engine(
    wanted: str, peft_model: Any, device: str, dtype: torch.dtype, quantization: str, adapter: str = TRAINED,
    loss: Loss = causal_loss,
) -> str:  # fmt: skip
    """Name of the engine that `select_engine` will probably take, without running it.

    Where it would time both, this is the one that needs more memory.
    """
    takes_it = wanted == "handwritten" or (wanted == "auto" and device == "cpu")
    refused = refusal(peft_model, dtype, quantization, adapter, loss) if takes_it else "it is not known to be faster"
    return "autograd" if refused else "handwritten"


def refusal(
    peft_model: Any, dtype: torch.dtype, quantization: str, adapter: str = TRAINED, loss: Loss = causal_loss
) -> str | None:
    """The reason why the hand-written engine cannot compute this model, None where it can."""
    if loss is not causal_loss:
        return "it knows the loss of a causal language model only"
    method = adapters_on(peft_model)[adapter]
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
    if activation(config) not in ACTIVATIONS:
        return f"it does not know the activation {activation(config)}"
    if own_dropout(model):
        return "the base's own dropout is on (train.base_dropout)"
    if getattr(config, "use_bidirectional_attention", False):
        return "the base looks ahead"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"it does not know the attention {config._attn_implementation}"
    return _adapter_refusal(peft_model, adapter)


def _adapter_refusal(peft_model: Any, adapter: str) -> str | None:
    settings = peft_model.peft_config[adapter]
    if starts_from_weights(peft_model, adapter):
        return "it does not know an adapter that starts from the base's weights"
    if settings.use_dora:
        return "it does not know DoRA"
    if settings.lora_dropout:
        return "it does not know adapter dropout"
    for name, layer in lora_layers(peft_model, adapter):
        if not _is_known(name, layer):
            return f"it does not know an adapter on {name}"
    if any("lora_" not in name for name in trained_parameters(peft_model, adapter)):
        return "more than the adapter's matrices is trained"
    return None


def _is_known(name: str, layer: Any) -> bool:
    base = layer.get_base_layer()
    is_linear = type(base) is nn.Linear or getattr(base.weight, "quant_state", None) is not None
    return is_linear and ".layers." in name and name.rpartition(".")[2] in _PROJECTIONS


def _difference(
    autograd: AutogradEngine, handwritten: Engine, batch: Batch, dtype: torch.dtype, adapter: str
) -> tuple[float, bool]:
    """(the larger relative difference of loss and gradient, whether an earlier run has seen it).

    Remembered, where it is small enough, for the model's shape, adapter, dtype, libraries and machine.
    """
    peft_model = autograd.model
    note = cache_folder("handwritten") / _key(peft_model, dtype, autograd.device, adapter)
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(note.read_text(encoding="ascii"))
        return float(kept["error"]), True
    with _nothing_at_zero(peft_model, adapter) as parameters:
        factor = 1.0 / float(batch.weights.sum())
        losses, gradients = [], []
        for engine in (autograd, handwritten):
            losses.append(engine.add_gradient(batch, factor).cpu().double())
            gradients.append(_taken(parameters))
    error = max(_relative(losses[1], losses[0]), _relative(gradients[1], gradients[0]))
    if error <= _LARGEST_ERROR[dtype]:
        with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
            write_file(note, json.dumps({"error": error}))
    return error, False


def _is_known_faster(device: str) -> bool:
    return device.partition(":")[0] in _KNOWN_FASTER


def _speedup(peft_model: Any, engines: Sequence[Engine], batch: Batch, device: str, adapter: str) -> float:
    """Time of the first over that of the second: medians of three passes in turns behind one of each. Infinite where only
    the second has room for the batch, 0 where it has none."""
    seconds: list[list[float]] = [[] for _ in engines]
    with _nothing_at_zero(peft_model, adapter):
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
def _nothing_at_zero(peft_model: Any, adapter: str) -> Iterator[list[nn.Parameter]]:
    """Inside, no B is zero, where A would have no gradient, and the adapter alone acts; afterwards all is as it was."""
    trained = trained_parameters(peft_model, adapter)
    kept = [p.detach().clone() for p in trained.values()]
    random = torch.Generator().manual_seed(0)
    try:
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=random).to(parameter) * 0.02)
        with only(peft_model, adapter):
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


def _key(peft_model: Any, dtype: torch.dtype, device: str, adapter: str) -> str:
    config = peft_model.get_base_model().config.to_dict()
    about = {
        "config": {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")},
        "attention": peft_model.get_base_model().config._attn_implementation,
        "adapter": [
            (name, layer.r[adapter], layer.scaling[adapter]) for name, layer in lora_layers(peft_model, adapter)
        ],
        "dtype": str(dtype),
        "matmuls": str(matmul_dtype(device, dtype)),
        "weights": [
            str(getattr(p, "quant_type", p.dtype))
            for name, p in peft_model.named_parameters()
            if not is_adapter_parameter(name)
        ],
        "device": [device, *_card(device)],
        "precision": torch.get_float32_matmul_precision(),
        "versions": library_versions(),
        "cpu": asdict(cpu_facts()),
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
        *(engine / name for name in cpu_ops.LOOP_SOURCES),
        engine / "gpu_ops.py",
        *(file for file in (engine / "handwritten").iterdir() if file.name.endswith(".py")),
    ]
    ordered = sorted(files, key=lambda file: file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in ordered)).hexdigest()
