"""Settings of PEFT's that inlay takes from an adapter folder, and names and shapes of its tensors.

The lists are closed: a setting that is not in them could change what the adapter computes, and is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from inlay.errors import AdapterError
from inlay.folder_files import SETTINGS, shown
from inlay.methods.method import PeftSettings

LARGEST_RANK: Final = 512
"""Of an adapter that inlay has not trained."""
_LARGEST_ALPHA: Final = 1e6
_MERGE_IT: Final = "Merge it into its base with PEFT, and name the merged model."


class Setting(NamedTuple):
    """The values of a setting that are taken."""

    takes: Callable[[Any], bool]
    meaning: str


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and 0 < value <= _LARGEST_ALPHA


_SWITCH: Final = Setting(lambda value: isinstance(value, bool), "true or false")
_TEXT: Final = Setting(lambda value: value is None or isinstance(value, str), "a text or null")
_NAMES: Final = Setting(lambda value: value is None or _is_names(value), "a list of names or null")
_PATTERN: Final = Setting(
    lambda value: value is None or isinstance(value, str) or _is_names(value), "names, a text or null"
)
_ANY: Final = Setting(lambda _: True, "")
"""Settings of a training or a tool, which inlay does not read."""
_OFF: Final = Setting(lambda value: value is None or value is False or value in ([], {}, ""), "off")

COMMON: Final[dict[str, Setting]] = {
    "peft_type": _TEXT, "peft_version": _TEXT, "base_model_name_or_path": _TEXT, "revision": _TEXT,
    "task_type": Setting(lambda value: value in (None, "CAUSAL_LM"), "CAUSAL_LM, as the task of its base, or null"),
    "auto_mapping": _ANY, "inference_mode": _SWITCH, "modules_to_save": _OFF,
}  # fmt: skip
"""Settings that each of PEFT's adapters has."""
IN_LAYERS: Final[dict[str, Setting]] = COMMON | {
    "target_modules": _PATTERN, "exclude_modules": _PATTERN, "fan_in_fan_out": _SWITCH,
}  # fmt: skip
IA3: Final[dict[str, Setting]] = IN_LAYERS | {"feedforward_modules": _PATTERN, "init_ia3_weights": _SWITCH}
LORA: Final[dict[str, Setting]] = IN_LAYERS | {
    "r": Setting(lambda value: _is_whole(value) and value > 0, "a whole number of at least 1"),
    "lora_alpha": Setting(_is_alpha, "above 0 and at most 1e6"),
    "lora_dropout": Setting(lambda value: _is_number(value) and 0 <= value < 1, "from 0 to below 1"),
    "bias": Setting(lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "use_rslora": _SWITCH, "use_dora": _SWITCH, "ensure_weight_tying": _SWITCH, "target_parameters": _NAMES,
    "rank_pattern": Setting(
        lambda value: value is None or (isinstance(value, dict) and all(_is_whole(v) and v > 0 for v in value.values())),
        "a whole number of at least 1 for each name",
    ),
    "alpha_pattern": Setting(
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_alpha, value.values()))),
        "above 0 and at most 1e6 for each name",
    ),
    "layers_to_transform": Setting(
        lambda value: value is None or _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value))),
        "numbers of layers or null",
    ),
    "layers_pattern": _PATTERN,
    "init_lora_weights": Setting(lambda value: value is None or isinstance(value, (bool, str)), "a text or a switch"),
    "eva_config": _ANY, "corda_config": _ANY, "lora_ga_config": _ANY, "loftq_config": _ANY,  # of a start: `refuse_start`
    "megatron_core": _TEXT, "qalora_group_size": _ANY,  # nothing without the switch beside each
    **dict.fromkeys((
        "megatron_config", "trainable_token_indices", "velora_config", "alora_invocation_tokens", "use_qalora",
        "monteclora_config", "layer_replication", "lora_bias", "use_bdlora", "arrow_config", "kasa_config",
        "enable_lora", "merge_weights",  # of PEFT before 0.3
    ), _OFF),
}  # fmt: skip
PROMPT_TUNING: Final[dict[str, Setting]] = COMMON | {
    "num_virtual_tokens": Setting(lambda value: _is_whole(value) and 0 < value <= 65_536, "a whole number of at least 1"),
    "num_transformer_submodules": Setting(lambda value: value in (None, 1), "1"),
    **dict.fromkeys(("token_dim", "num_attention_heads", "num_layers"), _ANY),
    **dict.fromkeys(
        ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"), _ANY
    ),
}  # fmt: skip

