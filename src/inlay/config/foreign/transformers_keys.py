"""Keys that other trainers have from transformers: batch, epochs, optimizer, schedule, steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from inlay.config.foreign.imported import Imported, Keys, translate
from inlay.config.load import in_yaml
from inlay.config.other_trainers import COUNTERPARTS
from inlay.config.sections.adapter import METHOD_SETTINGS

_SCHEDULES: Final = {"cosine": "cosine", "linear": "linear", "constant": "constant", "warmup_stable_decay": "wsd"}
_OPTIMIZERS: Final = {
    "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit", "adamw_torch_8bit": "adamw_8bit",
}  # fmt: skip
_NAMED_ALIKE: Final = ("early_stopping_patience", "gradient_checkpointing")
_COMMON: Final[dict[str, Callable[[Any], Any]]] = {
    "learning_rate": float, "weight_decay": float, "max_grad_norm": float, "warmup_ratio": float,
    "warmup_steps": int, "max_steps": int, "seed": int,
}  # fmt: skip


def take_same(found: Imported, left: Keys) -> None:
    """Takes the keys whose value means the same in inlay."""
    names = {theirs: one.settings[0] for theirs, one in COUNTERPARTS.items() if one.same}
    names |= {"base_model": "model.base_model"} | {name: f"train.{name}" for name in _NAMED_ALIKE}
    for theirs in [key for key in left if key in names]:
        ours, value = names[theirs], left.pop(theirs)
        if ours in found.values:
            found.leave(theirs, value, f"{ours} is already {in_yaml(found.values[ours])}, from {found.origins[ours]}")
            continue
        if ours == "train.epochs" and isinstance(value, float):
            if not value.is_integer():
                found.leave(theirs, value, "epochs are whole; use train.max_steps")
                continue
            value = int(value)
        if ours in ("adapter.dropout", "adapter.alpha") and isinstance(value, int):
            value = float(value)
        found.take(ours, value, theirs)


def take_batch(found: Imported, left: Keys, micro_key: str) -> None:
    """Takes the examples per step, which other trainers count on each device."""
    micro, times = left.pop(micro_key, None), left.pop("gradient_accumulation_steps", 1)
    if micro is not None:
        found.take("train.batch_size", micro * times, f"{micro_key} × gradient_accumulation_steps, for one device")
        found.take("train.micro_batch_size", micro, micro_key)
    elif times != 1:
        found.leave("gradient_accumulation_steps", times, "train.batch_size counts the examples of a whole step")


def other_methods() -> str:
    """The reason why a method of another trainer has no counterpart."""
    return f"adapter.method is one of {', '.join(METHOD_SETTINGS)}"


def leave_idle(found: Imported) -> None:
    """Lists the adapter's settings that have no effect with its method, and a quantized base under full fine-tuning."""
    method = found.values.get("adapter.method", "lora")
    idle = [
        name
        for name in found.values
        if name.startswith("adapter.") and name[8:] not in ("method", *METHOD_SETTINGS[method])
    ]
    idle += ["model.quantization"] if method == "full" and "model.quantization" in found.values else []
    for name in idle:
        found.leave(
            found.origins.pop(name), found.values.pop(name), f"{name} has no effect with adapter.method {method}"
        )


def take_rest(found: Imported, left: Keys, *, optimizer: str, schedule: str) -> None:
    """Takes optimizer, schedule and steps, and lists all keys that are left as without a counterpart."""
    if (name := left.pop(optimizer, None)) is not None:
        translate(found, "train.optimizer", optimizer, name, _OPTIMIZERS)
    if (name := left.pop(schedule, None)) is not None:
        translate(found, "train.schedule", schedule, name, _SCHEDULES)
    if left.get("warmup_steps") and left.get("warmup_ratio") is not None:
        found.leave("warmup_ratio", left.pop("warmup_ratio"), "warmup_steps wins")
    if left.get("max_steps", 0) in (-1, 0):
        left.pop("max_steps", None)
    for key, convert in _COMMON.items():
        if key in left:
            found.take(f"train.{key}", convert(left.pop(key)), key)
    for key in ("eval_steps", "save_steps"):
        if key in left:
            value = left.pop(key)
            if isinstance(value, int):
                found.take(f"train.{key}", value, key)
            else:
                found.leave(key, value, "a whole number of steps is needed")
    for key, value in left.items():
        found.leave(key, value)
