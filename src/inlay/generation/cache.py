"""A key/value cache that is written in place: the cache of transformers copies all of itself for every token."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


@cache
def cache_argument() -> str:
    """The argument by which `generate` and a model's `forward` take a cache in this version of transformers."""
    from transformers import GenerationMixin  # takes a second, which who only tokenizes need not wait

    # transformers 5.24 renamed it, and warns for whoever still says past_key_values
    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in known else "past_key_values"


def cache_for(config: Any, length: int) -> DynamicCache | None:
    """An empty cache for so many positions; None where transformers had better choose.

    Layers that keep less than all positions stay those of transformers.
    """
    if config.is_encoder_decoder:
        return None
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    if not any(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_Reserved(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Reserved(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """Keys and values of one layer, (B, heads, positions, size), at the front of memory that is reserved once."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values with the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._whole = tuple(
                new.new_empty((*new.shape[:2], self._length, new.shape[3])) for new in (key_states, value_states)
            )
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values