_STARTS_BESIDE_THE_BASE: Final = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it is; all others move a part of its weights into A and B."""
_CONVERTIBLE: Final = ("pissa", "olora", "corda", "lora_ga")


def refuse_settings(folder: Path, settings: PeftSettings, known: Mapping[str, Setting]) -> None:
    """Raises: AdapterError for a setting that is unknown, or has a value under which it would compute something else."""
    if unknown := sorted(set(settings) - set(known)):
        raise AdapterError(
            f"{folder}: {SETTINGS} has {', '.join(map(shown, unknown[:5]))}, which inlay does not know and which could "
            f"change what the adapter computes. {_MERGE_IT}"
        )
    if used := [name for name, value in settings.items() if known[name] is _OFF and not _OFF.takes(value)]:
        raise AdapterError(
            f"{folder}: uses PEFT's {', '.join(sorted(used))}, which inlay does not load: its A, B and scale alone would "
            f"compute something else. {_MERGE_IT}"
        )
    for name, value in settings.items():
        if not known[name].takes(value):
            raise AdapterError(
                f"{folder}: {name} of {SETTINGS} is {shown(value)}; it must be {known[name].meaning}. Correct it, or get "
                "the adapter once more."
            )


def refuse_start(folder: Path, start: Any) -> None:
    """Raises: AdapterError for a LoRA whose initialization moved a part of the base's weights into A and B."""
    kind = str(start).lower()
    if kind in _STARTS_BESIDE_THE_BASE:
        return
    remedy = (
        "Save it once more with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=START), which "
        "makes it an ordinary LoRA."
        if kind.startswith(_CONVERTIBLE)
        else _MERGE_IT
    )
    raise AdapterError(
        f"{folder}: was started with {shown(start)} (init_lora_weights), so it belongs on a base from which its start was "
        f"taken away, and not on the base as it is. {remedy}"
    )


def refuse_names(folder: Path, tensors: Collection[str], endings: Collection[str]) -> None:
    """Raises: AdapterError for a tensor that is none of the method's, or none of a layer."""
    form = re.compile(rf"base_model\.model(\.[A-Za-z0-9_-]+){{1,64}}\.({'|'.join(map(re.escape, endings))})")
    for name in tensors:
        if not form.fullmatch(name):
            raise AdapterError(
                f"{folder}: holds a tensor {shown(name)}, which has no place in this kind of adapter. Tensors are named "
                f"base_model.model.LAYER and then one of {', '.join(endings)}."
            )


def refuse_ranks(folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError for a tensor of another rank than the settings say."""
    rank = settings.get("r", 8)
    for name, held in _ranks_held(tensors):
        # of a tensor with several experts each has that rank
        is_other = held % rank if settings.get("target_parameters") else held != rank
        if is_other and not settings.get("rank_pattern"):
            raise AdapterError(f"{folder}: {shown(name)} has rank {held}, but {SETTINGS} says {rank}.")


def refuse_large_ranks(folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError for a rank above that of any adapter in use."""
    stated = {"r": settings.get("r", 0), **(settings.get("rank_pattern") or {})}
    held = {} if settings.get("target_parameters") else dict(_ranks_held(tensors))
    for name, rank in {**stated, **held}.items():
        if rank > LARGEST_RANK:
            raise AdapterError(
                f"{folder}: {shown(name)} is a rank of {rank}; of an adapter from elsewhere at most {LARGEST_RANK} is taken. "
                f"{_MERGE_IT}"
            )


def _ranks_held(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, int]]:
    return ((n, len(t)) for n, t in tensors.items() if n.endswith((".lora_A.weight", ".lora_embedding_A")))


def refuse_alpha_patterns(folder: Path, settings: PeftSettings) -> None:
    """Raises: AdapterError for an alpha that is given by a regular expression: no tensor tells which layers it means."""
    for pattern in settings.get("alpha_pattern") or {}:
        if literal(pattern) is None:
            raise AdapterError(
                f"{folder}: alpha_pattern of {SETTINGS} gives an alpha to the regular expression {shown(pattern)}, and "
                "inlay runs none from a file. Write the names of the layers, or their ends, in its place."
            )


def refuse_tied_embedding(folder: Path, settings: PeftSettings, tensors: Collection[str]) -> None:
    """Raises: AdapterError for an adapter of the embedding that PEFT also puts on the head."""
    if settings.get("ensure_weight_tying") and any("lora_embedding_" in name for name in tensors):
        raise AdapterError(
            f"{folder}: ties an adapter of the embedding to the head (ensure_weight_tying), which inlay does not load. "
            f"{_MERGE_IT}"
        )


def literal(pattern: str) -> tuple[str, bool] | None:
    """(a layer's name or the end of one, whether it is all of the name) for a pattern that matches one text only.

    None for any other regular expression.
    """
    body = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").replace("\\_", "_").replace("\\-", "-")
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", body):
        return None
    return body, pattern.startswith("^")


def values_by_layer(patterns: Mapping[str, Any] | None, layers: Iterable[str], default: Any) -> dict[str, Any]:
    """The value of each layer: that of the first literal pattern that fits it, as PEFT has it; other patterns are skipped."""
    ends: dict[tuple[str, bool], tuple[int, Any]] = {}
    for place, (pattern, value) in enumerate((patterns or {}).items()):
        if (found := literal(pattern)) is not None:
            ends.setdefault(found, (place, value))
    values = {}
    for layer in layers:
        parts = layer.split(".")
        fitting = [ends.get((".".join(parts[at:]), False)) for at in range(len(parts))] + [ends.get((layer, True))]
        first = min((each for each in fitting if each is not None), key=lambda each: each[0], default=(0, default))
        values[layer] = first[1]
    return values
