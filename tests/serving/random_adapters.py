"""Adapters with random weights in a library: cheap to make, each answers otherwise."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig

from inlay.adapters import reference
from inlay.adapters.library import Entry, Library
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.adapter_library import add

_LAYERS = ("q_proj", "v_proj", "down_proj")


def opened(base: Path) -> OpenedBase:
    named = reference.reference(base, "results")
    return reference.opened(named, reference.config_of(named))


def random_state(base: OpenedBase, seed: int, rank: int = 4) -> AdapterState:
    """A LoRA whose change is large enough for other answers."""
    draw = torch.Generator().manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_LAYERS), task_type="CAUSAL_LM")
    settings = {name: getattr(value, "value", value) for name, value in config.to_dict().items()}
    settings["target_modules"] = sorted(_LAYERS)
    tensors = {}
    for name, module in base.model.named_modules():
        if name.endswith(_LAYERS):
            rows, columns = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=draw) * 0.1
    return AdapterState(settings, tensors)


def put_random(library: Library, name: str, base: OpenedBase, seed: int) -> Entry:
    """A version of the name, with golden answers."""
    return add.put(name, base, random_state(base, seed), library, {}, PlainReporter()).entry
