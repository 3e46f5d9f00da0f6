"""The adapters in memory, all on one base: many of them act in one step, each on its own tokens.

An adapter is known by the digest of its weights alone. Its memory goes when nobody holds it any more. Generated tokens read
A and B where they lie, in a compiled loop over all their adapters; a piece of a prompt takes two matmuls.

Shapes: T tokens of a step, of which the first D are generated ones, N of these with an adapter; G adapters; S modules of the
base that any adapter has changed; I inputs and O outputs of a module, R rank.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from inlay.engine import decode_ops
from inlay.errors import AdapterError
from inlay.generation.gain import Gain
from inlay.generation.work import Work

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
    def is_in_loop(self) -> bool:
        """Whether the compiled loop computes all of it."""
        return self.g_O is None and self.h_I is None and self.b_O is None and not self.is_embedding

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(each.nbytes for each in self[:5] if isinstance(each, Tensor))


@dataclass(slots=True)
class _Held:
    """One adapter in memory."""

    parts: dict[str, _Part]
    places_S3: Tensor
    """Where the compiled loop finds A, B and R of each module, by its number; zeros where the adapter has none."""
    holders: int = 0
    is_retired: bool = False
    bytes: int = field(init=False)
    with_vectors: frozenset[str] = field(init=False)
    """Modules where it has more than A and B."""
    with_h: frozenset[str] = field(init=False)
    """Modules whose input it scales."""

    def __post_init__(self) -> None:
        self.bytes = sum(part.bytes for part in self.parts.values())
        self.with_vectors = frozenset(site for site, part in self.parts.items() if not part.is_in_loop)
        self.with_h = frozenset(site for site, part in self.parts.items() if part.h_I is not None)


class _Group(NamedTuple):
    """Tokens of one adapter."""

    held: _Held
    tokens: slice | Tensor
    """Of a piece of a prompt a slice; of generated tokens their places."""


class _Step(NamedTuple):
    """The tokens of each adapter in one step, of this step's tokens and of nothing that an earlier one left."""

    work: Work
    decode: list[_Group]
    pieces: list[_Group]
    generated: int
    """D"""
    rows: decode_ops.Groups
    places_SG3: Tensor
    in_loop_S: list[bool]
    """Whether the compiled loop has work at a module."""
    low_NR: Tensor
    """Room for A x."""
    with_vectors: frozenset[str]
    """Modules where an adapter of a generated token has more than A and B."""
    with_h: frozenset[str]
    """Modules where an adapter of any token scales the input."""


