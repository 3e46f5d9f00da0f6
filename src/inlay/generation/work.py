"""The tokens of one step of the loop, and what computes them. T: tokens of the step, W: wanted rows of logits, V: vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Segment(NamedTuple):
    """Neighbouring tokens of one answer in a step."""

    start: int
    stop: int
    """Its tokens are `ids_T[start:stop]`."""
    position: int
    """Position of the first in its sequence; what stands before it is in the blocks."""
    blocks: Sequence[int]
    """Blocks of the key/value pool that hold its sequence, in order; there is room for the new tokens."""
    adapter: str | None
    """Digest of the adapter's weights; None for the base alone."""
    is_decode: bool
    """Whether it is one generated token; a piece of a prompt otherwise. Which kernel a token takes depends on this alone,
    never on the rest of the step: so that an answer in a batch is the answer alone, bit for bit."""


@dataclass(frozen=True, slots=True)
class Work:
    """One step: decode tokens first, then pieces of prompts, flat."""

    ids_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]
    wanted_W: Tensor
    """Places in T whose next-token logits are wanted."""


class Forward(Protocol):
    """A base that computes steps; its keys and values lie in a pool of blocks."""

    @property
    def blocks(self) -> int:
        """Blocks of the pool; they are numbered from 0."""
        raise NotImplementedError

    @property
    def context_length(self) -> int:
        """Tokens of a sequence, at most."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""
        raise NotImplementedError

    def logits(self, work: Work) -> Tensor:
        """(W, V) float32. Writes the keys and values of the step's tokens into their blocks."""
        raise NotImplementedError

    def copy_block(self, source: int, target: int, tokens: int) -> None:
        """The first so many tokens of a block, in all layers, into another block."""
        raise NotImplementedError


class Adapters(Protocol):
    """The adapters in memory: what a `Forward` asks at every linear layer of the base."""

    def sites(self) -> frozenset[str]:
        """Exact module names that any adapter in memory changes."""
        raise NotImplementedError

    def inputs(self, site: str, x_TI: Tensor, work: Work) -> Tensor:
        """The layer's input, with h of each token's own adapter: what W is multiplied with. The same tensor where no
        token has one."""
        raise NotImplementedError

    def add(self, site: str, x_TI: Tensor, y_TO: Tensor, work: Work) -> Tensor:
        """The layer's output with each token's own adapter: of `y = W (h ⊙ x) + bias` it is `g ⊙ y + B A x + b`, see
        `Gain`. `x` is the layer's input without h; y is overwritten.

        Rows behind those of the segments are padding.
        Tokens of the base alone keep their output bit for bit.
        """
        raise NotImplementedError
