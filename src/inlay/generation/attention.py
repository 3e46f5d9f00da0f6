"""Attention over the blocks of the key/value pool, the same bit for bit whatever else a step holds.

A token's mixture of values depends on its own query, on the keys before it, and on where they lie in their sequence;
never on how a prompt is cut into pieces or who shares the step. Keys are taken in blocks of 128 at fixed places, and a
matmul has enough rows to take the same way for all of them.

Shapes: T tokens of a step, R rows of decode, N blocks of a row, S positions of a block (128), H query heads, K key heads,
G = H / K, D size of a head, M rows of a matmul.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inlay.engine import decode_ops
from inlay.generation.blocks import BLOCK, blocks_for
from inlay.generation.work import Segment, Work

_ROWS = 32
"""Rows of a matmul are filled up to a multiple of it: fewer than 16 take another way through it, which rounds otherwise, and
so do the last values of an elementwise operation that do not fill the registers."""
_TILE = 512
"""Most rows of a matmul: what they make stays in the cache."""
_MASKED = -1e30
"""Stands for minus infinity, whose difference with itself is no number."""


class How(NamedTuple):
    """Scaling, window and cap that a layer wants of attention."""

    scaling: float
    window: int | None = None
    """Keys that a query sees at most, its own among them; None for all before it."""
    softcap: float | None = None


class KeyValues:
    """Keys and values of all layers, in blocks. A layer's memory is reserved at its first use."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, layer: int, key_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, each (blocks, K, S, D), in the dtype and on the device of these."""
        if layer not in self._layers:
            self._layers[layer] = (self._reserved(key_KTD), self._reserved(value_KTD))
        return self._layers[layer]

    def _reserved(self, like_KTD: Tensor) -> Tensor:
        heads, _, size = like_KTD.shape
        return like_KTD.new_empty((self.blocks, heads, BLOCK, size))  # the system gives pages when they are written

    def copy(self, source: int, target: int, tokens: int) -> None:
        """The first so many tokens of a block into another, in all layers."""
        for part in (part for both in self._layers.values() for part in both):
            part[target, :, :tokens] = part[source, :, :tokens]
            part[target, :, tokens:] = 0

    def fits_loops(self) -> bool:
        """Whether the compiled loop of attention takes the layers that were used so far."""
        return all(
            keys.is_cpu and keys.shape == values.shape and decode_ops.reason(keys.dtype) is None
            for keys, values in self._layers.values()
        )

    @property
    def bytes(self) -> int:
        """Memory that the layers reserve."""
        return sum(part.nbytes for both in self._layers.values() for part in both)