class Bank:
    """Adapters in memory; an `Adapters` of `inlay.generation.work`. Loading and holding may come from any thread, steps from
    one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of A and B in memory: bfloat16 halves what a step reads, and rounds them to 8 bits."""
        self.dtype = dtype
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._sites: frozenset[str] = frozenset()
        self._numbers: dict[str, int] = {}
        self._last: _Step | None = None
        decode_ops.prepare(dtype)

    # ---------------------------------------------------------------- what is in memory

    def load(self, digest: str, gains: Mapping[str, Gain]) -> None:
        """Takes an adapter in. One that is there already stays as it is, and is no longer retired."""
        with self._lock:
            if (held := self._held.get(digest)) is not None:
                held.is_retired = False
                return
        parts = self._parts(gains)
        with self._lock:
            for site in parts:
                self._numbers.setdefault(site, len(self._numbers))
            made = _Held(parts, self._places(parts))
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

    def _parts(self, gains: Mapping[str, Gain]) -> dict[str, _Part]:
        """All A and B one after another in one piece of memory, as a step reads them."""
        pairs = {site: _filled(gain.A_RI, gain.B_OR) for site, gain in gains.items()}
        room = sum(_aligned(each.numel()) for pair in pairs.values() for each in pair if each is not None)
        memory, end = torch.empty(room, dtype=self.dtype), 0

        def placed(tensor: Tensor | None) -> Tensor | None:
            nonlocal end
            if tensor is None:
                return None
            start, end = end, end + _aligned(tensor.numel())
            return memory[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)

        def own(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector.float().clone()

        return {
            site: _Part(placed(a_RI), placed(b_RO), own(one.g_O), own(one.h_I), own(one.b_O), one.is_embedding)
            for (site, (a_RI, b_RO)), one in zip(pairs.items(), gains.values(), strict=True)
        }

    def _places(self, parts: Mapping[str, _Part]) -> Tensor:
        places = torch.zeros(len(self._numbers), 3, dtype=torch.int64)
        for site, (a_RI, b_RO, *_, is_embedding) in parts.items():
            if a_RI is not None and b_RO is not None and not is_embedding:
                places[self._numbers[site]] = torch.tensor([a_RI.data_ptr(), b_RO.data_ptr(), len(a_RI)])
        return places

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
        step, scaled_TI = self._step(work), x_TI
        if site not in step.with_h:
            return x_TI
        for group in (*step.decode, *step.pieces):
            part = group.held.parts.get(site)
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
        step = self._step(work)
        if step.decode:
            if self._has_loops and y_TO.is_cpu and y_TO.stride(1) == 1:
                self._add_decode(step, site, x_TI, y_TO)
            else:
                _add_groups(step.decode, site, x_TI, y_TO)
        _add_groups(step.pieces, site, x_TI, y_TO)
        return y_TO

    @cached_property
    def _has_loops(self) -> bool:
        return decode_ops.reason(self.dtype) is None

    def _add_decode(self, step: _Step, site: str, x_TI: Tensor, y_TO: Tensor) -> None:
        number = self._numbers.get(site, len(step.in_loop_S))
        is_in_loop = number < len(step.in_loop_S) and step.in_loop_S[number]
        others = [g for g in step.decode if site in g.held.with_vectors] if site in step.with_vectors else []
        if not is_in_loop and not others:
            return
        y_DO = y_TO[: step.generated].float()  # the same memory where it is float32
        for group in others:
            part, tokens = group.held.parts[site], group.tokens
            if part.g_O is not None:
                y_DO[tokens] = y_DO[tokens] * part.g_O
            if part.is_embedding:
                y_DO[tokens] = _added(part._replace(g_O=None, b_O=None), x_TI[tokens], y_DO[tokens])
        if is_in_loop:
            x_DI = x_TI[: step.generated].float()
            x_DI = x_DI if x_DI.stride(1) == 1 else x_DI.contiguous()
            decode_ops.add_adapters(y_DO, x_DI, step.rows, step.places_SG3[number], step.low_NR, self.dtype)
        for group in others:
            if (b_O := group.held.parts[site].b_O) is not None:
                y_DO[group.tokens] = y_DO[group.tokens] + b_O
        if y_TO.dtype != torch.float32:
            y_TO[: step.generated] = y_DO.to(y_TO.dtype)

    def _step(self, work: Work) -> _Step:
        if self._last is None or self._last.work is not work:
            self._last = self._made(work)
        return self._last

    def _made(self, work: Work) -> _Step:
        places: dict[str, list[int]] = {}
        pieces = []
        for segment in work.segments:
            if segment.adapter is None:
                continue
            if segment.is_decode:
                places.setdefault(segment.adapter, []).append(segment.start)
            else:
                pieces.append(_Group(self._held[segment.adapter], slice(segment.start, segment.stop)))
        generated = sum(segment.is_decode for segment in work.segments)
        assert all(max(each) < generated for each in places.values()), "generated tokens come first"
        helds = [self._held[digest] for digest in places]
        rows_N = torch.tensor([place for those in places.values() for place in those])
        places_SG3 = torch.zeros(len(self._numbers), len(helds), 3, dtype=torch.int64)
        for group, held in enumerate(helds):
            places_SG3[: len(held.places_S3), group] = held.places_S3
        ranks_SG = places_SG3[..., 2]
        rows = decode_ops.Groups(len(helds), rows_N, torch.tensor([0, *map(len, places.values())]).cumsum(0))
        decode = [_Group(held, torch.tensor(those)) for held, those in zip(helds, places.values(), strict=True)]
        return _Step(
            work, decode, pieces, generated, rows, places_SG3, (ranks_SG > 0).any(1).tolist(),
            torch.empty(len(rows_N), int(ranks_SG.max()) if ranks_SG.numel() else 0),
            frozenset().union(*(held.with_vectors for held in helds)),
            frozenset().union(*(group.held.with_h for group in (*decode, *pieces))),
        )  # fmt: skip


def _filled(a_RI: Tensor | None, b_OR: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(A, B transposed) with zeros up to the next multiple of RANKS."""
    if a_RI is None or b_OR is None:
        return None, None
    more = (0, 0, 0, -len(a_RI) % RANKS)
    return torch.nn.functional.pad(a_RI, more), torch.nn.functional.pad(b_OR.T, more)


def _aligned(count: int) -> int:
    """So many numbers and more, up to the end of a cache line."""
    return -(-count // 32) * 32


def _add_groups(groups: Sequence[_Group], site: str, x_TI: Tensor, y_TO: Tensor) -> None:
    for group in groups:
        if (part := group.held.parts.get(site)) is not None:
            y_NO = y_TO[group.tokens].float()
            y_TO[group.tokens] = _added(part, x_TI[group.tokens], y_NO).to(y_TO.dtype)


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
