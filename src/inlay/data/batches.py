"""The order of rows, and the batches that go through the model at once.

The order is a pure function of seed and epoch, a step is a slice of it, and a step's rows are shared out among
micro batches and ranks only afterwards: the data cursor is the step number, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from inlay.data.curriculum import Curriculum
from inlay.data.encoding.token_arrays import Shares, TokenSet, drawn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length. B rows, L positions."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64
    weights: Tensor  # (B, L) float32, 0 where not trained
    rows: tuple[int, ...]  # positions in the TokenSet

    def to(self, device: torch.device | str) -> Batch:
        """The batch on that device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.weights.to(device), self.rows)


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, shares: Shares | int, curriculum: Curriculum | None = None) -> np.ndarray:
    """(D,) the rows of an epoch, a function of these arguments alone. Read only: the steps of an epoch share it.

    A data file with mixture weight 2.5 is repeated twice an epoch, with half of its rows once more; the halves take turns
    from epoch to epoch. An int stands for one file of that many rows with weight 1.
    """
    rows, first = [], 0
    for part, (count, weight) in enumerate(_shares(shares)):
        extra = drawn(((count, weight),)) - int(weight) * count
        rows += [np.arange(first, first + count)] * int(weight)
        if extra:
            turns = np.random.default_rng([seed, part, 0x7A4E]).permutation(count)
            rows.append(first + turns[(epoch * extra + np.arange(extra)) % count])
        first += count
    every = np.concatenate([np.zeros(0, np.int64), *rows])
    rng = np.random.default_rng([seed, epoch])
    ordered = curriculum.order(every, rng) if curriculum and epoch < curriculum.epochs else rng.permutation(every)
    ordered.setflags(write=False)
    return ordered


def _shares(shares: Shares | int) -> Shares:
    return ((shares, 1.0),) if isinstance(shares, int) else shares


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps in an epoch of `count` sequences."""
    return -(-count // batch_size)


def step_rows(
    step: int, seed: int, shares: Shares | int, batch_size: int, curriculum: Curriculum | None = None
) -> list[int]:
    """The rows of optimizer step `step` (from 1). The last step of an epoch may hold fewer."""
    epoch, within = divmod(step - 1, steps_per_epoch(drawn(_shares(shares)), batch_size))
    return [int(i) for i in order(seed, epoch, shares, curriculum)[within * batch_size : (within + 1) * batch_size]]


def epochs_done(step: int, count: int, batch_size: int) -> float:
    """Passes over the rows after optimizer step `step`; the short last step of an epoch ends it exactly."""
    per_epoch = steps_per_epoch(count, batch_size)
    epoch, within = divmod(step, per_epoch)
    return epoch + within * batch_size / count


def micro_batches(rows: Sequence[int], lengths: np.ndarray, at_once: int) -> list[list[int]]:
    """The rows of a step in groups of `at_once`, similar lengths together, the longest first: memory peaks at once."""
    longest_first = _longest_first(rows, lengths)
    return [longest_first[a : a + at_once] for a in range(0, len(longest_first), at_once)]


def assign_to_ranks(groups: Sequence[list[int]], lengths: np.ndarray, size: int) -> list[list[list[int]]]:
    """For each of `size` ranks its part of the micro batches, each of which stays whole: the costliest goes to the rank
    with the fewest tokens so far. What is computed together does not depend on the number of ranks."""
    shares: list[list[list[int]]] = [[] for _ in range(size)]
    tokens = [0] * size
    for cost, group in sorted(((_padded(group, lengths), group) for group in groups), key=lambda one: -one[0]):
        rank = tokens.index(min(tokens))
        shares[rank].append(group)
        tokens[rank] += cost
    return shares


def split_across_ranks(
    rows: Sequence[int], lengths: np.ndarray, at_once: int, size: int, *, padded: bool = True
) -> list[list[list[int]]]:
    """For each of `size` ranks its micro batches of a step, so that all have about as many tokens to compute, and at least
    one row where there are as many. `padded`: whether padding is computed too, so that rows of similar length must stay
    together.
    """
    if size == 1:
        return [micro_batches(rows, lengths, at_once)]
    if not padded:
        alone = assign_to_ranks([[row] for row in _longest_first(rows, lengths)], lengths, size)
        return [micro_batches([row for group in share for row in group], lengths, at_once) for share in alone]
    equal = micro_batches(rows, lengths, min(at_once, max(1, -(-len(rows) // size))))
    ways = (_stretches(rows, lengths, at_once, size), assign_to_ranks(equal, lengths, size))
    return min(ways, key=lambda shares: max(sum(_padded(group, lengths) for group in share) for share in shares))


def _stretches(rows: Sequence[int], lengths: np.ndarray, at_once: int, size: int) -> list[list[list[int]]]:
    """Rows from the longest to the shortest, cut so that each rank has as many tokens: few long rows or many short ones."""
    longest_first = _longest_first(rows, lengths)
    sizes = [int(lengths[row]) for row in longest_first]
    low, high = max(sizes, default=0), -(-len(rows) // size) * max(sizes, default=0)
    while low < high:  # the fewest tokens of a rank with which all rows find a place
        middle = (low + high) // 2
        fits = _ends(sizes, at_once, size, middle)[-1] == len(rows)
        low, high = (low, middle) if fits else (middle + 1, high)
    ends = _ends(sizes, at_once, size, low)
    return [
        [longest_first[a : min(a + at_once, end)] for a in range(first, end, at_once)]
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def _ends(sizes: list[int], at_once: int, size: int, most: int) -> list[int]:
    """The end of each rank's stretch, when it takes rows up to `most` tokens."""
    ends, i = [], 0
    for rank in range(size):
        cost, first = 0, i
        last = max(i, len(sizes) - (size - 1 - rank)) if len(sizes) >= size else len(sizes)  # a row for each after it
        while i < last:
            width = sizes[first + (i - first) // at_once * at_once]  # of the longest in its micro batch
            if cost + width > most:
                break
            cost, i = cost + width, i + 1
        ends.append(i)
    return ends


def _longest_first(rows: Sequence[int], lengths: np.ndarray) -> list[int]:
    return sorted(rows, key=lambda i: (-int(lengths[i]), i))


def _padded(group: list[int], lengths: np.ndarray) -> int:
    return len(group) * max(int(lengths[row]) for row in group)


def collate(tokens: TokenSet, rows: Sequence[int], pad_id: int) -> Batch:
    """The rows as one padded batch. Padding is masked by position; `pad_id` may be any id, the end token too."""
    picked = [tokens.row(i) for i in rows]
    longest = max(len(t.input_ids) for t in picked)
    ids = np.full((len(picked), longest), pad_id, np.int64)
    mask = np.zeros((len(picked), longest), np.int64)
    weights = np.zeros((len(picked), longest), np.float32)
    for b, t in enumerate(picked):
        ids[b, : len(t.input_ids)] = t.input_ids
        mask[b, : len(t.input_ids)] = 1
        weights[b, : len(t.input_ids)] = t.weights
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(weights), tuple(rows))
