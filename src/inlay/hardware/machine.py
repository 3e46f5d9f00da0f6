"""This machine as a value: its facts, what works on it and how fast, and the settings that follow from them.

All sizes are bytes, all speeds are measured; null means that this system does not say.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from inlay.hardware.facts import (
    GIB,
    GPU_TIERS_GIB,
    BrokenGpu,
    CpuFacts,
    DiskFacts,
    GpuFacts,
    GpuTier,
    MemoryFacts,
    cpu_facts,
    disk_facts,
    gpu_facts,
    gpu_tier,
    largest_billions,
    library_versions,
    memory_facts,
)
from inlay.hardware.probe import (
    DeviceChoice,
    DtypeChoice,
    Probe,
    devices_here,
    pick_device,
    pick_dtype,
    probe_dtype,
    quickest_fp32,
)
from inlay.typed_json import JsonObject

LOW_RAM_BYTES = 8 * GIB

LOW_DISK_BYTES = 10 * GIB

MICRO_BATCH_SIZES = ((12, 1), (20, 2), (40, 4), (10**6, 8))
"""(GPU memory below this many GiB, rows of about 1024 tokens to start with)."""

ROOMY_BILLIONS = 8.0
"""On a GPU that holds this much in its dtype, quantization is not recommended."""

COMFORTABLE_TOKENS_PER_S = 50.0
"""A million trained tokens in under six hours."""


@dataclass(frozen=True, slots=True)
class MpsFacts:
    """Whether torch has an Apple GPU here."""

    available: bool
    note: str


@dataclass(frozen=True, slots=True)
class MatmulPrecision:
    """The fastest precision of float32 matmuls on this CPU, and why."""

    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """Speed of LoRA steps on a small random model."""

    works: ClassVar[Literal[True]] = True
    tokens_per_s: float
    model: str
    batch: list[int]
    """[rows, tokens of each]."""
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class FailedBenchmark:
    """A benchmark of training that could not run."""

    works: ClassVar[Literal[False]] = False
    error: str


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Billions of parameters of a base that this machine trains."""

    comfortable: float
    """At `COMFORTABLE_TOKENS_PER_S`."""
    largest: float
    """That fits into memory."""
    largest_nf4: float


