"""The optimizer, its learning rate at every step, and its state as named tensors that safetensors can hold.

The learning rate is a pure function of the step: nothing to save, nothing to restore.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from inlay.config import Config
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import steps_per_epoch
from inlay.errors import ConfigError, count_shown
from inlay.methods.table import method_of
from inlay.typed_json import JsonObject

_RATIO: Final = "learning_rate_ratio"
_State = dict[str, Any]
"""State of one parameter: tensors and numbers by name, some of them in groups of bitsandbytes."""


def make_optimizer(train: TrainConfig, named: Mapping[str, torch.nn.Parameter]) -> Optimizer:
    """Over the named parameters, with the matrices B in a group of their own where they have another learning rate.

    Raises: ConfigError when the chosen optimizer does not work here.
    """
    parameters = [{"params": group, _RATIO: ratio} for group, ratio in _groups(train, named)]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=train.weight_decay)
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise ConfigError(
            f'train.optimizer {train.optimizer}: needs bitsandbytes: pip install "inlay[quant]".'
        ) from None
    if train.optimizer == "paged_adamw_8bit":
        if next(iter(named.values())).device.type != "cuda":
            raise ConfigError(
                "train.optimizer paged_adamw_8bit: pages only on CUDA; here it would be the plain 8-bit one. "
                "Use adamw_8bit."
            )
        return bnb.optim.PagedAdamW8bit(parameters, lr=0.0, weight_decay=train.weight_decay)  # type: ignore[no-any-return, unused-ignore]
    return bnb.optim.AdamW8bit(parameters, lr=0.0, weight_decay=train.weight_decay)  # type: ignore[no-any-return, unused-ignore]


def _groups(
    train: TrainConfig, named: Mapping[str, torch.nn.Parameter]
) -> Iterator[tuple[list[torch.nn.Parameter], float]]:
    """Parameters with the same learning rate, and its ratio to the optimizer's."""
    # Source: Hayou, Ghosh, Yu 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models"
    fast = {name: parameter for name, parameter in named.items() if "lora_B" in name and train.lora_plus_ratio != 1}
    slow = [parameter for name, parameter in named.items() if name not in fast]
    groups = [(slow, 1.0), (list(fast.values()), train.lora_plus_ratio)]
    return ((parameters, ratio) for parameters, ratio in groups if parameters)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step; B takes its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_RATIO]


def state_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], JsonObject]:
    """(tensors, plain values) of the optimizer's per-parameter state, keyed `<index>.<name>`.

    bitsandbytes keeps its 8-bit state one level down, which becomes `<index>.<group>/<name>`.
    """
    tensors: dict[str, Tensor] = {}
    values: JsonObject = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in _flat(state).items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().clone()  # the 8-bit ones share their tables
            elif value is not None:
                values[f"{index}.{name}"] = value
    return tensors, values


def _flat(state: _State) -> _State:
    flat: _State = {}
    for name, value in state.items():
        flat |= {f"{name}/{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def restore_state(optimizer: Optimizer, tensors: dict[str, Tensor], values: JsonObject) -> None:
    """Loads the result of `state_tensors` into a fresh optimizer over the same parameters."""
    state: dict[int, _State] = {}
    for key, value in [*tensors.items(), *values.items()]:
        index, _, path = key.partition(".")
        here = state.setdefault(int(index), {})
        group, _, name = path.rpartition("/")
        (here.setdefault(group, {}) if group else here)[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


_DECAY_SHARE = 0.2  # of the steps, for wsd


def length_of(train: TrainConfig, drawn: int) -> tuple[int, int, int]:
    """(steps in all, between evaluations, between checkpoints) of a run whose epochs draw so many rows."""
    per_epoch = steps_per_epoch(drawn, train.batch_size)
    total = train.max_steps or per_epoch * train.epochs
    eval_every = _every(train.eval_steps, max(1, math.ceil(total / 10)), per_epoch)
    return total, eval_every, _every(train.save_steps, eval_every, per_epoch)


def _every(setting: str | int, auto: int, per_epoch: int) -> int:
    return per_epoch if setting == "epoch" else auto if setting == "auto" else int(setting)


def require_warmup(train: TrainConfig, total: int) -> None:
    """Raises: ConfigError for a warmup that is longer than the run, whose learning rate would never reach its peak."""
    if train.warmup_steps is not None and train.warmup_steps > total:
        raise ConfigError(
            f"train.warmup_steps {train.warmup_steps}: the run has {count_shown(total, 'step')}, so that the learning rate "
            "would never "
            "reach train.learning_rate. Lower it, or leave it out for train.warmup_ratio."
        )


def warmup_steps(train: TrainConfig, total: int) -> int:
    by_ratio = math.ceil(train.warmup_ratio * total - 1e-9)  # 0.07 * 100 is a little above 7
    return min(by_ratio if train.warmup_steps is None else train.warmup_steps, total)


def learning_rate(train: TrainConfig, peak: float, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 1). The first step of a warmup gets peak/warmup, never 0."""
    return _scheduled(train, peak, step, total) * _factor(train, step)


def _factor(train: TrainConfig, step: int) -> float:
    steps = sorted(train.learning_rate_factors)
    return float(np.interp(step, steps, [train.learning_rate_factors[s] for s in steps])) if steps else 1.0


def _scheduled(train: TrainConfig, peak: float, step: int, total: int) -> float:
    warmup = warmup_steps(train, total)
    if step <= warmup:
        return peak * step / warmup
    left = (total - step + 1) / max(1, total - warmup)  # 1 at the first step after warmup, above 0 at the last
    if train.schedule == "linear":
        return peak * left
    if train.schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * left))
    if train.schedule == "wsd":
        return peak * min(1.0, (total - step + 1) / max(1, math.ceil(_DECAY_SHARE * total)))
    return peak


def auto_learning_rate(config: Config, hidden_size: int, model_type: str) -> tuple[float, str]:
    """(peak rate of the config's method for a base of this hidden size and family, reason)"""
    rate, reason = method_of(config).learning_rate(hidden_size, model_type)
    ratio = config.train.lora_plus_ratio
    if ratio != 1:
        rate, reason = rate / math.sqrt(ratio), f"{reason}, over the root of lora_plus_ratio"
    return float(f"{rate:.2g}"), reason
