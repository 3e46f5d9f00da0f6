"""The adapters in memory, all on one base: many of them act in one step, each on its own tokens.

An adapter is known by the digest of its weights alone. Its memory goes when nobody holds it any more.

Shapes: T tokens of a step, of which the first D are generated ones; I inputs and O outputs of a module, R rank.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor

from inlay.errors import AdapterError
from inlay.generation.gain import Gain
from inlay.generation.work import Segment, Work

LEAST_ROWS: Final = 16
"""A matmul of so many rows gives each of them the same bits, however many others there are and whatever they hold."""
RANKS: Final = 4
"""Ranks are filled up to a multiple of it with zeros: the rows of a matmul with one column do depend on their number."""


class _Part(NamedTuple):
    """One adapter on one module, as it is computed."""

    A_RI: Tensor | None
    B_RO: Tensor | None
    """Transposed: an output row is a sum of its rows."""
    g_O: Tensor | None
    h_I: Tensor | None
    b_O: Tensor | None
    is_embedding: bool

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(each.nbytes for each in self[:5] if isinstance(each, Tensor))


@dataclass(slots=True)
class _Held:
    """One adapter in memory."""

    parts: dict[str, _Part]
    holders: int = 0
    is_retired: bool = False
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = sum(part.bytes for part in self.parts.values())


class Group(NamedTuple):
    """Tokens of one adapter that take the same kernel."""

    parts: Mapping[str, _Part]
    tokens: slice | Tensor
    """Of a piece of a prompt a slice; of generated tokens their places."""


class Bank:
    """Adapters in memory; an `Adapters` of `inlay.generation.work`. Loading and holding may come from any thread."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of A and B in memory: bfloat16 halves what a step reads, and rounds them to 8 bits."""
        self.dtype = dtype
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._sites: frozenset[str] = frozenset()
        self._step: tuple[Work, list[Group]] | None = None

    # ---------------------------------------------------------------- what is in memory

    def load(self, digest: str, gains: Mapping[str, Gain]) -> None:
        """Takes an adapter in. One that is there already stays as it is, and is no longer retired."""
        with self._lock:
            if (held := self._held.get(digest)) is not None:
                held.is_retired = False
                return
        made = _Held({site: self._part(gain) for site, gain in gains.items()})
        with self._lock:
            self._held.setdefault(digest, made).is_retired = False
            self._find_sites()

    def retire(self, digest: str) -> None:
        """Nobody new gets the adapter; its memory goes with the last holder."""
        with self._lock:
            if (held := self._held.get(digest)) is not None:
                held.is_retired = True
                self._drop_unheld(digest)

    def hold(self, digest: str) -> None:
        """Keeps an adapter in memory until `release`. Raises: AdapterError where it is not there, or is retired."""
        with self._lock:
            held = self._held.get(digest)
            if held is None or held.is_retired:
                raise AdapterError(f"adapter {digest[:12]}: is not in memory. Load it first.")
            held.holders += 1

    def release(self, digest: str) -> None:
        """Ends one `hold`."""
        with self._lock:
            held = self._held[digest]
            assert held.holders > 0, "released more often than held"
            held.holders -= 1
            self._drop_unheld(digest)

    def holders(self, digest: str) -> int:
        """Number of those who hold the adapter; 0 where it is not in memory."""
        held = self._held.get(digest)
        return 0 if held is None else held.holders

    def __contains__(self, digest: object) -> bool:
        """Whether `hold` would succeed."""
        held = self._held.get(digest) if isinstance(digest, str) else None
        return held is not None and not held.is_retired

    @property
    def bytes(self) -> int:
        """Memory of all adapters, with those that are retired and still held."""
        return sum(held.bytes for held in list(self._held.values()))

    def sites(self) -> frozenset[str]:
        """Exact names of the modules that any adapter in memory changes."""
        return self._sites

    def _part(self, gain: Gain) -> _Part:
        more, pad = -gain.rank % RANKS, torch.nn.functional.pad

        def own(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)

        a_RI = None if gain.A_RI is None else pad(gain.A_RI, (0, 0, 0, more))
        b_RO = None if gain.B_OR is None else pad(gain.B_OR.T, (0, 0, 0, more))
        g_O, h_I, b_O = (own(vector, torch.float32) for vector in (gain.g_O, gain.h_I, gain.b_O))
        return _Part(own(a_RI, self.dtype), own(b_RO, self.dtype), g_O, h_I, b_O, gain.is_embedding)

    def _drop_unheld(self, digest: str) -> None:
        held = self._held[digest]
        if held.is_retired and not held.holders:
            del self._held[digest]
            self._find_sites()

    def _find_sites(self) -> None:
        self._sites = frozenset().union(*(held.parts for held in self._held.values()))

    # ---------------------------------------------------------------- a step

    def inputs(self, site: str, x_TI: Tensor, work: Work) -> Tensor:
        """The module's input, with h of each token's own adapter; the same tensor where none has one."""
        scaled_TI = x_TI
        for group in self._groups(work):
            part = group.parts.get(site)
            if part is None or part.h_I is None:
                continue
            if scaled_TI is x_TI:
                scaled_TI = x_TI.clone()
            scaled_TI[group.tokens] = (scaled_TI[group.tokens].float() * part.h_I).to(x_TI.dtype)
        return scaled_TI

    def add(self, site: str, x_TI: Tensor, y_TO: Tensor, work: Work) -> Tensor:
        """`g ⊙ y + B A x + b` of each token's own adapter, in place. Tokens of the base alone keep their bits.

        `x_TI` are the module's inputs without h, or ids (T,) where it is an embedding. All arithmetic is in float32.
        """
        for group in self._groups(work):
            if (part := group.parts.get(site)) is not None:
                y_NO = y_TO[group.tokens].float()
                y_TO[group.tokens] = _added(part, x_TI[group.tokens], y_NO).to(y_TO.dtype)
        return y_TO

    def _groups(self, work: Work) -> list[Group]:
        """The tokens of each adapter in a step, made once: of the tokens of this step, from nothing that an earlier one left."""
        if self._step is None or self._step[0] is not work:
            decode: dict[str, list[Segment]] = {}
            groups = []
            for segment in work.segments:
                if segment.adapter is None:
                    continue
                if segment.is_decode:
                    decode.setdefault(segment.adapter, []).append(segment)
                else:
                    groups.append(Group(self._held[segment.adapter].parts, slice(segment.start, segment.stop)))
            for digest, segments in decode.items():
                places = torch.tensor([segment.start for segment in segments], device=work.ids_T.device)
                groups.append(Group(self._held[digest].parts, places))
            self._step = work, groups
        return self._step[1]


def _added(part: _Part, x_NI: Tensor, y_NO: Tensor) -> Tensor:
    """`g ⊙ y + B A x + b` in float32, over y."""
    if part.g_O is not None:
        y_NO = y_NO.mul_(part.g_O)
    if part.A_RI is not None and part.B_RO is not None:
        low_NR = part.A_RI[:, x_NI].T.float() if part.is_embedding else _matmul(x_NI.float(), part.A_RI.float().T)
        y_NO = y_NO.add_(_matmul(low_NR, part.B_RO.float()))
    return y_NO if part.b_O is None else y_NO.add_(part.b_O)


def _matmul(x_NI: Tensor, w_IO: Tensor) -> Tensor:
    """x w, in which a row has the same bits alone and among others."""
    rows = len(x_NI)
    if rows < LEAST_ROWS:
        x_NI = torch.nn.functional.pad(x_NI, (0, 0, 0, LEAST_ROWS - rows))
    return (x_NI @ w_IO)[:rows]
