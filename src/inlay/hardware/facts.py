"""Facts of this machine: versions, CPU, memory, disk, GPUs, and how large a model fits.

Sizes are bytes; null means that this system does not say.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

import torch

from inlay._version import __version__
from inlay.hardware.probe import FAILURES, first_line

GIB = 1024**3

LIBRARIES = (
    "inlay",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "bitsandbytes",
    "liger-kernel",
    "triton",
    "numpy",
    "numba",
    "pydantic",
    "pyarrow",
    "datasets",
)

CPU_FEATURES = {"avx2": "avx2", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}
"""Name in the record -> flag in /proc/cpuinfo."""

GPU_TIERS_GIB = (8, 16, 24)

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.2, "nf4": 0.7}
"""Bytes that one parameter of the frozen base takes; see `largest_billions`."""


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The CPU as this process may use it."""

    model: str
    cores: int
    """By affinity and container quota."""
    threads: int
    """That torch computes with."""
    torch_capability: str
    features: Mapping[str, bool | None]
    """What matters to torch; None where the system does not say."""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Host memory (RAM) that this process can count on."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """Free space where runs are written."""

    folder: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class GpuTier:
    """Billions of parameters of a base that a GPU of this size trains."""

    memory_gib: float
    lora_bfloat16_billions: float
    qlora_nf4_billions: float


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A CUDA device, its memory, and what fits into it."""

    works: ClassVar[Literal[True]] = True
    index: int
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    fits: GpuTier


@dataclass(frozen=True, slots=True)
class BrokenGpu:
    """A CUDA device that is listed and gives no answer."""

    works: ClassVar[Literal[False]] = False
    index: int
    error: str


def library_versions() -> dict[str, str | None]:
    """Installed version of each library that decides what a run does, None when it is not installed."""
    return dict(_library_versions())


@functools.cache  # reading their metadata takes a while, and a run needs them at four places
def _library_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    versions["inlay"] = __version__  # also where it runs from a source folder
    versions["torch"] = torch.__version__  # with its build: 2.13.0+cpu
    return versions


def cpu_facts() -> CpuFacts:
    """Model of the CPU, the cores this process may use, and the features that matter to torch."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields["flags"].split()) if "flags" in fields else None
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return CpuFacts(
        model=fields.get("model name") or platform.processor() or platform.machine(),
        cores=affinity if quota is None else min(affinity, max(1, round(quota))),
        threads=torch.get_num_threads(),
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        features={name: None if flags is None else flag in flags for name, flag in CPU_FEATURES.items()},
    )


def _cgroup_cpus() -> float | None:
    """Cores that a container's quota allows, None without a quota. Source: kernel docs, cgroup-v2 cpu.max."""
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def memory_facts() -> MemoryFacts:
    """Host memory (RAM) of the machine, or less where a container sets a limit."""
    memory = importlib.import_module("psutil").virtual_memory()  # accelerate requires psutil
    total, available = int(memory.total), int(memory.available)
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if limit.isdecimal() and used.isdecimal():
        total, available = min(total, int(limit)), min(available, max(0, int(limit) - int(used)))
    return MemoryFacts(total, available)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def disk_facts(output: Path) -> DiskFacts:
    """Free space where runs will be written, at the nearest folder that exists."""
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    return DiskFacts(str(output), shutil.disk_usage(folder).free)


def gpu_facts() -> list[GpuFacts | BrokenGpu]:
    """Every CUDA device, in the order of their index."""
    found: list[GpuFacts | BrokenGpu] = []
    for index in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
        except FAILURES as error:
            found.append(BrokenGpu(index, first_line(error)))
            continue
        capability = f"{properties.major}.{properties.minor}"
        found.append(GpuFacts(index, properties.name, capability, total, free, gpu_tier(total)))
    return found


def largest_billions(memory_bytes: float, weights: str) -> float:
    """Billions of parameters that LoRA can train in this memory, the base held as `weights` (`WEIGHT_BYTES`).

    Bytes per parameter of the base, at 1024 tokens in flight with gradient checkpointing:
    - weights: 4, 2 or 2; int8 1 and nf4 0.52 (half a byte and its scales) where the embeddings and the head,
      about a tenth of the model, stay at 2: 1.2 and 0.7 in all
    - adapter: rank 16 on all linear layers is 0.5% of the parameters of an 8B model, each with 4 bytes of
      weight, 4 of gradient and 8 of AdamW state: 0.1
    - activations: layers x tokens x width at each layer's edge, one layer recomputed, and logits: about
      1.5 GB for 8B in 16 bits: 0.2 (0.4 in float32)
    and 1.5 GiB for the device's own context, the library and fragmentation.

    An 8 GiB GPU: (8 - 1.5) GiB / (2 + 0.1 + 0.2) = 3.0B LoRA and / (0.7 + 0.3) = 7.0B with nf4.
    """
    activations = 0.4 if weights == "float32" else 0.2
    usable = max(0.0, memory_bytes - 1.5 * GIB)
    return round(usable / (WEIGHT_BYTES[weights] + 0.1 + activations) / 1e9, 1)


def gpu_tier(memory_bytes: int) -> GpuTier:
    """The sizes of a base that a GPU with this memory trains."""
    return GpuTier(
        memory_gib=round(memory_bytes / GIB, 1),
        lora_bfloat16_billions=largest_billions(memory_bytes, "bfloat16"),
        qlora_nf4_billions=largest_billions(memory_bytes, "nf4"),
    )
