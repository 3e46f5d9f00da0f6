"""This machine examined for people and bug reports: its facts, and the tries that take seconds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inlay.hardware.machine import FailedBenchmark, Machine, TrainingSpeed, machine_record
from inlay.hardware.probe import DTYPES, FAILURES, first_line, synchronize
from inlay.models.quantization import QUANTIZATIONS, probe_quantization


def examine(quick: bool, output: Path = Path("results")) -> Machine:
    """The facts and probes; `quick` leaves quantized layers and the training benchmark None."""
    machine = machine_record(output)
    if quick:
        return machine
    device, dtype = machine.device.device, machine.dtype.dtype
    return replace(
        machine,
        quantization={kind: probe_quantization(kind, device, dtype) for kind in QUANTIZATIONS},
        training=training_benchmark(device, dtype),
    )


def training_benchmark(device: str, dtype: str, budget_s: float = 2.0) -> TrainingSpeed | FailedBenchmark:
    """Speed of LoRA steps (rank 16, all linear) on a small random Llama, or why it could not be measured."""
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
        return FailedBenchmark(first_line(error))
    return TrainingSpeed(
        tokens_per_s=round(steps * rows * length / elapsed_s, 1),
        model=f"random Llama, {parameters / 1e6:.1f}M parameters",
        batch=[rows, length],
        dtype=dtype,
        device=device,
    )


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
