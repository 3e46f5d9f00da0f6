"""Trained adapters apart from any model, and their files in PEFT's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.errors import AdapterError
from inlay.methods import full
from inlay.methods.adapter import require_compatible
from inlay.methods.adapter_file_checks import CARD, SETTINGS, WEIGHTS
from inlay.methods.lora import START
from inlay.methods.method import TRAINED, Method, PeftSettings
from inlay.methods.peft_names import tensors_of_target_modules
from inlay.methods.table import METHODS, adapters_on, method_of_type
from inlay.models.base import BaseRef
from inlay.models.named_class import NamedClass, pattern_for_both, renamed, reverse
from inlay.typed_json import JsonObject


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One trained adapter, away from any model. Owns its memory.

    For an adapter: PEFT's settings, and its tensors under PEFT's names. After full fine-tuning: a single setting, and all
    weights under the model's own names.
    """

    settings: PeftSettings
    tensors: dict[str, Tensor]
    """An A that was initialized from the base's weights has START in its name; only checkpoints hold it."""

    @property
    def method(self) -> Method:
        """The method that it was trained with."""
        method = method_of_type(self.settings["peft_type"])
        assert method is not None, "refused when it was read"
        return method

    @staticmethod
    def of(model: Any, name: str = TRAINED) -> AdapterState:
        """A copy of the adapter on a model, in fp32 on the CPU."""
        method = adapters_on(model)[name]
        tensors = {k: v.detach().float().cpu().clone() for k, v in method.tensors(model, name).items()}
        return AdapterState(method.settings(model, name), tensors)

    def exported(self) -> AdapterState:
        """The state without tensors that only a resumed run needs."""
        return AdapterState(self.settings, {k: v for k, v in self.tensors.items() if f".{START}." not in k})

    def under(self, named: NamedClass | None) -> AdapterState:
        """The state with the module names of the class that the base's config.json names."""
        if named is None or not named.prefixes:
            return self
        modules = tensors_of_target_modules(self.tensors, self.settings)
        settings = self.settings | {"target_modules": pattern_for_both(modules, named.prefixes)}
        return AdapterState(settings, renamed(self.tensors, named.prefixes))

    def on(self, base: BaseRef) -> AdapterState:
        """The state with settings by which other programs find its base."""
        return AdapterState(self.settings | base.peft_settings(), self.tensors)

    def write(self, folder: Path) -> None:
        """Writes `adapter_model.safetensors` and `adapter_config.json` into the folder.

        Raises: AdapterError when a value is not finite, with nothing written.
        """
        assert not any(f".{START}." in name for name in self.tensors), "export it first"
        for name, tensor in self.tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{folder}: {name} is not finite; nothing was written.")
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path, base: BaseRef | str | None = None) -> AdapterState:
        """The adapter in a folder.

        Raises: AdapterError when a file is missing or broken, a value is not finite or absurd, or its card names
        another base than `base`, or than the one that was recorded with that digest.
        """
        try:
            if (folder / "config.json").is_file():
                settings, tensors = {"peft_type": full.FULL}, full.read(folder)
            else:
                settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
                tensors = load_file(folder / WEIGHTS)
            card = json.loads((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else {}
            if moved := card.get("module_names"):
                tensors = renamed(tensors, reverse(moved))
            _require_usable(folder, settings, tensors)
        except (OSError, ValueError, AttributeError, SafetensorError) as error:
            raise AdapterError(f"{folder}: not a usable adapter folder ({error}).") from None
        if difference := _difference(card, base):
            raise AdapterError(
                f"{folder}: was trained on another base ({card.get('base_model')}, {str(card['base_digest'])[:12]}) than "
                f"this one: {difference}. It would not do what was measured."
            )
        return AdapterState(settings, tensors)

    def load_into(self, model: Any, name: str = TRAINED) -> None:
        """Copies the tensors into the adapter of that name. Raises: AdapterError on any name or shape that differs."""
        adapters_on(model)[name].load(model, self.tensors, name)

    @staticmethod
    def broadcast(copy: Callable[[Tensor], Tensor], model: Any, name: str = TRAINED) -> None:
        """Replaces each tensor of the adapter by `copy(tensor)`, in the order of their names: the same on all processes."""
        state = AdapterState.of(model, name)
        copied = {tensor: copy(state.tensors[tensor]) for tensor in sorted(state.tensors)}
        AdapterState(state.settings, copied).load_into(model, name)

    def attach_to(self, model: nn.Module, name: str = TRAINED) -> Any:
        """The model with this adapter, ready for inference. Raises: AdapterError if it does not fit."""
        require_compatible(model, self.method, name)
        return self.method.attach_stored(model, self.settings, self.tensors, name)


def _require_usable(folder: Path, settings: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError, or a ValueError that says what is wrong with the files."""
    method = method_of_type(settings.get("peft_type")) if isinstance(settings, dict) else None
    if method is None:
        known = " or ".join(method.peft_type for method in METHODS.values())
        raise ValueError(f"{SETTINGS} does not describe an adapter of {known}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{folder}: {name} holds values that are not finite. The adapter is damaged.")
    method.require_usable(folder, settings, tensors)


def _difference(card: JsonObject, base: BaseRef | str | None) -> str:
    if base is None or card.get("base_digest") is None:
        return ""
    if isinstance(base, str):
        return "" if base == card["base_digest"] else base[:12]
    return base.difference(card)
