"""The attention half of a layer: x + o(attention(rope(q(n)), rope(k(n)), v(n))) with n = norm(x).

Tokens of all rows lie one after another without padding. Only inside the attention itself rows of similar length are
padded to one length, and a query sees the keys of its own row.

Shapes: T tokens, H hidden, N query heads, M key heads, G = N / M, D values of a head, B rows of a group of L
positions each, X = B·M, n queries of a block and m keys that they may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inlay.engine import cpu_ops, gpu_ops
from inlay.engine.handwritten.lora import Projection
from inlay.engine.handwritten.norm import RmsNorm
from inlay.engine.profile import timed

_BLOCK = 256  # queries at once: bounds memory, and keys after a block are never multiplied
_LEAST_FILLED = 0.75  # rows join a group down to this share of its longest
_SCORES_AT_ONCE = 1 << 23


class Rows(NamedTuple):
    """Rows of similar length that lie one after another from token `start`."""

    start: int
    lengths: tuple[int, ...]
    multiple: int = 1
    """L is a multiple of it."""

    @property
    def end(self) -> int:
        """Token behind the last row."""
        return self.start + sum(self.lengths)

    @property
    def longest(self) -> int:
        """L."""
        return -(-max(self.lengths) // self.multiple) * self.multiple

    def padded(self, x_TND: Tensor, scale: float = 1.0) -> Tensor:
        """(B, heads, L, D) times scale, zero after a row's end."""
        _, heads, width = x_TND.shape
        if cpu_ops.takes(x_TND):
            out_BNLD = torch.empty(len(self.lengths), heads, self.longest, width, dtype=x_TND.dtype)
            cpu_ops.pad(x_TND, out_BNLD, *self._places(), scale)
            return out_BNLD
        out_BNLD = x_TND.new_zeros(len(self.lengths), heads, self.longest, width)
        start = self.start
        for row, length in enumerate(self.lengths):
            out_BNLD[row, :, :length] = x_TND[start : start + length].transpose(0, 1)
            start += length
        return out_BNLD if scale == 1.0 else out_BNLD.mul_(scale)

    def unpad(self, x_BNLD: Tensor, out_TND: Tensor, scale: float = 1.0) -> None:
        """Writes the rows back to where they lie, times scale."""
        if cpu_ops.takes(x_BNLD, out_TND):
            cpu_ops.unpad(out_TND, x_BNLD, *self._places(), scale)
            return
        if scale != 1.0:
            x_BNLD = x_BNLD * scale
        start = self.start
        for row, length in enumerate(self.lengths):
            out_TND[start : start + length] = x_BNLD[row, :, :length].transpose(0, 1)
            start += length

    def _places(self) -> tuple[Tensor, Tensor]:
        """First token and length of each row."""
        lengths_B = torch.tensor(self.lengths)
        return lengths_B.cumsum(0).sub_(lengths_B).add_(self.start), lengths_B


def groups(lengths: Sequence[int], heads: int, multiple: int = 1) -> list[Rows]:
    """The rows in order, neighbours of similar length together, padded to a multiple of so many positions."""
    found: list[Rows] = []
    start = 0
    for length in lengths:
        last = found[-1].lengths if found else ()
        longest = max(*last, length) if last else length
        fits = (len(last) + 1) * heads * min(longest, _BLOCK) * longest <= _SCORES_AT_ONCE
        if last and fits and min(*last, length) >= _LEAST_FILLED * longest:
            found[-1] = Rows(found[-1].start, (*last, length), multiple)
        else:
            found.append(Rows(start, (length,), multiple))
        start += length
    return found


