"""A record of this machine for people and bug reports: what is here, what works, how fast, what to choose.

All sizes are bytes, all speeds are measured; null means that this system does not say.
"""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inlay.hardware.facts import (
    GIB,
    GPU_TIERS_GIB,
    cpu_facts,
    disk_facts,
    gpu_facts,
    gpu_tier,
    largest_billions,
    library_versions,
    memory_facts,
)
from inlay.hardware.probe import (
    DTYPES,
    FAILURES,
    DeviceChoice,
    DtypeChoice,
    devices_here,
    first_line,
    pick_device,
    pick_dtype,
    probe_dtype,
    quickest_fp32,
    synchronize,
)
from inlay.models.quantization import QUANTIZATIONS, probe_quantization

LOW_RAM_BYTES = 8 * GIB

LOW_DISK_BYTES = 10 * GIB

MICRO_BATCH_SIZES = ((12, 1), (20, 2), (40, 4), (10**6, 8))
"""(GPU memory below this many GiB, rows of about 1024 tokens to start with)."""

ROOMY_BILLIONS = 8.0
"""A GPU that holds this much in its dtype is not asked to quantise."""

COMFORTABLE_TOKENS_PER_S = 50.0
"""A million trained tokens in under six hours."""


def machine_record(quick: bool, output: Path = Path("results"), wanted: str = "auto") -> dict[str, Any]:
    """All of it as JSON-able values; `quick` leaves quantised layers and the training benchmark None.

    A `wanted` device that is named keeps the others untouched.
    """
    device = pick_device(wanted)
    dtype = pick_dtype(device.device, "auto")
    names = [name for name in ("float32", "bfloat16", "float16") if device.device != "cpu" or name != "float16"]
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": library_versions(),
        "cpu": cpu_facts(),
        "memory": memory_facts(),
        "disk": disk_facts(output),
        "gpus": gpu_facts() if device.device != "cpu" or wanted == "auto" else [],
        "mps": {"available": torch.backends.mps.is_available(), "note": "by source, untested by us"},
        "device": asdict(device),
        "missing_devices": devices_here()[1] if wanted == "auto" else {},
        "dtype": asdict(dtype),
        "fp32_products": dict(zip(("precision", "reason"), quickest_fp32(), strict=True))
        if device.device == "cpu"
        else None,
        "dtypes": {name: asdict(probe_dtype(device.device, name)) for name in names},
        "quantization": None,
        "training": None,
    }
    if not quick:
        record["quantization"] = {
            kind: asdict(probe_quantization(kind, device.device, dtype.dtype)) for kind in QUANTIZATIONS
        }
        record["training"] = training_benchmark(device.device, dtype.dtype)
    record["gpu_tiers"] = [gpu_tier(gib * GIB) for gib in GPU_TIERS_GIB]
    record["recommended"] = recommended(record, device, dtype)
    record["warnings"] = warnings_of(record)
    return record


