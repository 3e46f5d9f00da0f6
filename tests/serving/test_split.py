"""Users keep their arm; a change of weights moves as few of them as it must."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.serving.split import PLACES, Split, place_of

ARMS = ("support:3", "support:4", "support:5", "base")
weights = st.dictionaries(st.sampled_from(ARMS), st.integers(0, 100), min_size=1).filter(lambda w: sum(w.values()) > 0)


def moved(before: Split, after: Split) -> dict[tuple[str, str], int]:
    """Places by (arm before, arm after), where the two differ."""
    edges = sorted({piece.start for piece in (*before.pieces, *after.pieces)} | {PLACES})
    found: Counter[tuple[str, str]] = Counter()
    for start, stop in pairwise(edges):
        found[before.arm(start), after.arm(start)] += stop - start
    return {arms: size for arms, size in found.items() if arms[0] != arms[1]}


def sizes(split: Split) -> Counter[str]:
    found: Counter[str] = Counter()
    for piece in split.pieces:
        found[piece.arm] += piece.size
    return found


def is_whole(split: Split) -> bool:
    """Whether every place has one arm."""
    edges = [0, *(piece.stop for piece in split.pieces)]
    return [piece.start for piece in split.pieces] == edges[:-1] and edges[-1] == PLACES


@given(st.lists(weights, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_change_moves_only_as_many_users_as_an_arm_grows_and_none_between_other_arms(
    steps: list[dict[str, int]],
) -> None:
    split = Split.of(steps[0])
    assert is_whole(split)
    for step in steps[1:]:
        after = split.changed(step)
        assert is_whole(after)
        growth = {arm: sizes(after)[arm] - sizes(split)[arm] for arm in ARMS}
        moves = moved(split, after)
        assert sum(moves.values()) == sum(max(0, size) for size in growth.values())
        assert all(growth[old] < 0 < growth[new] for old, new in moves)
        total = sum(step.values())
        assert all(abs(sizes(after)[arm] / PLACES - step.get(arm, 0) / total) < 1e-12 for arm in ARMS)
        split = after


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_test_that_is_widened_and_narrowed_again_gives_the_first_users_their_arm_back(
    first: int, second: int
) -> None:
    before = Split.of({"a": 100 - first, "b": first})
    assert (
        before.changed({"a": 100 - second, "b": second}).changed({"a": 100 - first, "b": first}).shares == before.shares
    )
    if 0 < first < 100 and second < 100:
        assert before.changed({"a": 100 - second, "b": second}).changed({"a": 100 - first, "b": first}) == before


def test_from_10_to_20_percent_one_user_in_ten_moves_and_all_of_them_to_the_new_arm() -> None:
    narrow = Split.of({"a": 90, "b": 10})
    wide = narrow.changed({"a": 80, "b": 20})
    users = [place_of(f"user {n}", b"secret") for n in range(20_000)]
    moves = Counter((narrow.arm(user), wide.arm(user)) for user in users)
    assert moves["b", "a"] == 0
    assert abs(moves["a", "b"] / len(users) - 0.1) < 0.01
    assert abs(moves["b", "b"] / len(users) - 0.1) < 0.01


def test_a_user_has_the_same_place_every_time_and_another_one_under_another_secret() -> None:
    assert place_of("ann", b"one") == 12905990337107296025  # a stored test goes on under every later version
    split = Split.of({"a": 50, "b": 50})
    arms = [(split.arm(place_of(f"u{n}", b"one")), split.arm(place_of(f"u{n}", b"two"))) for n in range(8_000)]
    both = Counter(arms)
    assert all(abs(count / len(arms) - 0.25) < 0.02 for count in both.values())  # the two tests share no users
    assert len(both) == 4
