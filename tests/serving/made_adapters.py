"""Random LoRA adapters in a library, without the golden answers that take longer than all else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.adapters.library import Library
from inlay.adapters.reference import config_of, opened, reference
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from inlay.workflows.adapter_library.add import _fill, described


def put_adapters(library: Path, base: str, names: Sequence[str], size: float = 0.1, **over: Any) -> None:
    """Adds one adapter a name, on the up and down projections of the base, with unequal ranks; `over` are PEFT's settings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    one = reference(base, str(library.parent))
    ready = opened(one, config_of(one))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(ready.ref.folder)))
    sites = [
        (n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".mlp." in n and "gate" not in n
    ]
    for seed, name in enumerate(names):
        draw, tensors, ranks = torch.Generator().manual_seed(seed), {}, {}
        for place, (site, module) in enumerate(sites):
            ranks[site], key = 2 + (place + seed) % 4, f"base_model.model.{site}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(ranks[site], module.in_features, generator=draw) * size
            tensors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, ranks[site], generator=draw) * size
            if over.get("use_dora"):
                tensors[f"{key}.lora_magnitude_vector"] = torch.ones(module.out_features)
        settings: Any = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "bias": "none", "init_lora_weights": True,
            "rank_pattern": ranks, "target_modules": sorted(ranks),
        }  # fmt: skip
        state, card = described(
            ready, AdapterState(settings | over, tensors).on(BaseRef(ready.ref.name, ready.ref.folder))
        )
        Library(library).put(
            name, lambda folder, state=state: _fill(folder, state, None, []), card,
            lambda folder: ready.encoder.tokenizer.save_pretrained(str(folder)),
        )  # fmt: skip