def training_benchmark(device: str, dtype: str, budget_s: float = 2.0) -> dict[str, Any]:
    """Tokens per second of LoRA steps (rank 16, all linear) on a small random Llama; `error` if it failed."""
    rows, length = 4, 128
    try:
        model, parameters = _small_lora_model(device, dtype)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        chance = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(0, 1024, (rows, length), generator=chance).to(device)
        steps, start = -1, 0.0  # the first step warms up
        while steps < 1 or time.perf_counter() - start < budget_s:
            model(input_ids=ids_BT, labels=ids_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(ids_BT.device)
            steps += 1
            start = start if steps else time.perf_counter()
        elapsed_s = time.perf_counter() - start
    except FAILURES as error:
        return {"error": first_line(error)}
    return {
        "tokens_per_s": round(steps * rows * length / elapsed_s, 1),
        "model": f"random Llama, {parameters / 1e6:.1f}M parameters",
        "batch": [rows, length],
        "dtype": dtype,
        "device": device,
    }


def _small_lora_model(device: str, dtype: str) -> tuple[Any, int]:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        base = LlamaForCausalLM(config)
        parameters = sum(p.numel() for p in base.parameters())
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        # Not get_peft_model: peft 0.21 trips a FutureWarning of transformers 5.23 there.
        model = inject_adapter_in_model(lora, base.to(DTYPES[dtype]))
    return model.to(device).train(), parameters


def comfortable_billions(gflops: float) -> float:
    """Billions of parameters that still train at `COMFORTABLE_TOKENS_PER_S`.

    A token costs 4 operations per frozen parameter (2 forward, 2 for the gradient of the input), and about
    40% of the speed of a plain matrix product is reached.
    """
    return round(0.4 * gflops / (4 * COMFORTABLE_TOKENS_PER_S), 2)


def recommended(record: dict[str, Any], device: DeviceChoice, dtype: DtypeChoice) -> dict[str, Any]:
    """Settings to start from on this machine; the profile of a real model refines them."""
    on_cpu = device.device == "cpu"
    gpu = next((g for g in record["gpus"] if f"cuda:{g['index']}" == device.device and "error" not in g), None)
    memory = gpu["free_bytes"] if gpu else record["memory"]["available_bytes"]
    gib = memory / GIB
    largest = largest_billions(memory, dtype.dtype)
    speed = record["dtypes"][dtype.dtype]["speed_gflops"] or 0.0
    reach = comfortable_billions(speed * (record["cpu"]["threads"] if on_cpu else 1))
    probes = record["quantization"]
    nf4_works = None if probes is None else probes["nf4"]["works"]
    quantization, why = "none", f"models up to {largest:g}B fit without it"
    if not on_cpu and largest < ROOMY_BILLIONS and nf4_works:
        quantization, why = "nf4", f"only models up to {largest:g}B fit without it"
    elif nf4_works is None:
        why += "; not tried in the quick form"
    return {
        "device": device.device,
        "dtype": dtype.dtype,
        "quantization": quantization,
        "quantization_reason": why,
        "micro_batch_size": 4 if on_cpu else next(rows for below, rows in MICRO_BATCH_SIZES if gib < below),
        "gradient_checkpointing": gib < 8 if on_cpu else gib < 40,
        "model_billions": {
            "comfortable": min(reach, largest),
            "largest": largest,
            "largest_nf4": largest_billions(memory, "nf4"),
        },
    }


def warnings_of(record: dict[str, Any]) -> list[str]:
    """What will get in the way here, each with what to do."""
    found: list[str] = []
    total, free = record["memory"]["total_bytes"], record["disk"]["free_bytes"]
    if total < LOW_RAM_BYTES:
        found.append(
            f"memory: {total / GIB:.1f} GiB is little (under {LOW_RAM_BYTES // GIB}). "
            "Choose a model under 1B, micro_batch_size 1, gradient_checkpointing."
        )
    if free < LOW_DISK_BYTES:
        found.append(
            f"disk: {free / GIB:.1f} GiB free at {record['disk']['folder']} is little (under "
            f"{LOW_DISK_BYTES // GIB}). Free some, point the output elsewhere, or keep fewer checkpoints."
        )
    if shutil.which("nvidia-smi") and not any("name" in gpu for gpu in record["gpus"]):
        why = record["missing_devices"].get("cuda", "it cannot be asked")
        found.append(f"gpu: nvidia-smi is here but torch has no GPU ({why}). Install a CUDA build of torch.")
    for name, why in record["missing_devices"].items():
        if ":" in name:
            found.append(f"gpu: {name} is listed but does not work ({why}). Update its driver or torch.")
    for kind, probe in (record["quantization"] or {}).items():
        if not probe["works"]:
            found.append(f"quantization: {kind} cannot be used ({probe['reason']}). Train without it.")
    if "error" in (record["training"] or {}):
        found.append(f"training: the benchmark failed ({record['training']['error']}). Run inlay demo to see more.")
    return found