class Softmax(NamedTuple):
    """softmax(q kᵀ + mask), causal; a window hides keys that lie so many positions back or more.

    The queries come multiplied by `scale`: there are fewer numbers in them than in the scores.
    """

    scale: float
    window: int | None
    softcap: float | None

    def blocks(self, length: int) -> Iterator[tuple[slice, slice]]:
        """Positions of the queries of each block, and of the keys that some of them see."""
        for start in range(0, length, _BLOCK):
            stop = min(start + _BLOCK, length)
            yield slice(start, stop), slice(0 if self.window is None else max(0, start - self.window + 1), stop)

    def probabilities(self, q_XQD: Tensor, k_XmD: Tensor, queries: slice, keys: slice) -> tuple[Tensor, Tensor | None]:
        """(X, G·n, m) probabilities, and tanh of the capped scores where there is a cap."""
        scores = torch.bmm(q_XQD, k_XmD.transpose(1, 2))
        if self.softcap is None and cpu_ops.takes(scores):
            cpu_ops.causal_softmax(scores, queries.stop - queries.start, queries.start - keys.start, self.window)
            return scores, None
        tanh = None
        if self.softcap is not None:
            tanh = scores.div_(self.softcap).tanh_()
            scores = tanh * self.softcap
        hidden_nm = _hidden(queries.start, queries.stop, keys.start, self.window, scores.dtype, scores.device)
        scores.view(len(scores), -1, *hidden_nm.shape).add_(hidden_nm)
        return torch.softmax(scores, -1), tanh

    def backward(self, dp: Tensor, p: Tensor, tanh: Tensor | None, queries: slice, keys: slice) -> Tensor:
        """ds = p·(dp - sum(p·dp)), times 1 - tanh² where there is a cap."""
        if tanh is None and cpu_ops.takes(dp, p):
            count, back = queries.stop - queries.start, queries.start - keys.start
            cpu_ops.causal_softmax_backward(dp, p, count, back, self.window)
            return dp
        ds: Tensor = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
        return ds if tanh is None else ds.addcmul_(ds * tanh, tanh, value=-1)


@lru_cache(maxsize=64)
def _hidden(start: int, stop: int, low: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, m) minus infinity where a query does not see a key, else 0. Read only."""
    back_nm = torch.arange(start, stop, device=device)[:, None] - torch.arange(low, stop, device=device)
    unseen = (back_nm < 0) if window is None else (back_nm < 0) | (back_nm >= window)
    return torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, float("-inf"))


@timed("attention")
def attend(q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rows: Sequence[Rows], softmax: Softmax) -> Tensor:
    """(T, N, D): each query's mixture of the values that it sees."""
    out_TND = _room_for(q_TND, rows)
    for group in rows:
        q_XGLD, k_XLD, v_XLD = _by_key_head(group, q_TND, k_TMD, v_TMD, softmax.scale)
        mixed: list[Tensor] = []
        for queries, keys in softmax.blocks(k_XLD.shape[1]):
            q_XQD = q_XGLD[:, :, queries].flatten(1, 2)
            p, _ = softmax.probabilities(q_XQD, k_XLD[:, keys], queries, keys)
            mixed.append(torch.bmm(p, v_XLD[:, keys]).unflatten(1, (q_XGLD.shape[1], -1)))
        mixed_XGLD = _joined(mixed)
        group.unpad(mixed_XGLD.view(len(group.lengths), -1, *mixed_XGLD.shape[2:]), out_TND)
    return out_TND


