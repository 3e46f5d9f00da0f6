"""Held-out rows are chosen by what they ask."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from inlay.data.splits import as_keys, by_content, draw, leaked, prompt_key
from inlay.data.types import Example, Message, Source


def asks(question: str, answer: str = "x", line: int = 1) -> Example:
    return Example((Message("user", question), Message("assistant", answer, 1.0)), Source("f", line))


questions = st.lists(st.sampled_from([f"q{n}" for n in range(30)]), min_size=2, max_size=60)


@given(questions, st.floats(0.01, 0.9), st.integers(0, 9))
def test_no_prompt_stands_on_both_sides_and_the_order_of_rows_changes_nothing(
    asked: list[str], share: float, seed: int
) -> None:
    examples = [asks(q, str(n)) for n, q in enumerate(asked)]
    train, heldout = by_content(examples, share)
    assert sorted(train + heldout) == list(range(len(examples)))
    assert not {asked[n] for n in train} & {asked[n] for n in heldout}
    if len(set(asked)) > 1:
        assert train
        assert heldout
    shuffled = random.Random(seed).sample(examples, len(examples))
    again = by_content(shuffled, share)[1]
    assert {shuffled[n].messages for n in again} == {examples[n].messages for n in heldout}


@given(questions, st.floats(0.05, 0.9))
def test_the_share_is_as_asked_to_within_the_largest_group(asked: list[str], share: float) -> None:
    heldout = by_content([asks(q) for q in asked], share)[1]
    largest = max(map(asked.count, asked))
    assert abs(len(heldout) - len(asked) * share) <= largest + 0.5


def test_rows_with_different_prompts_are_split_exactly_as_asked() -> None:
    train, heldout = by_content([asks(f"question {n}") for n in range(1000)], 0.2)
    assert (len(train), len(heldout)) == (800, 200)


def test_two_rows_are_enough_and_one_prompt_is_not() -> None:
    assert [len(side) for side in by_content([asks("a"), asks("b")], 0.2)] == [1, 1]
    assert [len(side) for side in by_content([asks("a"), asks("b")], 0.99)] == [1, 1]
    assert [len(side) for side in by_content([asks("a")] * 5, 0.2)] == [5, 0]
    assert [len(side) for side in by_content([asks("a")] * 5 + [asks("b")] * 4, 0.1)] == [5, 4]


def test_spelling_that_differs_only_in_case_and_space_is_the_same_prompt() -> None:
    assert prompt_key(asks("What  IS it?")) == prompt_key(asks(" what is it? "))
    train, heldout = (as_keys(map(prompt_key, map(asks, qs))) for qs in (["What is it?"], ["what is  it?", "Who?"]))
    assert leaked(train, heldout) == 1


def test_rows_are_drawn_by_seed_ascending_and_without_repetition() -> None:
    assert draw(5, 9, 0) == [0, 1, 2, 3, 4]
    drawn = draw(1000, 50, 3)
    assert drawn == sorted(set(drawn)) == draw(1000, 50, 3)
    assert drawn != draw(1000, 50, 4)
    assert len(drawn) == 50
