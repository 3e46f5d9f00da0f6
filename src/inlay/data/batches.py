"""Order of rows and what goes through the model at once.

The order is a pure function of seed and epoch, a step is a slice of it, and a step's rows are shared out among
micro batches and ranks only afterwards: the data cursor is the step number, whatever the world looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from inlay.data.curriculum import Curriculum
from inlay.data.tokens import Shares, TokenSet, drawn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length. B rows, L positions."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64
    weights: Tensor  # (B, L) float32, 0 where not trained
    rows: tuple[int, ...]  # positions in the TokenSet

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.weights.to(device), self.rows)


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, shares: Shares | int, curriculum: Curriculum | None = None) -> np.ndarray:
    """(D,) the rows of an epoch, a function of what is given alone. Read only: the steps of an epoch share it.

    A part of weight 2.5 gives each of its rows twice and half of them once more; the halves take turns. A number of
    rows stands for one part of weight 1.
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


def micro_batches(
    rows: Sequence[int], lengths: np.ndarray, micro_batch_size: int, rank: int = 0, size: int = 1
) -> list[list[int]]:
    """This rank's share of a step, rows of similar length together, longest first so that memory peaks at once."""
    longest_first = sorted(rows, key=lambda i: (-int(lengths[i]), i))
    groups = [longest_first[a : a + micro_batch_size] for a in range(0, len(longest_first), micro_batch_size)]
    return groups[rank::size]


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