@timed("attention")
def attend_backward(
    d_TND: Tensor, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rows: Sequence[Rows], softmax: Softmax
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv). The probabilities are computed again: they are quick, and keeping them costs L² of memory.

    With p = softmax(s) and out = p v: dv = pᵀ d, dp = d vᵀ, ds from dp, dq = scale·ds k, dk = dsᵀ (scale·q).
    """
    dq_TND, dk_TMD, dv_TMD = (_room_for(x_TND, rows) for x_TND in (q_TND, k_TMD, v_TMD))
    for group in rows:
        q_XGLD, k_XLD, v_XLD = _by_key_head(group, q_TND, k_TMD, v_TMD, softmax.scale)
        d_XGLD = group.padded(d_TND).view_as(q_XGLD)
        dq: list[Tensor] = []
        dk_XLD, dv_XLD, length = None, None, k_XLD.shape[1]
        for queries, keys in softmax.blocks(length):
            q_XQD, d_XQD = q_XGLD[:, :, queries].flatten(1, 2), d_XGLD[:, :, queries].flatten(1, 2)
            p, tanh = softmax.probabilities(q_XQD, k_XLD[:, keys], queries, keys)
            dv_XLD = _added(dv_XLD, torch.bmm(p.transpose(1, 2), d_XQD), keys, length)
            ds = softmax.backward(torch.bmm(d_XQD, v_XLD[:, keys].transpose(1, 2)), p, tanh, queries, keys)
            dq.append(torch.bmm(ds, k_XLD[:, keys]).unflatten(1, (q_XGLD.shape[1], -1)))
            dk_XLD = _added(dk_XLD, torch.bmm(ds.transpose(1, 2), q_XQD), keys, length)
        assert dk_XLD is not None
        assert dv_XLD is not None
        count = len(group.lengths)
        for d_padded, d_flat, scale in (
            (_joined(dq), dq_TND, softmax.scale),
            (dk_XLD, dk_TMD, 1.0),
            (dv_XLD, dv_TMD, 1.0),
        ):
            group.unpad(d_padded.view(count, -1, *d_padded.shape[-2:]), d_flat, scale)
    return dq_TND, dk_TMD, dv_TMD


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """Along the queries. Most rows are one block: it is not copied."""
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), 2)


def _added(sum_XLD: Tensor | None, part_XmD: Tensor, keys: slice, length: int) -> Tensor:
    """Sum of the gradients that the blocks so far and this one give its keys."""
    if sum_XLD is None and part_XmD.shape[1] == length:
        return part_XmD
    if sum_XLD is None:
        sum_XLD = part_XmD.new_zeros(len(part_XmD), length, part_XmD.shape[2])
    sum_XLD[:, keys] += part_XmD
    return sum_XLD


def _room_for(x_TND: Tensor, rows: Sequence[Rows]) -> Tensor:
    """A tensor of the same shape, with zeros behind the last row."""
    room_TND = torch.empty_like(x_TND)
    room_TND[rows[-1].end :] = 0
    return room_TND


def _by_key_head(
    group: Rows, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (X, G, L, D) times scale beside the keys and values (X, L, D) of their key head."""
    k_XLD, v_XLD = group.padded(k_TMD).flatten(0, 1), group.padded(v_TMD).flatten(0, 1)
    return group.padded(q_TND, scale).view(len(k_XLD), -1, *k_XLD.shape[1:]), k_XLD, v_XLD


