"""Finds the linear layers of a base that compute W·x and nothing else, in one forward pass.

An adapter adds B·A·x to what a layer's own forward gives for x. It does nothing in a layer that nobody calls, and
something else where the base reads the layer's weight past its forward (Mamba multiplies by that of `dt_proj` itself)
or where the forward gives more than a product (Llama 4's router gives its choice of experts too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inlay.hardware.probe import first_line
from inlay.methods.base_modules import base_of, peft_disabled

Layers = Mapping[str, Any]
"""Name -> linear layer, a Linear or GPT-2's Conv1D."""
_TOKENS = 8
_LARGEST_ERROR = 2e-2
"""Relative, of a subclass's output against the product; what 16 bits round is less."""
_seen: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
_failed: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Model -> error that ended its forward pass."""


def unsuitable(model: nn.Module, layers: Layers) -> dict[str, str]:
    """Layer -> reason why an adapter on it would not compute W·x + B·A·x; without the layers that can have one.

    Empty where the base needs more than token ids to run (`failed_pass_warning`). Each model is run once.
    """
    base = base_of(model)
    if base not in _seen:
        _seen[base] = _look(model, layers)
    return {name: why for name, why in _seen[base].items() if name in layers}


def failed_pass_warning(model: nn.Module) -> str:
    """A warning where the forward pass over this base failed; empty where it did not."""
    if (why := _failed.get(base_of(model))) is None:
        return ""
    return (
        f"warning: a forward pass over {_TOKENS} tokens, which shows the linear layers that act, failed ({why}). An adapter on a "
        "layer that is never called, or is used past its forward, would do nothing: name the layers in adapter.target_modules."
    )


def _look(model: Any, layers: Layers) -> dict[str, str]:
    watch, was_training = _Watch(layers), model.training
    try:
        device = next(iter(layers.values())).weight.device
        ids = torch.arange(_TOKENS, device=device)[None] % int(model.config.get_text_config().vocab_size)
        with peft_disabled(model), torch.no_grad(), torch.random.fork_rng(), watch:
            for training in (False, True):  # either can do what the other does not: Gemma 3n clamps weights in training
                model.train(training)(input_ids=ids, use_cache=False)
    except Exception as error:  # noqa: BLE001 -- another kind of model, or one without weights: nothing is seen
        _failed[base_of(model)] = first_line(error)
        return {}
    finally:
        watch.close()
        model.train(was_training)
    return watch.found()


class _Watch(TorchFunctionMode):
    """Records calls of the layers, and uses of their weights outside of them."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.owners: dict[int, list[nn.Module]] = {}
        for layer in layers.values():
            self.owners.setdefault(id(layer.weight), []).append(layer)
        self.inside: list[nn.Module] = []
        self.called: set[nn.Module] = set()
        self.past: set[nn.Module] = set()
        self.other: set[nn.Module] = set()
        self.handles: list[Any] = []
        for layer in layers.values():
            self.handles.append(layer.register_forward_pre_hook(lambda module, _: self.inside.append(module)))
            self.handles.append(layer.register_forward_hook(self._after, with_kwargs=True))

    def _after(self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, object], output: Any) -> None:
        self.called.add(layer)
        if (
            len(given) != 1
            or named
            or not isinstance(given[0], Tensor)
            or not isinstance(output, Tensor)
            or (not _is_plain(layer) and not _is_product(layer, given[0], output))
        ):
            self.other.add(layer)
        self.inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # asking a weight for its dtype uses none of its values
            for value in args:
                if isinstance(value, Tensor) and id(value) in self.owners:
                    self.past.update(layer for layer in self.owners[id(value)] if not self._is_inside(id(value)))
        return result

    def _is_inside(self, weight: int) -> bool:
        return bool(self.inside) and id(self.inside[-1].weight) == weight

    def found(self) -> dict[str, str]:
        why: dict[str, str] = {}
        for name, layer in self.layers.items():
            if layer in self.other:
                why[name] = "returns more than the product with its weight"
            elif layer in self.past:
                why[name] = "is used through its weight, past its forward"
            elif layer not in self.called:
                why[name] = "is never called"
        return why

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def _is_plain(layer: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    # a quantized layer rounds, as it is meant to
    return type(layer) in (nn.Linear, Conv1D) or type(layer).__module__.startswith("bitsandbytes.")


def _is_product(layer: Any, given: Tensor, output: Tensor) -> bool:
    if given.is_meta:
        return True
    with torch.no_grad():
        expected = F.linear(given, layer.weight, layer.bias).float()
    if output.shape != expected.shape:
        return False
    return bool((output.float() - expected).norm() <= _LARGEST_ERROR * expected.norm())
