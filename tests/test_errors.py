"""A name that is not in a closed set is answered with the name that was meant."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inlay.errors import Interrupted, TrainingError, nearest, nearest_of, unknown_name

NAMES = st.lists(st.text("abcdefgh_", min_size=4, max_size=12), min_size=1, max_size=30, unique=True)


@given(NAMES, st.data())
def test_a_name_in_other_letter_case_is_the_nearest_whatever_else_is_like_it(
    names: list[str], data: st.DataObject
) -> None:
    meant = data.draw(st.sampled_from(names))
    assert nearest(meant.upper(), names) == meant


@given(NAMES, st.data())
def test_a_name_with_one_letter_too_many_finds_one_that_is_at_least_as_near(
    names: list[str], data: st.DataObject
) -> None:
    meant = data.draw(st.sampled_from(names))
    found = nearest(meant + "x", names)
    assert found in names
    assert nearest(meant + "x", [meant]) == meant


@given(NAMES)
def test_a_name_with_no_letter_in_common_is_near_to_none(names: list[str]) -> None:
    assert nearest("ZZZZ", names) is None
    assert nearest_of("ZZZZ", names) == ""
    assert "Did you mean" not in unknown_name("setting", "ZZZZ", names)


@pytest.mark.parametrize(
    ("allowed", "hint"),
    [
        (["rank"], " Did you mean rank?"),
        (["rank", "rank_b"], " Did you mean rank or rank_b?"),
        (["rank", "rank_b", "rank_bc"], " Did you mean rank, rank_b or rank_bc?"),
        (["rank", "rank_b", "rank_bc", "rank_bcd"], " Did you mean rank, rank_b or rank_bc?"),
    ],
)
def test_at_most_three_names_are_offered_the_nearest_first(allowed: list[str], hint: str) -> None:
    assert nearest_of("rank", allowed) == hint


@given(st.integers(1, 60))
@example(20)
@example(21)
def test_a_set_is_listed_while_it_is_short_or_nothing_in_it_is_near(count: int) -> None:
    allowed = [f"name_{n:02}" for n in range(count)]
    assert ("Known: " in unknown_name("setting", "name_00x", allowed)) == (count <= 20)
    assert unknown_name("setting", "ZZZZ", allowed).endswith(f"Known: {', '.join(allowed)}.")


def test_an_error_carries_what_the_program_needs_to_end() -> None:
    assert Interrupted("stopped", 15).exit_code == 143
    assert (TrainingError("no", step=7).step, TrainingError("no").step, TrainingError("no").exit_code) == (7, None, 1)
