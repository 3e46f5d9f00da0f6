"""Adapters on a base: attached, trained, switched off, detached.

Nothing here asks which method it is; `inlay.methods.table` knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from torch import nn

from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods.method import TRAINED, AttachInputs, Batches, Method
from inlay.methods.peft_layers import tuned_layers
from inlay.methods.table import METHODS, adapters_on, method_of

_PREFIXES: Final = ("lora_", "ia3_")
"""Prefixes of PEFT's parameter names. PEFT cuts adapter names out of them, and would cut a part of these prefixes too."""


def attach(
    model: nn.Module,
    config: Config,
    targets: Sequence[str],
    sample: Batches = tuple,
    *,
    reopen: Callable[[], nn.Module] | None = None,
    name: str = TRAINED,
) -> Any:
    """The model with a fresh trainable adapter in fp32, which alone acts; others that are on it stay as they are.

    The start is drawn from torch's global generator: seed it first. `sample` gives batches of training rows for an
    initialization from activations (`eva`), `reopen` the base once more from its files (`full`).

    Raises: AdapterError for what this base cannot have.
    """
    method = method_of(config)
    require_compatible(model, method, name)
    return method.attach(model, config, AttachInputs(targets, sample, reopen), name)


def detach(model: Any, name: str = TRAINED) -> Any:
    """The model without this adapter: the bare base, frozen and as it was before, where it was the last one."""
    return adapters_on(model)[name].detach(model, name)


def trained_parameters(model: nn.Module, name: str = TRAINED) -> dict[str, nn.Parameter]:
    """The trained parameters by their names in the model; empty without that adapter.

    Whether they require a gradient just now makes no difference.
    """
    method = adapters_on(model).get(name)
    return method.parameters(model, name) if method else {}


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[None]:
    """Inside, the model computes what the base without any adapter computes, bit for bit.

    A model without an adapter is left as it is. After full fine-tuning both its weights and the base's are in memory.
    """
    method = next(iter(adapters_on(model).values()), None)
    with method.disabled(model) if method else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def only(model: Any, name: str) -> Iterator[None]:
    """Inside, of all adapters on the model this one alone acts; which parameters require a gradient stays as it is."""
    with adapters_on(model)[name].only(model, name):
        yield


def virtual_tokens(model: Any) -> int:
    """Positions that the adapters put before every sequence of this model."""
    return sum(method.virtual_tokens_on(model) for method in adapters_on(model).values())


@contextlib.contextmanager
def without_virtual_tokens(model: Any) -> Iterator[None]:
    """Inside, no virtual tokens stand before a sequence; adapters of other kinds stay."""
    method = next((method for method in adapters_on(model).values() if method.virtual_tokens_on(model)), None)
    with method.disabled(model) if method else contextlib.nullcontext():
        yield


def layers_adapted(model: Any, name: str = TRAINED) -> str:
    """` on 12 layers` of the base, empty where the adapter is on none."""
    count = len(tuned_layers(model, name))
    return f" on {count} layers" if count else ""


def require_compatible(model: Any, method: Method, name: str) -> None:
    """Raises: AdapterError where the model has an adapter that one of this method and name cannot stand beside."""
    if not name or "." in name or any(name in prefix for prefix in _PREFIXES):
        raise AdapterError(
            f"adapter: {name!r} cannot be the name of an adapter. Use letters, and no part of 'lora_' or 'ia3_'."
        )
    there = adapters_on(model)
    if name in there:
        raise AdapterError(f"adapter {name}: this base has one of that name already.")
    for other, its in there.items():
        if its is not method or not method.shares_base:
            able = " or all be ".join(each.name for each in METHODS.values() if each.shares_base)
            raise AdapterError(
                f"adapter {name} ({method.name}): cannot be on one base with {other} ({its.name}). Several must "
                f"all be {able}."
            )
