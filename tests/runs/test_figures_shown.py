"""Amounts and durations are shown short, and as what they are."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inlay.data.checks.patterns import luhn
from inlay.errors import ConfigError
from inlay.runs.reporter import bytes_shown, duration_shown
from inlay.training.memory import parse_bytes


@given(st.floats(0, 9.99e11))
@example(999.7)
@example(999_999.0)
def test_an_amount_of_bytes_has_three_digits_and_is_read_back_as_nearly_itself(count: float) -> None:
    shown = bytes_shown(count)
    assert re.fullmatch(r"\d{1,3}(\.\d)? (B|kB|MB|GB)", shown)
    if round(count):
        assert parse_bytes(shown) == pytest.approx(count, rel=0.5 if count < 10 else 0.06)


@given(st.integers(0, 500_000))
def test_a_duration_is_read_back_to_the_second_and_from_an_hour_on_to_the_minute(seconds: int) -> None:
    units = {"h": 3600, "min": 60, "s": 1}
    shown = duration_shown(seconds)
    read = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", shown))
    assert read == (seconds if seconds < 3600 else seconds // 60 * 60)


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "0", "nan", "1e30GB", "8 GB GB", "eight"])
def test_what_is_no_amount_of_memory_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^train\.max_memory: "):
        parse_bytes(text)


@given(st.text("0123456789", min_size=11, max_size=18), st.data())
def test_one_wrong_digit_of_a_card_number_fails_its_checksum(digits: str, data: st.DataObject) -> None:
    (check,) = [n for n in range(10) if luhn(f"{digits}{n}")]
    number = f"{digits}{check}"
    place = data.draw(st.integers(0, len(number) - 1))
    other = data.draw(st.sampled_from([d for d in "0123456789" if d != number[place]]))
    assert not luhn(number[:place] + other + number[place + 1 :])


def test_the_numbers_of_test_cards_pass_the_checksum() -> None:
    assert all(map(luhn, ("4111 1111 1111 1111", "5555 5555 5555 4444", "3782 822463 10005")))
