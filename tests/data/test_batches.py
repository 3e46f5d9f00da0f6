"""Order and shape of what goes through the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.data.batches import collate, micro_batches, order, step_rows, steps_per_epoch
from inlay.data.encode import Tokens
from inlay.data.tokens import TokenSet, pack
from inlay.data.types import Source


def tokens(*lengths: int) -> TokenSet:
    rows = [
        Tokens(np.arange(1, n + 1, dtype=np.int32), np.linspace(0, 1, n, dtype=np.float32), Source("f", k))
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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_the_ranks_share_out_all_rows_of_a_step(lengths: list[int], size: int, world: int) -> None:
    every = [micro_batches(range(len(lengths)), np.array(lengths), size, rank, world) for rank in range(world)]
    groups = [g for rank in every for g in rank]
    assert sorted(r for g in groups for r in g) == list(range(len(lengths)))
    assert all(len(g) <= size for g in groups)
    alone = micro_batches(range(len(lengths)), np.array(lengths), size)
    assert sorted(map(tuple, alone)) == sorted(map(tuple, groups))
    longest = [max(lengths[r] for r in g) for g in alone]
    assert longest == sorted(longest, reverse=True)


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