def rope_(x_TND: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> None:
    """Rotary position embedding: turns the pairs (i, i + E) of the first 2 E values by each token's angles, in place; the rest stays.

    A rotation's transpose is the rotation back: the backward pass is `rope_` with -sin.
    """
    if cpu_ops.takes(x_TND, cos_T1E, sin_T1E):
        cpu_ops.rope_(x_TND, cos_T1E, sin_T1E)
        return
    half = cos_T1E.shape[-1]
    first, second = x_TND[..., :half], x_TND[..., half : 2 * half]
    turned_TNE = first * sin_T1E
    first.mul_(cos_T1E).addcmul_(second, sin_T1E, value=-1)
    second.mul_(cos_T1E).add_(turned_TNE)


class _Saved(NamedTuple):
    x_TH: Tensor
    factor_T1: Tensor
    lows: list[Tensor]
    head_norms: tuple[Tensor, Tensor, Tensor, Tensor] | None  # queries and keys that they read, and their factors
    q_TND: Tensor
    k_TMD: Tensor
    v_TMD: Tensor
    flash: Any  # what the flash kernel's backward needs, where it computed the attention
    mixed: Tensor  # (kept tokens, N·D)
    o_lows: list[Tensor]
    post: tuple[Tensor, Tensor] | None  # what the norm behind it read, and its factor


class Attention:
    """The attention half of a layer, forward and backward."""

    def __init__(
        self, norm: RmsNorm, qkv: Sequence[Any], o: Any, post: RmsNorm | None, heads: tuple[int, int, int],
        head_norms: tuple[RmsNorm, RmsNorm] | None, softmax: Softmax, adapters: Sequence[str], compute: torch.dtype,
    ) -> None:  # fmt: skip
        """`heads` are N, M and D."""
        self.norm, self.post, self.head_norms, self.softmax, self.heads = norm, post, head_norms, softmax, heads
        self.qkv, self.o = Projection(qkv, adapters, compute), Projection([o], adapters, compute)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its stacks of linear layers."""
        return self.qkv, self.o

    def forward(self, x_TH: Tensor, tokens: Any, rope: tuple[Tensor, Tensor], last: bool) -> tuple[Tensor, _Saved]:
        """`rope` is (cos, sin). After the last layer's attention only the tokens that predict something are kept."""
        heads, key_heads, width = self.heads
        n_TH, factor_T1 = self.norm.forward(x_TH)
        qkv, lows = self.qkv.forward(n_TH, tokens.spans)
        q_TND, k_TMD, v_TMD = qkv.unflatten(1, (-1, width)).split([heads, key_heads, key_heads], 1)
        head_norms = None
        if self.head_norms is not None:
            raw_q_TND, raw_k_TMD = q_TND, k_TMD
            q_TND, q_factor = self.head_norms[0].forward(raw_q_TND)
            k_TMD, k_factor = self.head_norms[1].forward(raw_k_TMD)
            head_norms = (raw_q_TND, raw_k_TMD, q_factor, k_factor)
        rope_(q_TND, *rope)
        rope_(k_TMD, *rope)
        mixed_TND, flash = self._attend(q_TND, k_TMD, v_TMD, tokens)
        mixed, kept_TH, spans = mixed_TND.flatten(1), x_TH, tokens.spans
        if last:
            mixed, kept_TH, spans = mixed[tokens.kept_J], x_TH[tokens.kept_J], tokens.kept_spans
        y_TH, o_lows = self.o.forward(mixed, spans)
        post = None
        if self.post is not None:
            raw_TH = y_TH
            y_TH, post_factor_T1 = self.post.forward(raw_TH)
            post = (raw_TH, post_factor_T1)
        saved = _Saved(x_TH, factor_T1, lows, head_norms, q_TND, k_TMD, v_TMD, flash, mixed, o_lows, post)
        return kept_TH + y_TH, saved

    def _attend(self, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, tokens: Any) -> tuple[Tensor, Any]:
        softmax = self.softmax
        if not gpu_ops.attends(q_TND, softmax.softcap):
            return attend(q_TND, k_TMD, v_TMD, tokens.rows, softmax), None
        return gpu_ops.attend(q_TND, k_TMD, v_TMD, tokens.bounds, tokens.longest, softmax.scale, softmax.window)

    def backward(
        self, dy_TH: Tensor, saved: _Saved, tokens: Any, rope: tuple[Tensor, Tensor], last: bool, wants_dx: bool
    ) -> Tensor | None:
        """dx, None where it is not wanted and no adapter lies below. Adds the adapters' gradients."""
        s, (cos, sin) = saved, rope
        spans = tokens.kept_spans if last else tokens.spans
        draw_TH = dy_TH
        if self.post is not None and s.post is not None:
            draw_TH = self.post.backward(dy_TH, *s.post)
        dmixed = self.o.backward(draw_TH, s.mixed, s.o_lows, spans, wants_dx or self.qkv.is_adapted)
        if dmixed is None:
            return None
        if last:
            dmixed, dy_TH = tokens.spread(dmixed), tokens.spread(dy_TH)
        dmixed_TND = dmixed.view_as(s.q_TND)
        if s.flash is None:
            dq_TND, dk_TMD, dv_TMD = attend_backward(dmixed_TND, s.q_TND, s.k_TMD, s.v_TMD, tokens.rows, self.softmax)
        else:
            dq_TND, dk_TMD, dv_TMD = gpu_ops.attend_backward(dmixed_TND, s.flash)
        rope_(dq_TND, cos, -sin)
        rope_(dk_TMD, cos, -sin)
        if self.head_norms is not None and s.head_norms is not None:
            raw_q_TND, raw_k_TMD, q_factor, k_factor = s.head_norms
            dq_TND = self.head_norms[0].backward(dq_TND, raw_q_TND, q_factor)
            dk_TMD = self.head_norms[1].backward(dk_TMD, raw_k_TMD, k_factor)
        dqkv = torch.cat([dq_TND, dk_TMD, dv_TMD], 1).flatten(1)
        n_TH = self.norm.scaled(s.x_TH, s.factor_T1)
        dn_TH = self.qkv.backward(dqkv, n_TH, s.lows, tokens.spans, wants_dx)
        return None if dn_TH is None else self.norm.backward(dn_TH, s.x_TH, s.factor_T1, dy_TH)