class Places:
    """Where the tokens of one step lie in the pool, and which keys each of them sees; made once, used by every layer."""

    def __init__(self, work: Work, device: torch.device, *, has_loops: bool = False) -> None:
        """`has_loops`: generated tokens take the compiled loop of `inlay.engine.decode_ops`."""
        starts, stops, firsts = (np.array([s[n] for s in work.segments], dtype=np.int64) for n in range(3))
        counts = stops - starts
        positions_T = np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        blocks_T = np.concatenate(
            [
                np.asarray(s.blocks, dtype=np.int64)[np.arange(s.position, s.position + s.stop - s.start) // BLOCK]
                for s in work.segments
            ]
        )
        self.tokens = len(positions_T)
        self.block_T = torch.from_numpy(blocks_T).to(device)
        self.offset_T = torch.from_numpy(positions_T % BLOCK).to(device)
        self.begun = torch.from_numpy(blocks_T[positions_T % BLOCK == 0]).to(device)
        """Blocks that get their first token in this step."""
        decode = [s for s in work.segments if s.is_decode]
        assert all(s.is_decode for s in work.segments[: len(decode)]), "decode tokens come first"
        self._loop = _LoopRows(decode) if has_loops and decode else None
        self._groups = [] if has_loops else _grouped(decode, device)
        self._pieces = work.segments[len(decode) :]
        self._tiles: dict[int, list[_Tile]] = {}
        self._device = device

    def attend(
        self, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, kept: tuple[Tensor, Tensor], how: How
    ) -> Tensor:
        """(T, H, D): the new keys and values are stored, then each token mixes the values that it sees.

        Tokens behind those of the step are padding: their rows are 0.
        """
        heads, rows, _ = query_HTD.shape
        for part, new_KTD in zip(kept, (key_KTD, value_KTD), strict=True):
            if len(self.begun):
                part[self.begun] = 0  # values beyond the last token get the weight 0, and 0 times NaN is NaN
            part[self.block_T, :, self.offset_T] = new_KTD[:, : self.tokens].transpose(0, 1)
        mixed_THD = query_HTD.new_zeros((rows, heads, value_KTD.shape[-1]))
        if self._loop is not None:
            self._loop.attend(query_HTD, key_KTD, value_KTD, kept, how, mixed_THD)
        for group in self._groups:
            mixed_THD[group.rows] = group.attend(query_HTD, kept, how)
        share = heads // len(key_KTD)
        if share not in self._tiles:
            self._tiles[share] = [tile for s in self._pieces for tile in _tiles(s, share, self._device)]
        for tile in self._tiles[share]:
            mixed_THD[tile.start : tile.stop] = tile.attend(query_HTD, kept, how)
        return mixed_THD


def rows_of(decode: Sequence[Segment]) -> decode_ops.Rows:
    """Positions and blocks of generated tokens, as the compiled loop of attention takes them."""
    counts = [blocks_for(s.position + 1) for s in decode]
    table = np.zeros((len(decode), max(counts)), dtype=np.int64)
    for row, segment, count in zip(table, decode, counts, strict=True):
        row[:count] = segment.blocks[:count]
    positions = [s.position for s in decode]
    return decode_ops.Rows(torch.tensor(positions), torch.from_numpy(table), max(positions) + 1)


class _LoopRows:
    """Decode rows for the compiled loop, which reads each row's keys and values where they lie."""

    def __init__(self, decode: Sequence[Segment]) -> None:
        self._rows = rows_of(decode)
        self._turned = torch.empty(len(decode), 0)
        """RoPE has been applied by the model."""

    def attend(
        self, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, kept: tuple[Tensor, Tensor], how: How, mixed_THD: Tensor
    ) -> None:  # fmt: skip
        """Writes the first rows of `mixed_THD`."""
        count = len(self._turned)
        parts = [part[:, :count].transpose(0, 1).reshape(count, -1) for part in (query_HTD, key_KTD, value_KTD)]
        decode_ops.attend(
            torch.cat(parts, 1), mixed_THD.view(len(mixed_THD), -1), self._rows, *kept, (self._turned, self._turned),
            len(query_HTD), how.scaling, how.window, how.softcap,
        )  # fmt: skip


class _Group:
    """Decode rows with about as many blocks."""

    def __init__(self, rows: list[int], segments: Sequence[Segment], blocks: int, device: torch.device) -> None:
        self.rows = torch.tensor(rows, device=device)
        table = np.zeros((len(rows), blocks), dtype=np.int64)
        for row, segment in zip(table, segments, strict=True):
            held = np.asarray(segment.blocks[: blocks_for(segment.position + 1)], dtype=np.int64)
            row[: len(held)] = held
            row[len(held) :] = held[0]
        self._table = torch.from_numpy(table.reshape(-1)).to(device)
        self._shape = (len(rows), blocks)
        self._last_R = torch.tensor([s.position for s in segments], device=device)
        self._masks: dict[int | None, Tensor] = {}

    def _hidden(self, window: int | None) -> Tensor:
        """(R, N, 1, 1, S): True where a key is not seen."""
        if window not in self._masks:
            at_NS = torch.arange(self._shape[1] * BLOCK, device=self._last_R.device)
            hidden = at_NS > self._last_R[:, None]
            if window is not None:
                hidden |= at_NS <= self._last_R[:, None] - window
            self._masks[window] = hidden.view(*self._shape, 1, 1, BLOCK)
        return self._masks[window]

    def attend(self, query_HTD: Tensor, kept: tuple[Tensor, Tensor], how: How) -> Tensor:
        """(R, H, D)"""
        rows, blocks = self._shape
        keys, values = (p.index_select(0, self._table).float().view(*self._shape, *p.shape[1:]) for p in kept)
        heads, size = keys.shape[2], values.shape[-1]
        query = query_HTD.index_select(1, self.rows).transpose(0, 1).float().reshape(rows, 1, heads, -1, keys.shape[-1])
        scores = _scores(torch.matmul(query, keys.transpose(-1, -2)), how).masked_fill(
            self._hidden(how.window), _MASKED
        )
        weights = torch.exp(scores - scores.amax((1, 4), keepdim=True))
        sums, parts = weights.sum(-1, keepdim=True), torch.matmul(weights, values)
        total, mixed = sums[:, 0], parts[:, 0]
        for n in range(
            1, blocks
        ):  # one after the other: blocks that others in the group have and this one has not add 0
            total, mixed = total + sums[:, n], mixed + parts[:, n]
        return (mixed / total).reshape(rows, -1, size).to(query_HTD.dtype)


class _Tile:
    """Neighbouring tokens of a prompt, few enough for one matmul."""

    def __init__(
        self, start: int, count: int, first: int, blocks: Sequence[int], group: int, device: torch.device
    ) -> None:
        """`first` is the position of the first token."""
        self.start, self.stop, self._first, self._group = start, start + count, first, group
        self._blocks = list(blocks[: blocks_for(first + count)])
        self._hiddens: dict[tuple[int, int | None], Tensor] = {}
        self._device = device

    def _hidden(self, block: int, window: int | None) -> Tensor | None:
        """(M, S): True where a key is not seen; None where all are."""
        first, last = block * BLOCK, block * BLOCK + BLOCK - 1
        end = self._first + self.stop - self.start - 1
        if last <= self._first and (window is None or first > end - window):
            return None
        if (block, window) not in self._hiddens:
            at_S = torch.arange(first, last + 1, device=self._device)
            own_T = torch.arange(self._first, end + 1, device=self._device)[:, None]
            hidden = at_S > own_T
            if window is not None:
                hidden |= at_S <= own_T - window
            self._hiddens[block, window] = _padded(hidden.repeat(self._group, 1))
        return self._hiddens[block, window]

    def attend(self, query_HTD: Tensor, kept: tuple[Tensor, Tensor], how: How) -> Tensor:
        """(T of this tile, H, D)"""
        keys, values = kept
        heads, count = keys.shape[1], self.stop - self.start
        query_KMD = query_HTD[:, self.start : self.stop].float().reshape(heads, self._group * count, -1)
        query_KMD = _padded(query_KMD.transpose(0, 1)).transpose(0, 1).contiguous()
        most = query_KMD.new_full((*query_KMD.shape[:2], 1), _MASKED)
        total, mixed = torch.zeros_like(most), query_KMD.new_zeros((*query_KMD.shape[:2], values.shape[-1]))
        for n, block in enumerate(self._blocks):
            if how.window is not None and n * BLOCK + BLOCK - 1 <= self._first - how.window:
                continue  # before what any of them sees
            scores = _scores(torch.matmul(query_KMD, keys[block].float().transpose(-1, -2)), how)
            hidden = self._hidden(n, how.window)
            if hidden is not None:
                scores = scores.masked_fill(hidden, _MASKED)
            more = torch.maximum(most, scores.amax(-1, keepdim=True))
            weights, fade = torch.exp(scores - more), torch.exp(most - more)
            if hidden is not None:
                weights = weights.masked_fill(
                    hidden, 0
                )  # where nothing is seen yet, `more` is no larger than a masked score
            total = total * fade + weights.sum(-1, keepdim=True)
            mixed = mixed * fade + torch.matmul(weights, values[block].float())
            most = more
        mixed_KMD = (mixed / total)[:, : self._group * count]
        return mixed_KMD.reshape(heads * self._group, count, -1).transpose(0, 1).to(query_HTD.dtype)


def _tiles(segment: Segment, group: int, device: torch.device) -> Iterator[_Tile]:
    """A piece of a prompt in tiles; where it is cut changes no bit."""
    length, most = segment.stop - segment.start, max(1, _TILE // group)
    for at in range(0, length, most):
        yield _Tile(segment.start + at, min(most, length - at), segment.position + at, segment.blocks, group, device)


def _grouped(decode: Sequence[Segment], device: torch.device) -> list[_Group]:
    """The rows in groups: what a row takes is rounded up a little, so that there are few groups and little is read in vain."""
    of_size: dict[int, list[int]] = {}
    for row, segment in enumerate(decode):
        of_size.setdefault(_rounded(blocks_for(segment.position + 1)), []).append(row)
    return [
        # a single matmul, without others in its batch, is shared out among threads in another way
        _Group(rows, [decode[row] for row in rows], max(size, 2 if len(rows) == 1 else 1), device)
        for size, rows in of_size.items()
    ]


def _rounded(blocks: int) -> int:
    step = max(1, 1 << max(0, blocks.bit_length() - 3))
    return -(-blocks // step) * step


def _scores(products: Tensor, how: How) -> Tensor:
    scores = products * how.scaling
    return scores if how.softcap is None else torch.tanh(scores / how.softcap) * how.softcap


def _padded(rows_M: Tensor) -> Tensor:
    """With rows of zeros, up to a multiple of `_ROWS`."""
    missing = -len(rows_M) % _ROWS
    return rows_M if not missing else torch.cat([rows_M, rows_M.new_zeros((missing, *rows_M.shape[1:]))])
