"""The ways to fine-tune a base beside LoRA, and what of a stored adapter decides what it computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import nn

from inlay.methods.target_modules import feed_forward_output

METHOD_OF: Final = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt", "FULL": "full"}
"""PEFT's word for a type of adapter, and ours for all weights -> `adapter.method`."""
IA3_ROLES: Final = ("k_proj", "v_proj", "down_proj")
"""Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper", section 3.3."""
_COMMON: Final = ("task_type", "base_model_name_or_path", "inference_mode")
_LAYERS: Final = ("target_modules", "exclude_modules", "fan_in_fan_out")
APPLIED: Final = {
    "LORA": (
        *_COMMON, *_LAYERS, "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "rank_pattern",
        "alpha_pattern", "layers_to_transform", "layers_pattern", "target_parameters",
    ),
    "IA3": (*_COMMON, *_LAYERS, "feedforward_modules"),
}  # fmt: skip
"""Settings of a stored adapter that are taken over when it is put on a base; how it was started is not."""


def ia3_config(model: nn.Module, targets: list[str], base_model: str) -> Any:
    """PEFT's settings of IA3 on these layers: where the feed-forward part ends its input is scaled, else the output."""
    from peft import IA3Config, TaskType

    last = feed_forward_output(model)
    return IA3Config(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        feedforward_modules=[name for name in targets if f".{name}".endswith(f".{last}")],
        fan_in_fan_out=all_conv1d(model, targets),
        base_model_name_or_path=base_model,
    )


def all_conv1d(model: nn.Module, targets: Iterable[str]) -> bool:
    """Whether the layers with these name endings are those of GPT-2, whose weights lie the other way round."""
    from transformers.pytorch_utils import Conv1D

    endings = tuple(targets)
    kinds = {type(m) for n, m in model.named_modules() if n.endswith(endings) and isinstance(m, (nn.Linear, Conv1D))}
    return kinds == {Conv1D}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that training changes, by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_adapters(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter and not to the base under it."""
    return any(part in name for part in ("lora_", "ia3_l", "prompt_embeddings"))
