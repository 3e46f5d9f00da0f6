"""The result of `inlay doctor` as lines. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inlay.hardware.facts import CpuFacts
    from inlay.hardware.machine import Machine
    from inlay.hardware.probe import Probe

GIB = 1024**3


def doctor_lines(machine: Machine) -> list[str]:
    """The answer to "what should I train here" first, then one fact a line."""
    out = _choice(machine)
    out += ["", "machine"]
    cpu, memory, disk = machine.cpu, machine.memory, machine.disk
    out.append(_row("cpu", f"{cpu.model}, {cpu.cores} cores ({_features(cpu)})"))
    out.append(_row("memory", f"{_gib(memory.available_bytes)} available of {_gib(memory.total_bytes)}"))
    out.append(_row("disk", f"{_gib(disk.free_bytes)} free at {disk.folder}"))
    out += _gpus(machine)
    out += ["", "what works"]
    for name, probe in machine.dtypes.items():
        out.append(_probe(name, probe, machine.device.device))
    if machine.quantization is None:
        out.append(_row("quantization", "not tried in the quick form"))
    for name, probe in (machine.quantization or {}).items():
        out.append(_probe(name, probe, machine.device.device))
    training = machine.training  # a benchmark that failed is among the warnings
    if training is not None and training.works is True:
        out.append(_row("training", f"{training.tokens_per_s:,.0f} tokens/s of LoRA on a {training.model}"))
    out += ["", "what fits a GPU (billions of parameters)"]
    for tier in machine.gpu_tiers:
        sizes = f"LoRA bfloat16 {tier.lora_bfloat16_billions:g}, QLoRA nf4 {tier.qlora_nf4_billions:g}"
        out.append(_row(f"{tier.memory_gib:g} GiB", sizes))
    out += ["", "versions"]
    out.append(_row("python", f"{machine.python} on {machine.platform}"))
    present = {name: version for name, version in machine.versions.items() if version is not None}
    out.append(_row("libraries", ", ".join(f"{name} {version}" for name, version in present.items())))
    absent = [name for name in machine.versions if name not in present]
    if absent:
        out.append(_row("not here", ", ".join(absent)))
    if warnings := machine.warnings:
        out += ["", "warnings", *(f"  ! {warning}" for warning in warnings)]
    return out


def _choice(machine: Machine) -> list[str]:
    best, matmuls = machine.recommended, machine.fp32_products
    sizes, checkpointing = best.model_billions, "on" if best.gradient_checkpointing else "off"
    return [
        "recommended here",
        _row("model size", f"up to {sizes.comfortable:g}B at a good pace, {sizes.largest:g}B fits"),
        _row("device", f"{best.device} ({machine.device.reason})"),
        _row("dtype", f"{best.dtype} ({machine.dtype.reason})"),
        *([_row("fp32 matmuls", f"{matmuls.precision} ({matmuls.reason})")] if matmuls else []),
        _row("quantization", f"{best.quantization} ({best.quantization_reason})"),
        _row("batch", f"micro_batch_size {best.micro_batch_size}, gradient_checkpointing {checkpointing}"),
    ]


def _gpus(machine: Machine) -> list[str]:
    out = []
    for gpu in machine.gpus:
        name = f"cuda:{gpu.index}"
        if gpu.works is False:
            out.append(_row(name, f"cannot be used: {gpu.error}"))
            continue
        sizes = f"LoRA to {gpu.fits.lora_bfloat16_billions:g}B, nf4 to {gpu.fits.qlora_nf4_billions:g}B"
        free = f"{_gib(gpu.free_bytes)} free of {_gib(gpu.total_bytes)}"
        out.append(_row(name, f"{gpu.name}, {free}, capability {gpu.compute_capability}; {sizes}"))
    if machine.mps.available:
        out.append(_row("mps", f"Apple GPU ({machine.mps.note})"))
    return out or [_row("gpu", "none")]


def _features(cpu: CpuFacts) -> str:
    known = [name for name, here in cpu.features.items() if here]
    return ", ".join(known) if known else cpu.torch_capability


def _probe(name: str, probe: Probe, device: str) -> str:
    if not probe.works:
        return _row(name, f"no: {probe.reason}")
    if probe.speed_gflops is None:
        return _row(name, f"yes: {probe.reason}")
    per_core = " per core" if device == "cpu" else ""
    return _row(name, f"yes, {probe.speed_gflops:,.3g} GFLOP/s{per_core}")


def _row(name: str, text: str) -> str:
    return f"  {name:<13} {text}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
