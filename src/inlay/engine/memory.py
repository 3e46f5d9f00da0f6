"""What a run will hold in memory, from shapes alone, and what it does hold, against a planned limit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inlay.errors import TrainingError
from inlay.events import bytes_shown
from inlay.models.quantization import constant_bytes


@contextlib.contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Turns running out of memory inside into one line with the way out. Raises: TrainingError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory ({first_line(error)}). {way_out}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of CUDA, MPS or the CPU, or a planned limit, had no room."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_ROOM)


def first_line(error: BaseException) -> str:
    """What an allocator says first, without its advice."""
    return (str(error).strip().splitlines() or ["no more is known"])[0][:200].rstrip(".")


def release(device: str) -> None:
    """Hands back what the allocator holds but nobody uses."""
    gc.collect()
    if device != "cpu":
        (torch.mps if device == "mps" else torch.cuda).empty_cache()
    elif sys.platform == "linux":  # freed blocks below a growing threshold stay resident until glibc is asked
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class BeyondLimit(MemoryError):
    """A pass has held more memory than was planned for it."""


@contextlib.contextmanager
def limited(device: str, limit_bytes: int | None) -> Iterator[None]:
    """Measures the memory that is held inside. Raises: BeyondLimit at the end when its peak was above the limit.

    Allocated memory on CUDA and MPS, resident memory of this process on a CPU. Where the system keeps no peak that can
    be reset (Linux and CUDA do), what is held at the end counts.
    """
    if limit_bytes is None:
        yield
        return
    if held_bytes(device) > _NEAR * limit_bytes:
        release(device)
    marked = _reset_peak(device)
    yield
    held = peak_bytes(device) if marked else held_bytes(device)
    if held > limit_bytes:
        raise BeyondLimit(f"{bytes_shown(held)} were held, train.max_memory allows {bytes_shown(limit_bytes)}")


def held_bytes(device: str) -> int:
    """Memory that is held now: tensors on a device with memory of its own, else what of this process is resident."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated())
    if device == "mps":
        return int(torch.mps.current_allocated_memory())
    return int(importlib.import_module("psutil").Process().memory_info().rss)


def peak_bytes(device: str) -> int:
    """The most that was held since the start or the last `limited`: tensors on CUDA, elsewhere resident memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak(device: str) -> bool:
    """Whether `peak_bytes` now counts from here."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return True
    if device != "cpu" or sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Source: man 5 proc, /proc/pid/clear_refs
    except OSError:
        return False
    return True


_NEAR = 0.75  # of the limit: above it, what nobody uses is handed back before a pass is measured
_NO_ROOM = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose, at the longest micro batch."""

    weights: int
    adapter: int
    """fp32 weights, gradients and two AdamW moments."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.logits


def estimate(
    model: Any, trainable: int, micro_batch_size: int, max_length: int, gradient_checkpointing: bool
) -> MemoryEstimate:
    """A cold estimate for a decoder: saved activations of each layer, and fp32 logits with their gradient.

    Per token and layer about 12 hidden and 4 intermediate values are saved for the backward pass
    (one hidden value with gradient checkpointing, plus one layer whole).
    """
    config = getattr(model.config, "text_config", None) or model.config
    hidden = shape_of(config, "hidden_size", "n_embd", "d_model")
    layers = shape_of(config, *LAYER_NAMES)
    inner = shape_of(config, "intermediate_size", "n_inner", "d_ff", default=4 * hidden)
    parameters = list(model.parameters())
    width = next((p.element_size() for p in parameters if p.is_floating_point() and not p.requires_grad), 4)
    tokens = micro_batch_size * max_length
    layer = tokens * (12 * hidden + 4 * inner) * width
    activations = layers * tokens * hidden * width + layer if gradient_checkpointing else layers * layer
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    frozen += sum(constant_bytes(m) for m in model.modules())
    return MemoryEstimate(frozen, trainable * 16, activations, tokens * int(config.vocab_size) * 8)


def shape_of(config: Any, *names: str, default: int | None = None) -> int:
    """The first of the named sizes that a transformers config has; families name them differently."""
    found = next((getattr(config, name) for name in names if getattr(config, name, None)), default)
    assert found is not None, f"{type(config).__name__} has none of {names}"
    return int(found)


def largest_micro_batch(
    model: Any,
    trainable: int,
    batch_size: int,
    max_length: int,
    gradient_checkpointing: bool,
    room_bytes: int,
    token_cap: int,
) -> tuple[int, str]:
    """The largest micro batch whose estimate fits the room and whose tokens stay under the cap, with its reason."""
    size = batch_size
    while size > 1:
        needed = estimate(model, trainable, size, max_length, gradient_checkpointing).total
        if needed <= room_bytes and size * max_length <= token_cap:
            break
        size = (size + 1) // 2
    return size, f"at most {token_cap} tokens at once, and its estimate fits {room_bytes / 1e9:.1f} GB"
