"""Dataclasses come back from JSON as they went in, and a value of the wrong type is named by its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.typed_json import Mistyped, decode, encode


@dataclass(frozen=True)
class Leaf:
    """A nested value with a choice."""

    kind: Literal["oak", "elm"]
    weight: float


@dataclass(frozen=True)
class Tree:
    """Every shape that our files use."""

    name: str
    count: int
    best: Leaf | None
    is_old: bool = False
    note: str | None = None
    leaves: tuple[Leaf, ...] = ()
    spans: list[tuple[int, int]] = field(default_factory=list)
    by_name: Mapping[str, Leaf | None] = field(default_factory=dict)


LEAVES = st.builds(Leaf, st.sampled_from(["oak", "elm"]), st.floats(allow_nan=False, allow_infinity=False))
TREES = st.builds(
    Tree, st.text(), st.integers(), st.none() | LEAVES, st.booleans(), st.none() | st.text(),
    st.lists(LEAVES).map(tuple), st.lists(st.tuples(st.integers(), st.integers())),
    st.dictionaries(st.text(), st.none() | LEAVES),
)  # fmt: skip


@given(TREES)
def test_what_is_encoded_is_decoded_as_it_was(tree: Tree) -> None:
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree


def test_only_empty_defaults_are_left_out() -> None:
    assert encode(Tree("a", 1, None)) == {
        "name": "a", "count": 1, "best": None, "is_old": False, "spans": [], "by_name": {},
    }  # fmt: skip


def test_a_missing_key_is_its_default_or_null_and_an_unknown_key_is_passed_over() -> None:
    assert decode(Tree, {"name": "a", "count": 1, "height": 3}) == Tree("a", 1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, r"^count: must be int \(got True\)"),
        ({"count": 1.0}, r"^count: must be int \(got 1.0\)"),
        ({"name": None}, r"^name: must be str \(got None\)"),
        ({"best": {"kind": "ash", "weight": 1}}, r"^best.kind: must be Literal\['oak', 'elm'\] \(got 'ash'\)"),
        ({"leaves": [{"kind": "oak", "weight": "1"}]}, r"^leaves\[0\].weight: must be float \(got '1'\)"),
        ({"by_name": {"x": {"kind": "oak"}}}, r"^by_name.x.weight: missing"),
        ({"spans": [[1, 2, 3]]}, r"^spans\[0\]: must hold 2 values \(got 3\)"),
        ({"leaves": {}}, r"^leaves: must be tuple"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(Mistyped, match=message):
        decode(Tree, {"name": "a", "count": 1} | change)


def test_a_whole_number_in_the_place_of_a_float_is_one() -> None:
    assert decode(Leaf, {"kind": "oak", "weight": 2}) == Leaf("oak", 2.0)


class Line(TypedDict, total=False):
    """A line of a log."""

    step: int


def test_a_typed_dict_keeps_its_keys_also_those_of_another_version() -> None:
    assert decode(Line, {"step": 3, "later": 1}) == {"step": 3, "later": 1}
    with pytest.raises(Mistyped):
        decode(Line, [3])
