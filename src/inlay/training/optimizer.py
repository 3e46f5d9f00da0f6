"""The optimizer, and its state as named tensors that safetensors can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from inlay.config.sections.train import TrainConfig
from inlay.errors import ConfigError
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
