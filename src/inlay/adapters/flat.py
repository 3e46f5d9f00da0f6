"""The flat form of an adapter, which every program that serves LoRA reads alike.

The scale is folded into B, all modules have one rank, and alpha is that rank: no rsLoRA, no patterns. Programs differ in
how they scale an adapter of unequal ranks, or of a scale other than alpha/r; here the scale is 1 for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inlay.adapters.lowrank import BaseParameters, LowRank, padded, state_of
from inlay.methods.adapter_state import AdapterState

RANK_CLASSES: Final = (8, 16, 32, 64, 128, 256)
"""Ranks that servers have kernels for."""
_STEP: Final = 64


def rank_class(rank: int) -> int:
    """The least class that holds the rank; above the largest the next multiple of 64, which not every server takes."""
    return next((each for each in RANK_CLASSES if each >= rank), -(-rank // _STEP) * _STEP)


def flat(adapter: LowRank, base: BaseParameters | None = None) -> AdapterState:
    """The adapter in flat form, under PEFT's names. `base` is needed where it changes biases."""
    rank = rank_class(adapter.rank)
    factors = {module: padded(each, rank) for module, each in adapter.factors.items()}
    return state_of(replace(adapter, factors=factors), base)
