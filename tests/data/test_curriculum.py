"""A curriculum gives every row once, from a pool that grows; its order is a function of seed, epoch and difficulty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from inlay import api
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import order, step_rows, steps_per_epoch
from inlay.data.curriculum import Curriculum, curriculum, difficulty
from inlay.data.encoding.encoder import Encoder
from inlay.data.prepare import prepare
from inlay.errors import ConfigError, DataError
from parts import qa_rows, write_rows

shares = st.floats(0.01, 1.0)


@given(st.integers(1, 80), shares, shares, st.integers(0, 3), st.data())
def test_an_epoch_has_every_row_once_and_none_before_the_pool_has_reached_it(
    count: int, pool: float, pacing: float, seed: int, data: st.DataObject
) -> None:
    ranks = np.asarray(data.draw(st.permutations(range(count))))
    made = Curriculum(ranks, pool, pacing, epochs=2)
    rows = order(seed, 1, count, made)
    assert sorted(rows.tolist()) == list(range(count))
    rank = ranks[rows]
    for place in range(count):
        size = count * pool + (1 - pool) * place / pacing
        assert rank[place] < max(place + 1, min(count, np.ceil(size)))
    again = Curriculum(ranks.copy(), pool, pacing, epochs=2)
    assert order(seed, 1, count, again).tolist() == rows.tolist()
    assert order(seed, 2, count, made).tolist() == order(seed, 2, count).tolist()


def test_rows_of_a_curriculum_come_in_the_order_of_their_numbers_and_the_anti_curriculum_turns_it_round() -> None:
    numbers = np.random.default_rng(0).permutation(1000).astype(float)
    settings: dict[str, Any] = {"order": "length", "order_pool": 0.1, "order_pacing": 1.0}
    low = numbers[order(0, 0, 1000, curriculum(TrainConfig(**settings), numbers))]
    high = numbers[order(0, 0, 1000, curriculum(TrainConfig(**settings, order_first="high"), numbers))]
    assert np.corrcoef(np.arange(1000), low)[0, 1] > 0.95
    assert np.corrcoef(np.arange(1000), high)[0, 1] < -0.95
    at_random = numbers[order(0, 0, 1000)]
    assert abs(np.corrcoef(np.arange(1000), at_random)[0, 1]) < 0.1
    assert low[:100].max() < 200


def test_of_equal_numbers_the_first_of_the_file_comes_first() -> None:
    settings: dict[str, Any] = {"order": "length", "order_pool": 0.01, "order_pacing": 1.0}
    numbers = np.array([2.0, 1.0, 2.0, 1.0])
    assert order(0, 0, 4, curriculum(TrainConfig(**settings), numbers)).tolist() == [1, 3, 0, 2]
    high = curriculum(TrainConfig(**settings, order_first="high"), np.zeros(3))
    assert order(0, 0, 3, high).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from([0.5, 1.0, 2.5])), min_size=2, max_size=3), st.data())
def test_a_mixture_is_ordered_by_the_same_numbers_and_its_weights_hold(
    parts: list[tuple[int, float]], data: st.DataObject
) -> None:
    shares = tuple(parts)
    count = sum(n for n, _ in shares)
    numbers = np.asarray(data.draw(st.permutations(range(count))), np.float64)
    made = Curriculum(numbers, 1e-6, 1.0, epochs=1)
    rows = order(1, 0, shares, made)
    assert sorted(rows.tolist()) == sorted(order(1, 0, shares).tolist())
    assert (np.diff(numbers[rows]) >= 0).all()


def test_the_steps_of_an_epoch_are_slices_of_its_order() -> None:
    made = Curriculum(np.arange(50)[::-1], 0.2, 0.5, epochs=1)
    steps = steps_per_epoch(50, 8)
    rows = [row for step in range(1, steps + 1) for row in step_rows(step, 3, 50, 8, made)]
    assert rows == order(3, 0, 50, made).tolist()
    later = [row for step in range(steps + 1, 2 * steps + 1) for row in step_rows(step, 3, 50, 8, made)]
    assert later == order(3, 1, 50).tolist()


def column(tmp_path: Path, tiny_base: Path, values: list[Any], row: int) -> Any:
    rows = [r | ({} if v is None else {"hard": v}) for r, v in zip(qa_rows(len(values)), values, strict=True)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    settings = ["train.order=column", "train.order_column=hard", "train.order_pool=0.01", "train.order_pacing=1"]
    return api.show_data(path, model=str(tiny_base), row=row, settings=[*settings, "train.batch_size=1"])


def test_a_column_orders_the_rows_and_data_show_says_where_they_land(tmp_path: Path, tiny_base: Path) -> None:
    values: list[Any] = [40 - n for n in range(20)] + [str(n / 2) for n in range(20)]
    first = [column(tmp_path, tiny_base, values, line).sequences[0].landings for line in range(1, 41)]
    landed = sorted((one[0].step, float(values[n])) for n, one in enumerate(first) if one)
    assert len(landed) > 20
    numbers = [number for _, number in landed]
    assert numbers == sorted(numbers)


def test_a_column_is_read_from_each_file_of_a_mixture(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    rows = [r | {"hard": n} for n, r in enumerate(qa_rows(40))]
    # of both files some rows stand on the same lines
    files = [str(write_rows(tmp_path / f"{name}.jsonl", part)) for name, part in (("a", rows[:25]), ("b", rows[25:]))]
    config = api.as_config(config_tree(data={"train": files}, train={"order": "column", "order_column": "hard"}))
    train = prepare(config.data, Encoder(toys.nano()), 256, 100, 0).train
    expected = [train.source(i).line - 1 + 25 * train.source(i).file.endswith("b.jsonl") for i in range(len(train))]
    found = difficulty(config, train)
    assert found is not None
    assert found.tolist() == expected


@pytest.mark.parametrize(("value", "says"), [(None, "is missing"), ("x", "is 'x', not"), (True, "is True, not")])
def test_a_row_without_a_number_in_the_column_is_refused_by_line(
    tmp_path: Path, tiny_base: Path, config_tree: Callable[..., dict[str, Any]], value: Any, says: str
) -> None:
    from inlay.training.process_group import ProcessGroup
    from inlay.training.setup import make_single_job
    from training_runs import Quiet

    rows = [r | ({} if value is None else {"hard": value}) for r in qa_rows(12)]
    path = write_rows(tmp_path / "b.jsonl", rows)
    tree = config_tree(data={"train": str(path)}, train={"order": "column", "order_column": "hard"})
    with pytest.raises(DataError, match=rf"b\.jsonl:\d+: field 'hard' {says}"):
        make_single_job(api.as_config(tree), Quiet(), ProcessGroup())


@pytest.mark.parametrize(
    "settings",
    [{"order_first": "high"}, {"order_pool": 0.5}, {"order": "column"}, {"order": "length", "order_column": "x"}],
)
def test_settings_of_an_order_that_take_no_effect_are_refused(
    config_tree: Callable[..., dict[str, Any]], settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"has no effect with order random|go together"):
        api.as_config(config_tree(train=settings))
