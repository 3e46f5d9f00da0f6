"""Weights in a base's files that the loaded model does not use: an error where config.json does not belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from torch import nn

from inlay.errors import ModelError, count_shown

_BUFFERS: Final = re.compile(r"(\.|^)(inv_freq|masked_bias|causal_mask|attn\.bias|attention\.bias)$")
"""Buffers in old files, computed anew by the model: rotary frequencies and causal masks."""


def refuse_unused(where: str, model: Any, unused: Iterable[str], *, part: bool = False) -> list[str]:
    """Warnings about weights that are not used and change nothing; each begins with `where`.

    `unused` are the names that they would have in the model. `part` says that only a part of the base is loaded, so that
    unused weights are expected. Raises: ModelError when one belongs to a module of the model: then config.json is not
    the one of these weights.
    """
    modules, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    modules |= {name.removeprefix(prefix): module for name, module in modules.items() if name.startswith(prefix)}
    counts = {name: len(module) for name, module in modules.items() if name and isinstance(module, nn.ModuleList)}
    left = sorted(name for name in unused if not _is_buffer(name, modules))
    beside = []
    for name in left:
        layers, number = _layer(name, counts)
        if layers and number >= counts[layers]:
            if not _predicts_further_tokens(layers, number - counts[layers], counts[layers], left, model):
                raise _other_depth(where, name, layers, counts, left)
        elif layers or _has_parameters(modules.get(name.rpartition(".")[0])):
            raise ModelError(
                f"{where}: {name} of its files has no place in the model that its config.json describes, which would "
                "compute something else. Put back the config.json that came with these weights."
            )
        elif not part:
            beside.append(name)
    warnings = []
    if beside:
        warnings.append(
            f"{where}: {count_shown(len(beside), 'weight of its files is', 'weights of its files are')} not used, "
            f"first {beside[0]}: no part of this model."
        )
    if _holds_two_heads(model):
        warnings.append(
            f"{where}: its config.json ties the head to the embedding, but its files hold both with different values. "
            "The head of the files is used; other programs may tie them."
        )
    return warnings


def _other_depth(where: str, name: str, layers: str, counts: dict[str, int], unused: Sequence[str]) -> ModelError:
    found = 1 + max(number for other in unused for there, number in [_layer(other, counts)] if there == layers)
    return ModelError(
        f"{where}: its files hold {found} {layers.rpartition('.')[2]}, its config.json names {counts[layers]}: {name} and "
        "others would be left out. Put back the config.json that came with these weights."
    )


def _is_buffer(name: str, modules: dict[str, nn.Module]) -> bool:
    return bool(_BUFFERS.search(name)) and not _has_parameters(modules.get(name.rpartition(".")[0]))


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(recurse=False), None) is not None


def _layer(name: str, counts: dict[str, int]) -> tuple[str, int]:
    """(the list of layers that a weight is in, its number); ("", -1) for one that is in none."""
    for layers in sorted(counts, key=len, reverse=True):
        if found := re.match(rf"{re.escape(layers)}\.(\d+)\.", name):
            return layers, int(found.group(1))
    return "", -1


def _predicts_further_tokens(layers: str, beyond: int, count: int, unused: Sequence[str], model: Any) -> bool:
    """Whether a layer beyond the last predicts further tokens (multi-token prediction), which inlay does not train."""
    further = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    return beyond < further and any(name.startswith(f"{layers}.{count + beyond}.eh_proj.") for name in unused)


def _holds_two_heads(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    return bool(tied and head is not None and embedding is not None and head.weight is not embedding.weight)
