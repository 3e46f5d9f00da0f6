"""Trained adapters apart from any model, and their files in PEFT's format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from inlay.errors import AdapterError
from inlay.folder_files import LARGEST_JSON, SETTINGS, WEIGHTS, in_a_line, shown
from inlay.methods import full
from inlay.methods.adapter import require_compatible
from inlay.methods.adapter_file_checks import LARGEST_RANK, refuse_large_ranks
from inlay.methods.adapter_files import CARD, LARGEST_WEIGHTS, Weights, read_card, read_json
from inlay.methods.lora import START
from inlay.methods.method import TRAINED, Method, PeftSettings
from inlay.methods.peft_names import tensors_of_target_modules
from inlay.methods.table import METHODS, adapters_on, method_of_type
from inlay.models.base import BaseRef, bytes_of_lora
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
    folder: Path | None = field(default=None, compare=False)
    """Where it was read, for messages."""

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
        # only the outer keys are sorted: of the patterns of alpha_pattern and rank_pattern, the first that fits counts
        settings = json.dumps(dict(sorted(self.settings.items())), indent=2)
        (folder / SETTINGS).write_text(settings + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path, base: BaseRef | str | None = None) -> AdapterState:
        """The adapter in a folder, whoever wrote it. No pattern or program in it is run, and no link followed.

        Raises: AdapterError when a file is missing or broken, a setting is one that inlay does not apply, a value is not
        finite or absurd, or its card names another base than `base`, or than the one that was recorded with that digest.
        """
        card = read_card(folder)
        if (folder / "config.json").is_file() and not os.path.lexists(folder / SETTINGS):
            try:
                settings, tensors = {"peft_type": full.FULL}, full.read(folder)
            except (OSError, ValueError, AttributeError, SafetensorError) as error:
                raise AdapterError(f"{folder}: not a usable model folder ({in_a_line(error)}).") from None
            _require_base(folder, card, base)
        else:
            settings = read_json(folder, SETTINGS)
            tensors = _tensors(folder, settings, card, base)
        if moved := card.get("module_names"):
            tensors = renamed(tensors, reverse(moved))
        return AdapterState(settings, tensors, folder)

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
        try:
            return self.method.attach_stored(model, self.settings, self.tensors, name)
        except AdapterError as error:
            raise AdapterError(f"{self.folder or 'adapter'}: {str(error).removeprefix('adapter: ')}") from None


def _tensors(folder: Path, settings: PeftSettings, card: JsonObject, base: BaseRef | str | None) -> dict[str, Tensor]:
    """The tensors of an adapter file, read after all that can be judged without them. Raises: AdapterError."""
    method = method_of_type(settings.get("peft_type"))
    if method is None or method.peft_type == full.FULL:
        known = " or ".join(method.peft_type for method in METHODS.values() if method.peft_type != full.FULL)
        raise AdapterError(
            f"{folder}: {SETTINGS} does not describe an adapter of {known} (its peft_type is "
            f"{shown(settings.get('peft_type'))}). Merge it into its base with PEFT, and name the merged model."
        )
    with Weights(folder) as weights:
        method.require_usable(folder, settings, weights.shapes)
        _require_base(folder, card, base)
        rank = LARGEST_RANK
        if card.get("base_digest") is None:
            refuse_large_ranks(folder, settings, weights.shapes)
        else:  # one of inlay's own has the rank that its config says
            rank = max(rank, settings.get("r", 0))
        if isinstance(base, BaseRef):
            limit = bytes_of_lora(base, rank) + LARGEST_JSON
            weights.require_at_most(limit, f"rank {rank} on all layers of {base.name} can have")
        elif card.get("base_digest") is None:
            weights.require_at_most(LARGEST_WEIGHTS, "an adapter may have whose base is not known")
        return weights.read()


def _require_base(folder: Path, card: JsonObject, base: BaseRef | str | None) -> None:
    """Raises: AdapterError where the card names another base."""
    try:
        difference = _difference(card, base)
        if not all(isinstance(name, str) for pair in (card.get("module_names") or {}).items() for name in pair):
            raise ValueError("its module_names are no names")
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise AdapterError(f"{folder}: {CARD} cannot be used ({in_a_line(error)}). Get the folder once more.") from None
    if difference:
        raise AdapterError(
            f"{folder}: was trained on another base ({shown(card.get('base_model'))}, {shown(card['base_digest'])[:12]}) "
            f"than this one: {difference}. It would not do what was measured."
        )


def _difference(card: JsonObject, base: BaseRef | str | None) -> str:
    if base is None or card.get("base_digest") is None:
        return ""
    if isinstance(base, str):
        return "" if base == card["base_digest"] else base[:12]
    return base.difference(card)
