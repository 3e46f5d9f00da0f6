"""Order and shape of what goes through the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.data.batches import (
    assign_to_ranks,
    collate,
    micro_batches,
    order,
    split_across_ranks,
    step_rows,
    steps_per_epoch,
)
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.types import Source


def tokens(*lengths: int) -> TokenSet:
    rows = [
        TokenizedSequence(np.arange(1, n + 1, dtype=np.int32), np.linspace(0, 1, n, dtype=np.float32), Source("f", k))
        for k, n in enumerate(lengths)
    ]
    return pack(enumerate(rows))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_row_once_in_an_order_of_seed_and_epoch_alone(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    steps = steps_per_epoch(count, batch_size)
    rows = [step_rows(epoch * steps + s + 1, seed, count, batch_size) for s in range(steps)]
    flat = [r for step in rows for r in step]
    assert sorted(flat) == list(range(count))
    assert flat == order(seed, epoch, count).tolist()
    assert all(len(step) == batch_size for step in rows[:-1])


def test_seeds_and_epochs_give_other_orders() -> None:
    seen = {tuple(order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(seen) == 25


def tokens_of(share: list[list[int]], lengths: np.ndarray, padded: bool) -> int:
    return sum(len(g) * int(lengths[g].max()) if padded else int(lengths[g].sum()) for g in share)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_the_ranks_share_out_all_rows_of_a_step_and_each_has_as_much_to_do(
    found: list[int], at_once: int, ranks: int, padded: bool
) -> None:
    lengths, every = np.array(found), range(len(found))
    shares = split_across_ranks(every, lengths, at_once, ranks, padded=padded)
    assert len(shares) == ranks
    assert sorted(row for share in shares for group in share for row in group) == list(every)
    assert all(0 < len(group) <= at_once for share in shares for group in share)
    costs = [tokens_of(share, lengths, padded) for share in shares]
    assert min(costs) > 0 or len(found) < ranks, "a rank without work"
    in_turn = micro_batches(every, lengths, min(at_once, -(-len(found) // ranks)) if padded else 1)
    parts = [tokens_of([group], lengths, padded) for group in in_turn]
    assert max(costs) <= sum(parts) / ranks + max(parts)
    assert split_across_ranks(every, lengths, at_once, ranks, padded=padded) == shares
    assert split_across_ranks(every, lengths, at_once, 1, padded=padded) == [micro_batches(every, lengths, at_once)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_micro_batches_that_are_dealt_stay_what_they_are_and_the_costliest_are_spread(
    found: list[int], size: int, ranks: int
) -> None:
    lengths = np.array(found)
    alone = micro_batches(range(len(found)), lengths, size)
    shares = assign_to_ranks(alone, lengths, ranks)
    assert sorted(group for share in shares for group in share) == sorted(alone)
    longest = [max(found[row] for row in group) for group in alone]
    assert longest == sorted(longest, reverse=True)
    costs = [tokens_of(share, lengths, True) for share in shares]
    assert max(costs) - min(costs) <= max(tokens_of([group], lengths, True) for group in alone)


@pytest.mark.parametrize("pad_id", [0, 3])
def test_padding_is_masked_by_position_even_where_its_id_is_a_real_token(pad_id: int) -> None:
    batch = collate(tokens(2, 5, 3), [0, 1, 2], pad_id)
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.input_ids.tolist() == [[1, 2, pad_id, pad_id, pad_id], [1, 2, 3, 4, 5], [1, 2, 3, pad_id, pad_id]]
    assert batch.weights.tolist() == [[0, 1, 0, 0, 0], [0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1, 0, 0]]
    assert batch.rows == (0, 1, 2)


def test_a_token_set_takes_rows_in_the_order_named_and_cuts_them() -> None:
    taken = tokens(4, 2, 5).take([2, 0], limit=3)
    assert [taken.row(i).input_ids.tolist() for i in range(2)] == [[1, 2, 3], [1, 2, 3]]
    assert taken.examples.tolist() == [2, 0]
    assert [taken.source(i).line for i in range(2)] == [2, 0]
    assert taken.lengths.tolist() == [3, 3]
    assert tokens(4, 2).row_weights.tolist() == pytest.approx([2.0, 1.0])
    assert len(tokens().take([])) == 0
