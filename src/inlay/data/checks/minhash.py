"""Rows that are nearly the same, without comparing each with each: MinHash signatures and locality-sensitive hashing.

The similarity of two texts is the Jaccard index of their sets of five-character pieces. The share of equal positions
of two signatures estimates it with a standard error of sqrt(s(1-s)/120), 0.037 at 0.8. Rows whose signatures agree in
one of 20 bands of 6 are compared: two rows of similarity 0.8 meet with probability 0.998, of 0.5 with 0.27.

Source: Broder 1997 (resemblance), Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

SHINGLE: Final = 5
"""Characters of a piece."""
BANDS: Final = 20
BAND: Final = 6
SIZE: Final = BANDS * BAND
_AT_ONCE: Final = 1 << 18  # pieces hashed together: arrays that stay in the cache of a core
_PAIRS_AT_ONCE: Final = 1 << 12

_random = np.random.default_rng(0x5EED)
_FLIP = _random.integers(0, 2**32, SIZE, dtype=np.uint32)
_SCALE = _random.integers(0, 2**32, SIZE, dtype=np.uint32) | np.uint32(1)
_FOLD = _random.integers(0, 2**63, BAND, dtype=np.uint64) | np.uint64(1)
_STEP = np.uint32(0x9E3779B1)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """(N, 120) uint32 signatures of the texts."""
    parts: list[np.ndarray] = []
    start = 0
    while start < len(texts):
        end, pieces = start, 0
        while end < len(texts) and (end == start or pieces + len(texts[end]) <= _AT_ONCE):
            pieces += len(texts[end])
            end += 1
        parts.append(_signatures(texts[start:end]))
        start = end
    return np.concatenate(parts) if parts else np.zeros((0, SIZE), np.uint32)


def _signatures(texts: Sequence[str]) -> np.ndarray:
    padded = [text.ljust(SHINGLE) for text in texts]
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    hashed = _hashed(codes)
    ends = np.cumsum(lengths)
    crosses = (ends[:-1, None] - np.arange(1, SHINGLE)).ravel()  # pieces that begin in one row and end in the next
    inside = np.delete(hashed, crosses[crosses < len(hashed)])
    firsts = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)[:-1]])
    made = np.empty((len(padded), SIZE), np.uint32)
    work = np.empty_like(inside)
    for n in range(SIZE):
        np.bitwise_xor(inside, _FLIP[n], out=work)
        np.multiply(work, _SCALE[n], out=work)
        made[:, n] = np.minimum.reduceat(work, firsts)
    return made


def _hashed(codes: np.ndarray) -> np.ndarray:
    """A mixed 32-bit hash of each window of `SHINGLE` codes."""
    count = len(codes) - SHINGLE + 1
    found = codes[:count].copy()
    for n in range(1, SHINGLE):
        found *= _STEP
        found ^= found >> np.uint32(15)
        found += codes[n : n + count]
    for shift, scale in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        found ^= found >> np.uint32(shift)
        found *= np.uint32(scale)
    found ^= found >> np.uint32(16)
    return found


def near_pairs(
    made: np.ndarray, similarity: float, reached: Callable[[float], None] = lambda _: None
) -> tuple[np.ndarray, np.ndarray]:
    """((P, 2) pairs of rows i < j, (P,) estimated similarity) of rows at least so similar, in their order.

    In a large group of like rows each is compared with the first and with its neighbour, not with all. `reached` gets
    the share of the bands that are done.
    """
    near = np.zeros(0, np.int64)  # i * N + j
    for band in range(BANDS):
        candidates = np.unique(_agreeing(made[:, band * BAND : (band + 1) * BAND]))
        near = np.union1d(near, candidates[_estimates(made, candidates) >= similarity])
        reached((band + 1) / BANDS)
    return np.stack(np.divmod(near, len(made)), axis=1), _estimates(made, near)


def _agreeing(band: np.ndarray) -> np.ndarray:
    """i * N + j of rows i < j whose part of the signature agrees, each with the first of its group and its neighbour."""
    keys = (band.astype(np.uint64) * _FOLD).sum(axis=1, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
    starts = np.ones(len(order), bool)
    starts[same] = False
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    return np.concatenate([order[one] * len(keys) + order[same] for one in (same - 1, first[same])])


def _estimates(made: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P,) similarities by the signatures, a few thousand pairs at once."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        i, j = np.divmod(pairs[start : start + _PAIRS_AT_ONCE], len(made))
        found[start : start + len(i)] = (made[i] == made[j]).mean(axis=1)
    return found
