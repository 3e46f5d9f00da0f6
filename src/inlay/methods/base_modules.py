"""The base's own modules and parameters, under the names that they have without any adapter."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn


def base_of(model: Any) -> Any:
    """The base of a PeftModel, with the adapters' layers in it; another model is its own base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules` of the bare base: adapted layers give the layer that they wrap."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    seen: set[nn.Module] = set()

    def walk(name: str, module: Any) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        if module in seen:
            return
        seen.add(module)
        yield name, module
        for child_name, child in module.named_children():
            yield from walk(f"{name}.{child_name}" if name else child_name, child)

    yield from walk("", base_of(model))


@contextlib.contextmanager
def peft_disabled(model: Any) -> Iterator[None]:
    """Inside, the adapters that PEFT has put on the model do not act; a model without any is left as it is."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    with flags_kept(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        with model.disable_adapter():
            yield


@contextlib.contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Leaves `requires_grad` of every parameter as it was: PEFT freezes all but the active adapter."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As `named_parameters` of the bare base."""
    seen: set[int] = set()
    for module_name, module in base_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{module_name}.{name}" if module_name else name, parameter