@dataclass(frozen=True, slots=True)
class Recommended:
    """Settings to start from; the profile of a real model refines them."""

    device: str
    dtype: str
    quantization: str
    quantization_reason: str
    micro_batch_size: int
    gradient_checkpointing: bool
    model_billions: ModelSizes


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts and probes of this machine; what to choose and what to look out for follow from them."""

    python: str
    platform: str
    versions: Mapping[str, str | None]
    cpu: CpuFacts
    memory: MemoryFacts
    disk: DiskFacts
    gpus: list[GpuFacts | BrokenGpu]
    mps: MpsFacts
    device: DeviceChoice
    missing_devices: Mapping[str, str]
    """Why each other device cannot be used."""
    dtype: DtypeChoice
    fp32_products: MatmulPrecision | None
    """None on a GPU."""
    dtypes: Mapping[str, Probe]
    quantization: Mapping[str, Probe] | None = None
    """None where it was not tried."""
    training: TrainingSpeed | FailedBenchmark | None = None

    @property
    def gpu_tiers(self) -> list[GpuTier]:
        """The models that GPUs of the usual sizes can train."""
        return [gpu_tier(gib * GIB) for gib in GPU_TIERS_GIB]

    @property
    def recommended(self) -> Recommended:
        """Settings to start from on this machine."""
        on_cpu, dtype = self.device.device == "cpu", self.dtype.dtype
        gpus = [gpu for gpu in self.gpus if isinstance(gpu, GpuFacts)]
        gpu = next((gpu for gpu in gpus if f"cuda:{gpu.index}" == self.device.device), None)
        memory = gpu.free_bytes if gpu else self.memory.available_bytes
        gib, largest = memory / GIB, largest_billions(memory, dtype)
        speed = self.dtypes[dtype].speed_gflops or 0.0
        reach = comfortable_billions(speed * (self.cpu.threads if on_cpu else 1))
        nf4_works = None if self.quantization is None else self.quantization["nf4"].works
        quantization, why = "none", f"models up to {largest:g}B fit without it"
        if not on_cpu and largest < ROOMY_BILLIONS and nf4_works:
            quantization, why = "nf4", f"only models up to {largest:g}B fit without it"
        elif nf4_works is None:
            why += "; not tried in the quick form"
        return Recommended(
            device=self.device.device,
            dtype=dtype,
            quantization=quantization,
            quantization_reason=why,
            micro_batch_size=4 if on_cpu else next(rows for below, rows in MICRO_BATCH_SIZES if gib < below),
            gradient_checkpointing=gib < 8 if on_cpu else gib < 40,
            model_billions=ModelSizes(min(reach, largest), largest, largest_billions(memory, "nf4")),
        )

    @property
    def warnings(self) -> list[str]:
        """Problems of this machine, each with its remedy."""
        return [*_little_room(self.memory, self.disk), *self._broken_gpus(), *self._failed_probes()]

    def _broken_gpus(self) -> list[str]:
        found = []
        if shutil.which("nvidia-smi") and not any(isinstance(gpu, GpuFacts) for gpu in self.gpus):
            why = self.missing_devices.get("cuda", "it cannot be asked")
            found.append(f"gpu: nvidia-smi is here but torch has no GPU ({why}). Install a CUDA build of torch.")
        return found + [
            f"gpu: {name} is listed but does not work ({why}). Update its driver or torch."
            for name, why in self.missing_devices.items()
            if ":" in name
        ]

    def _failed_probes(self) -> list[str]:
        found = [
            f"quantization: {kind} cannot be used ({probe.reason}). Train without it."
            for kind, probe in (self.quantization or {}).items()
            if not probe.works
        ]
        if isinstance(self.training, FailedBenchmark):
            found.append(f"training: the benchmark failed ({self.training.error}). Run inlay demo to see more.")
        return found

    def to_json(self) -> JsonObject:
        """The JSON object of `inlay doctor --json` and of run.json's `machine`."""
        return asdict(self) | {
            "gpu_tiers": [asdict(tier) for tier in self.gpu_tiers],
            "recommended": asdict(self.recommended),
            "warnings": self.warnings,
        }


def machine_record(output: Path = Path("results"), wanted: str = "auto") -> Machine:
    """The facts and quick probes of this machine; quantized layers and the training benchmark are None.

    A `wanted` device that is named keeps the others untouched.
    """
    device = pick_device(wanted)
    dtype = pick_dtype(device.device, "auto")
    names = [name for name in ("float32", "bfloat16", "float16") if device.device != "cpu" or name != "float16"]
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        versions=library_versions(),
        cpu=cpu_facts(),
        memory=memory_facts(),
        disk=disk_facts(output),
        gpus=gpu_facts() if device.device != "cpu" or wanted == "auto" else [],
        mps=MpsFacts(torch.backends.mps.is_available(), "by source, untested by us"),
        device=device,
        missing_devices=devices_here()[1] if wanted == "auto" else {},
        dtype=dtype,
        fp32_products=MatmulPrecision(*quickest_fp32()) if device.device == "cpu" else None,
        dtypes={name: probe_dtype(device.device, name) for name in names},
    )


def comfortable_billions(gflops: float) -> float:
    """Billions of parameters that still train at `COMFORTABLE_TOKENS_PER_S`.

    A token costs 4 operations per frozen parameter (2 forward, 2 for the gradient of the input), and about
    40% of the speed of a bare matmul is reached.
    """
    return round(0.4 * gflops / (4 * COMFORTABLE_TOKENS_PER_S), 2)


def _little_room(memory: MemoryFacts, disk: DiskFacts) -> list[str]:
    found = []
    if memory.total_bytes < LOW_RAM_BYTES:
        found.append(
            f"memory: {memory.total_bytes / GIB:.1f} GiB is little (under {LOW_RAM_BYTES // GIB}). "
            "Choose a model under 1B, micro_batch_size 1, gradient_checkpointing."
        )
    if disk.free_bytes < LOW_DISK_BYTES:
        found.append(
            f"disk: {disk.free_bytes / GIB:.1f} GiB free at {disk.folder} is little (under "
            f"{LOW_DISK_BYTES // GIB}). Free some, point the output elsewhere, or keep fewer checkpoints."
        )
    return found
