"""The learning rate of every step, and the exact numbers around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.config.sections.train import TrainConfig
from inlay.data.batches import epochs_done, order, step_rows, steps_per_epoch
from inlay.training.optimizer import learning_rate, warmup_steps

SCHEDULES = ["cosine", "linear", "constant", "wsd"]


def rates(total: int, **settings: object) -> list[float]:
    train = TrainConfig.model_validate(settings)
    return [learning_rate(train, 1.0, step, total) for step in range(1, total + 1)]


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES), total=st.integers(1, 300), ratio=st.floats(0, 0.99), steps=st.integers(0, 400)
)
def test_the_rate_stays_above_zero_and_at_most_at_its_peak_and_falls_after_warmup(
    schedule: str, total: int, ratio: float, steps: int
) -> None:
    for given_warmup in ({"warmup_ratio": ratio}, {"warmup_steps": steps}):
        train = TrainConfig.model_validate({"schedule": schedule, **given_warmup})
        found = rates(total, schedule=schedule, **given_warmup)
        warmup = warmup_steps(train, total)
        assert all(0 < rate <= 1 for rate in found)
        assert found[:warmup] == [pytest.approx(k / warmup) for k in range(1, warmup + 1)]
        after = found[warmup:]
        assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_step_of_a_warmup_gets_its_share_of_the_peak(schedule: str) -> None:
    assert rates(100, schedule=schedule, warmup_steps=10)[:11] == pytest.approx([k / 10 for k in range(1, 11)] + [1])


def test_wsd_is_flat_and_then_falls_in_a_line_over_the_last_fifth() -> None:
    found = rates(100, schedule="wsd", warmup_steps=5)
    assert found[5:81] == [1.0] * 76
    assert found[80:] == pytest.approx([k / 20 for k in range(20, 0, -1)])


def test_cosine_and_linear_are_at_half_in_the_middle() -> None:
    for schedule in ("cosine", "linear"):
        assert rates(101, schedule=schedule, warmup_steps=1)[51] == pytest.approx(0.5, abs=0.011)


def test_a_warmup_ratio_that_is_a_whole_number_of_steps_is_not_rounded_up() -> None:
    assert warmup_steps(TrainConfig(warmup_ratio=0.07), 100) == 7


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_every_epoch_shows_every_row_once_and_ends_on_a_whole_number(seed: int, count: int, batch_size: int) -> None:
    per_epoch = steps_per_epoch(count, batch_size)
    for epoch in range(2):
        steps = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        shown = [row for step in steps for row in step_rows(step, seed, count, batch_size)]
        assert shown == order(seed, epoch, count).tolist()
        assert sorted(shown) == list(range(count))
        assert epochs_done(steps[-1], count, batch_size) == epoch + 1
        partial = [epochs_done(step, count, batch_size) for step in steps]
        assert partial == sorted(partial)
    assert isinstance(order(seed, 0, count), np.ndarray)
