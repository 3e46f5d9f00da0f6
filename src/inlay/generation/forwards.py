"""The `Forward` of a base: its own engine where it has one and is proved equal, else transformers' modules."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from inlay.generation.blocks import BLOCK, blocks_for
from inlay.generation.direct import DirectForward, refusal
from inlay.generation.plain import PlainForward, relative_distance
from inlay.generation.work import Adapters, Segment, Work

_TRIED: Final = BLOCK + 12
"""Tokens of the prompt that the engine is tried with: more than a block."""
_distances: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Of models that were tried."""
_NEAR: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest relative distance from the model's own logits."""


def forward_of(
    model: Any, blocks: int, adapters: Adapters | None = None, *, autocast_dtype: torch.dtype | None = None
) -> DirectForward | PlainForward:
    """Computes steps over a pool of so many blocks. `autocast_dtype` as in `Precision`.

    Raises: ModelError, with the reason, for a model whose answers cannot share a step.
    """
    if autocast_dtype is None and refusal(model) is None:
        direct = DirectForward(model, blocks, adapters)
        if model not in _distances:
            _distances[model] = _distance(model, DirectForward(model, blocks_for(_TRIED)))
        if _distances[model] <= _NEAR[direct.dtype]:
            return direct
    return PlainForward(model, blocks, adapters, autocast_dtype=autocast_dtype)


@torch.inference_mode()
def _distance(model: Any, direct: DirectForward) -> float:
    """From the model's own logits of a prompt and two tokens after it, relative to their size."""
    length = min(_TRIED, direct.context_length)
    ids_T = torch.randint(direct.vocabulary, (length,), generator=torch.Generator().manual_seed(0))
    bounds, found = (0, max(1, length - 2), *range(max(2, length - 1), length + 1)), []
    for start, stop in pairwise(bounds):
        segment = Segment(0, stop - start, start, range(blocks_for(length)), None, start > 0)
        places_T = torch.arange(start, stop)
        found.append(direct.logits(Work(ids_T[start:stop], places_T, (segment,), places_T - start)))
    own_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float()
    return relative_distance(torch.cat(found), own_TV)
