"""Memory that a server will take, by part, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from inlay.engine.estimate import shape_of
from inlay.errors import ModelError
from inlay.hardware.facts import memory_facts
from inlay.models.base import parameter_count
from inlay.tasks.opened_base import OpenedBase

_STORED: Final = {"none": None, "nf4": 0.6, "int8": 1.1}
"""Bytes of a parameter by quantization; of an unquantized one those of its dtype."""
_SPARE_BYTES: Final = 256 << 20
"""For a step's own values, and Python."""
_LONGEST_SHARE: Final = 0.5
"""Of the free memory that keys and values take at most, where nobody says how much."""


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """Bytes by part."""

    weights: int
    """Of the base."""
    of_token: int
    """Keys and values of one token, in all layers."""
    adapters: int
    """Those that are loaded at the start."""
    free: int
    """Host memory before the start."""

    @staticmethod
    def of(base: OpenedBase, adapters: Iterable[int], free: int | None = None) -> MemoryNeeded:
        """The memory that a base and adapters of so many bytes take. `free` is that of this machine where it is not given."""
        config = base.architecture.get_text_config(decoder=True)
        heads = shape_of(config, "num_attention_heads", "n_head")
        width = shape_of(config, "head_dim", default=shape_of(config, "hidden_size", "n_embd") // heads)
        layers = shape_of(config, "num_hidden_layers", "n_layer")
        size = base.precision.dtype.itemsize
        stored = _STORED[base.precision.quantization] or size
        of_token = 2 * layers * shape_of(config, "num_key_value_heads", default=heads) * width * size
        there = memory_facts().available_bytes if free is None else free
        return MemoryNeeded(int(parameter_count(base.ref) * stored), of_token, sum(adapters), there)

    def cache_tokens(self, rows: int, context_length: int) -> int:
        """Tokens to keep keys and values of: as many as so many answers of half the context need, where memory allows.

        Never fewer than one answer of the whole context needs.
        """
        left = self.free - self.weights - self.adapters - _SPARE_BYTES
        affordable = int(left * _LONGEST_SHARE) // self.of_token
        return max(context_length, min(rows * context_length // 2, affordable))

    def require_room(self, cache_tokens: int) -> None:
        """Raises: ModelError with the parts where they do not fit."""
        cache = cache_tokens * self.of_token
        needed = self.weights + cache + self.adapters + _SPARE_BYTES
        if needed <= self.free:
            return
        parts = [
            ("weights of the base", self.weights),
            (f"keys and values of {cache_tokens:,} tokens ({_size(1000 * self.of_token)} per 1,000)", cache),
            ("adapters", self.adapters),
            ("steps", _SPARE_BYTES),
            ("together", needed),
            ("free here", self.free),
        ]
        table = "\n".join(f"  {name:<60}{_size(size):>10}" for name, size in parts)
        raise ModelError(
            f"not enough memory to serve this base:\n{table}\n"
            "Lower --set serve.cache_tokens (at least one answer's length), serve fewer adapters, or take a smaller base."
        )


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
