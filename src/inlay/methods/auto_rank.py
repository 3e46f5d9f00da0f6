"""The rank of `adapter.rank=auto`: a rule of thumb from the size of the data and of the layers.

A network keeps about 2 bits a parameter, and a token of an answer tells a trained base about 1 bit that it did not know. As
many parameters as trained tokens are therefore twice what the rows need.

Source: "Physics of Language Models: Part 3.3" (arXiv 2404.05405) for the bits of a parameter; "LoRA Without Regret"
(Thinking Machines, 2025) for those of a token, and for comparing the two.

Shapes: T tokens, I inputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from inlay.config import Config
from inlay.methods.base_modules import base_modules, base_parameters
from inlay.methods.target_modules import hit

LEAST, MOST = 8, 256
"""Ranks that the rule keeps to: a smaller one saves next to nothing, a larger one is rarely of use."""
_TOKENS: Final = 512
_LAYERS: Final = 8
_SHARE: Final = 0.9


def auto_rank(model: nn.Module, targets: Sequence[str], experts: Sequence[str], trained_tokens: int) -> tuple[int, str]:
    """(rank for an adapter on these layers of the bare base, reason)

    A power of two: other programs take no others.
    """
    sides = [_sides(layer) for layer in _adapted(model, targets).values()]
    tensors = dict(base_parameters(model))
    held = [tuple(tensors[path].shape) for path in hit(experts, tensors)]
    each = sum(map(sum, sides)) + sum(count * (out + inputs) for count, out, inputs in held)
    smallest = min([*map(min, sides), *(min(shape[1:]) for shape in held)])
    needed = 2 ** max(0, math.ceil(math.log2(max(1, trained_tokens) / each)))
    limit = 2 ** int(math.log2(smallest))
    rank = min(max(needed, LEAST), MOST, limit)
    bounds = f"from {LEAST} to {MOST}" + (f", at most the layers' {smallest}" if rank == limit < needed else "")
    return rank, (
        f"a rule of thumb: as many parameters as trained tokens ({trained_tokens:,}, and {each:,} a rank), {bounds}"
    )


def with_rank(config: Config, rank: int) -> Config:
    """The config with this rank."""
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": rank})})


def directions_hint(model: nn.Module, targets: Sequence[str], batches: Iterable[Mapping[str, Tensor]]) -> str:
    """Number of directions in which the inputs of the layers vary on the first rows, in words. One pass over 512 tokens.

    Source: EVA (arXiv 2410.07170), which gives a layer more rank the more directions its inputs vary in.
    """
    layers = _adapted(model, targets)
    some = list(layers)[:: max(1, len(layers) // _LAYERS)]
    seen: dict[str, list[Tensor]] = {}

    def see(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _layer, inputs: seen.setdefault(path, []).append(inputs[0].detach().flatten(0, -2).float())

    handles = [layers[path].register_forward_pre_hook(see(path)) for path in some]
    tokens = 0
    try:
        with torch.no_grad():
            for ids_T in _rows(batches):
                model(input_ids=ids_T[None], use_cache=False)
                tokens += len(ids_T)
    finally:
        for handle in handles:
            handle.remove()
    counts = sorted(_directions(torch.cat(inputs)) for inputs in seen.values())
    return f"on {tokens} tokens {_SHARE:.0%} of what the layers read varies in {counts[len(counts) // 2]} directions"


def _rows(batches: Iterable[Mapping[str, Tensor]]) -> Iterable[Tensor]:
    """The rows alone and without padding, up to 512 tokens in all."""
    left = _TOKENS
    for batch in batches:
        for ids_L, mask_L in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            yield (ids_T := ids_L[mask_L.bool()][:left])
            left -= len(ids_T)
            if left <= 0:
                return


def _directions(inputs_TI: Tensor) -> int:
    """Number of principal components that hold 90% of the variance."""
    centred = inputs_TI - inputs_TI.mean(0)
    variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0).clamp(min=0).cumsum(0)
    return int((variances < _SHARE * variances[-1]).sum()) + 1


def _adapted(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of the bare base that these targets name."""
    modules = dict(base_modules(model))
    return {path: modules[path] for path in hit(targets, modules)}


def _sides(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, also of a quantized one and of GPT-2's."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    inputs, outputs = layer.weight.shape
    return inputs, outputs
