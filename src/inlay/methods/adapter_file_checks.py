"""Checks of adapter folders: PEFT's files are accepted where A, B and the scale decide all that the adapter computes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from inlay.errors import AdapterError
from inlay.methods.method import PeftSettings

WEIGHTS, SETTINGS, CARD = "adapter_model.safetensors", "adapter_config.json", "card.json"
COMMON_SETTINGS: Final = ("task_type", "base_model_name_or_path", "inference_mode")
LAYER_SETTINGS: Final = ("target_modules", "exclude_modules", "fan_in_fan_out")
"""Settings of PEFT that every adapter has, and every adapter in layers."""
_LARGEST_ALPHA = 1e6
_MATCHING_S: Final = 5.0
_HARMLESS: Final = frozenset((
    "peft_type", "peft_version", "auto_mapping", "revision", "megatron_config", "megatron_core", "runtime_config",
    "qalora_group_size", "init_ia3_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config",
    "init_lora_weights", "ensure_weight_tying",
))  # fmt: skip
"""Settings of PEFT that do not change what a stored adapter computes, or that have a check of their own."""
_STARTS_BESIDE_THE_BASE: Final = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it is; all others move a part of its weights into A and B."""
_CONVERTIBLE: Final = ("pissa", "olora", "corda", "lora_ga")


def refuse_other_meaning(folder: Path, settings: PeftSettings, applied: Iterable[str]) -> None:
    """Raises: AdapterError for a setting beside the applied ones that changes, or may, what the adapter computes."""
    known = {*applied, *_HARMLESS}
    used = sorted(name for name, value in settings.items() if value and name not in known)
    if used:
        raise AdapterError(
            f"{folder}: uses PEFT's {', '.join(used)}, which inlay does not load: its A, B and scale alone would "
            "compute something else. Merge it into its base with PEFT, and name the merged model."
        )


def refuse_start(folder: Path, start: Any) -> None:
    """Raises: AdapterError for a LoRA whose initialization moved a part of the base's weights into A and B."""
    if start in _STARTS_BESIDE_THE_BASE:
        return
    kind = str(start).lower()
    remedy = (
        "Save it once more with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=START), which "
        "makes it an ordinary LoRA"
        if kind.startswith(_CONVERTIBLE)
        else "Merge it into its base with PEFT, and name the merged model"
    )
    raise AdapterError(
        f"{folder}: was started with {start} (init_lora_weights), so it belongs on a base from which its start was "
        f"taken away, and not on the base as it is. {remedy}."
    )


def refuse_absurd(folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError for a LoRA of no usable alpha or rank."""
    rank = settings.get("r")
    for name, value in {"lora_alpha": settings.get("lora_alpha"), **(settings.get("alpha_pattern") or {})}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LARGEST_ALPHA:
            raise AdapterError(f"{folder}: alpha of {name} is {value!r}; it must be above 0 and at most 1e6.")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"{folder}: its rank is {rank!r}; it must be a whole number of at least 1.")
    for name, tensor in tensors.items():
        held = tensor.shape[0] if name.endswith("lora_A.weight") else None
        # of a tensor with several experts each has that rank
        is_other = held is not None and (held % rank if settings.get("target_parameters") else held != rank)
        if is_other and not settings.get("rank_pattern"):
            raise AdapterError(f"{folder}: {name} has rank {held}, but {SETTINGS} says {rank}.")
    if settings.get("ensure_weight_tying") and any("lora_embedding_" in name for name in tensors):
        raise AdapterError(
            f"{folder}: ties an adapter of the embedding to the head (ensure_weight_tying), which inlay does not load. "
            "Merge it into its base with PEFT, and name the merged model."
        )


def refuse_endless_patterns(settings: PeftSettings, names: Iterable[str]) -> None:
    """Raises: AdapterError when a regular expression of the adapter is invalid, or takes too long on the module names.

    They are tried in a process of their own, which can be stopped.
    """
    whole = [settings.get(key) for key in ("target_modules", "exclude_modules", "feedforward_modules")]
    given = [*(settings.get("rank_pattern") or ()), *(settings.get("alpha_pattern") or ())]
    layers = settings.get("layers_pattern") or ()
    given += [layers] if isinstance(layers, str) else layers
    patterns = [text for text in (*whole, *given) if isinstance(text, str) and re.search(r"[*+{|(\[\\]", text)]
    if not patterns:
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL, *patterns], input="\n".join(names), text=True,
            capture_output=True, timeout=_MATCHING_S, check=False, encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AdapterError(
            f"adapter: a regular expression of its {SETTINGS} takes more than {_MATCHING_S:.0f} s on the names of this "
            f"base's layers ({_short(patterns)}). List the layers in target_modules instead."
        ) from None
    except OSError:  # no second process to be had here
        return
    if tried.returncode:
        last = tried.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise AdapterError(f"adapter: a regular expression of its {SETTINGS} cannot be used ({last[0]}).")


_TRIAL = """
import re, sys
for name in sys.stdin.read().split("\\n"):
    for pattern in sys.argv[1:]:
        re.fullmatch(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name), re.match(rf".*\\.{pattern}\\.(\\d+)\\.", name)
"""


def _short(patterns: list[str]) -> str:
    text = ", ".join(patterns)
    return text if len(text) <= 80 else f"{text[:79]}…"
