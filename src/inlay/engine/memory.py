"""Memory of a run, against a planned limit, and the error where there is no more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from inlay.errors import TrainingError
from inlay.runs.reporter import bytes_shown


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
    """True where an allocator of CUDA, MPS or the CPU, or a planned limit, had no room."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_ROOM)


def first_line(error: BaseException) -> str:
    """The first line of an allocator's message, without its advice."""
    return (str(error).strip().splitlines() or ["no more is known"])[0][:200].rstrip(".")


def release(device: str) -> None:
    """Hands back what nobody uses, of objects in circles too."""
    gc.collect()
    trim_allocator(device)


def trim_allocator(device: str) -> None:
    """Hands back what the allocator holds but nobody uses."""
    if device != "cpu":
        (torch.mps if device == "mps" else torch.cuda).empty_cache()
    elif sys.platform == "linux":  # freed blocks below a growing threshold stay resident until glibc is asked
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def tune_allocator(for_speed: bool) -> bool:
    """Has glibc keep large freed blocks for the next step, whose pages the kernel would have to clear each time; or, for
    the least memory, give each back at once. Whether it does: not where somebody has tuned malloc, or chosen another one.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(k.startswith("MALLOC_") for k in os.environ)
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or tuned or os.environ.get("LD_PRELOAD"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(_MALLOPT[name], value) for name, value in (_KEEPING if for_speed else _RETURNING).items())


_MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_TOP_PAD": -2, "M_MMAP_THRESHOLD": -3, "M_MMAP_MAX": -4}  # as malloc.h has them
_KEEPING = {"M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": 2**31 - 1, "M_TOP_PAD": 64 << 20}
_RETURNING = {"M_MMAP_MAX": 1 << 16, "M_MMAP_THRESHOLD": 1 << 20, "M_TRIM_THRESHOLD": 1 << 20, "M_TOP_PAD": 1 << 17}
"""By itself glibc raises the threshold with what is freed, and larger and larger blocks leave holes in the heap."""


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


@contextlib.contextmanager
def measured_peak(device: str) -> Iterator[list[int]]:
    """A list that has the most bytes held inside as its one entry at the end."""
    seen = [0]
    marked = _reset_peak(device)
    yield seen
    seen[0] = peak_bytes(device) if marked else held_bytes(device)


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
    try:
        import resource
    except ImportError:  # Windows, which keeps the peak with what is held
        memory = importlib.import_module("psutil").Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak(device: str) -> bool:
    """True where `peak_bytes` now counts from here."""
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
