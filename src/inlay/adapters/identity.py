"""Identity of a stored adapter: digests of what it computes, over the tensors that are then used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from inlay.adapters.library import Entry, held
from inlay.adapters.names import entry_at
from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods.adapter_file_checks import values_by_layer
from inlay.methods.adapter_state import AdapterState
from inlay.methods.method import PeftSettings
from inlay.models.base import BaseRef
from inlay.storage import read_manifest

_NOT_COMPUTED_WITH: Final = frozenset((
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_ia3_weights", "init_lora_weights", "lora_dropout",
    "peft_version", "revision", "runtime_config", "task_type",
))  # fmt: skip
"""Settings of PEFT that change nothing of what a stored adapter computes."""
_A: Final = re.compile(r"\.lora_(embedding_)?A\b")
_PREFIX: Final = "base_model.model."
_PART: Final = re.compile(r"\.(?:lora_|ia3_)")


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Figures of an adapter's weights, under the names that a `Card` has them by."""

    weights_digest: str
    method: str
    rank: int | None
    modules: int
    parameters: int
    bytes: int

    @staticmethod
    def of(state: AdapterState, base_digest: str) -> WeightFacts:
        """The facts of an adapter for the base with this digest."""
        ranks = [tensor.shape[0] for name, tensor in state.tensors.items() if _A.search(name)]
        modules = {_PART.split(name)[0] for name in state.tensors if _PART.search(name)}
        return WeightFacts(
            weights_digest(base_digest, state.settings, state.tensors),
            state.method.name,
            max(ranks, default=None),
            len(modules),
            sum(tensor.numel() for tensor in state.tensors.values()),
            sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values()),
        )


def weights_digest(base_digest: str, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of what an adapter computes: its base, its settings, and name, dtype, shape and bytes of each tensor."""
    computed = _canonical(settings) | _decided_by_order(settings, tensors)
    digest = hashlib.sha256(json.dumps([base_digest, computed], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity(weights: str, tokenizer_hash: str, template_hash: str) -> str:
    """Hex digest of a `weights_digest`, a tokenizer and a chat template: all that decides an adapter's answers."""
    return hashlib.sha256(json.dumps([weights, tokenizer_hash, template_hash]).encode()).hexdigest()


def read_entry(entry: Entry, base: BaseRef | str | None = None) -> AdapterState:
    """The adapter of an entry, whose digest is that of its card: computed over these very tensors, not over the files.

    Raises: AdapterError when it is damaged, or was made for another base than `base`; StorageError when its manifest is.
    """
    with held(entry):
        manifest = read_manifest(entry.folder)
        state = AdapterState.read(entry.folder, base)
    card = entry.card
    found = weights_digest(card.base_digest, state.settings, state.tensors)
    named = identity(found, card.tokenizer_hash, card.chat_template_hash)
    if not found == card.weights_digest or not named == card.identity == manifest.get("identity"):
        raise AdapterError(
            f"{entry.ref}: its weights or settings are not those that were added (digest {found[:12]}, card "
            f"{card.weights_digest[:12]}). Remove it and add it again: inlay adapters remove {entry.ref}"
        )
    return state


@contextlib.contextmanager
def start_held(config: Config) -> Iterator[None]:
    """Inside, the library adapter that a training starts from cannot be removed. Raises: AdapterError when it is damaged."""
    entry = entry_at(config.adapter.start_from) if config.adapter.start_from else None
    if entry is None:
        yield
        return
    with held(entry):
        read_entry(entry)
        yield


def _canonical(settings: PeftSettings) -> dict[str, Any]:
    """The settings that may change what is computed; one that is at an empty default counts as absent."""
    kept = ((name, _plain(value)) for name, value in settings.items() if name not in _NOT_COMPUTED_WITH)
    return {name: value for name, value in kept if value not in (None, False, [], {}, "none")}


def _decided_by_order(settings: PeftSettings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Value of each module whose first fitting pattern is another one than in sorted order."""
    modules = sorted({_PART.split(name)[0].removeprefix(_PREFIX) for name in tensors if _PART.search(name)})
    found = {}
    for key in ("alpha_pattern", "rank_pattern"):
        patterns = settings.get(key) or {}
        now = values_by_layer(patterns, modules, None)
        in_order = values_by_layer(dict(sorted(patterns.items())), modules, None)
        if moved := {module: _plain(now[module]) for module in modules if now[module] != in_order[module]}:
            found[f"{key} by order"] = moved
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(_ordered(_plain(one) for one in value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ordered(values: Iterator[Any]) -> list[Any]:
    return sorted(values, key=lambda one: json.dumps(one, sort_keys=True))
