"""A shortcut for ordinary rows gives what the careful way gives."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from inlay.data.checks import patterns, text
from inlay.data.encoding.reasoning_prefix import THOUGHTS, _leading, _unopened, parted
from inlay.data.reading import strict_json
from inlay.data.types import normalised

SAID = st.text() | st.text("ab0123456789 .-()\n\t\r\x1c\x01\x7f\u0665é\u2003", max_size=40)


@given(SAID)
@example(" a  b\n")
@example("a\x1fb")
def test_text_without_case_and_white_space(said: str) -> None:
    assert normalised(said) == " ".join(said.split()).casefold()


@given(SAID)
@example("+4 (2)-1 2 3.4  567")
@example("\u0661" * 8)
def test_no_long_number_is_passed_over(said: str) -> None:
    assert patterns._may_hold_long_number(said) or not patterns._LONG_NUMBER.search(said)


def test_every_gate_is_behind_a_character_of_its_own() -> None:
    behind = [(gate, pattern) for gated in patterns._GATED.values() for gate, pattern in gated]
    assert sorted(gate for gate, _ in behind) == sorted(gate for p in patterns.PATTERNS for gate in p.gates)
    assert all(rare in gate for rare, gated in patterns._GATED.items() for gate, _ in gated)


@given(SAID)
def test_no_control_character_is_passed_over(said: str) -> None:
    found = dict(text.damage(said))
    assert (text.CONTROL in found) == bool(text._CONTROL.search(said))
    assert (text.NUL in found) == ("\0" in said)


@given(st.sampled_from([mark for pair in THOUGHTS for mark in pair] + ["", " ", "a"]), SAID, st.sampled_from(THOUGHTS))
def test_a_thought_with_its_opening_or_its_end_alone(before: str, said: str, marks: tuple[str, str]) -> None:
    content = f"{before}{said}{marks[1]}b"
    found = [
        thought
        for opens, closes in THOUGHTS
        if (thought := (_leading if content.lstrip().startswith(opens) else _unopened)(content, opens, closes))
    ]
    assert parted(content) == ((found[0].thought.strip(), found[0].rest) if found else ("", content))


VALUES = st.dictionaries(st.text(), st.recursive(st.integers() | st.text() | st.none(), st.lists, max_leaves=4))


@given(VALUES, st.sampled_from(["", "\n", "\r\n", " ", "\n\n", "}", ",\n", "x"]), st.booleans())
@example({"a": "\ud83d\ude00"}, "\n", True)
def test_a_line_read_at_once_is_read_as_with_care(value: dict[str, object], end: str, escaped: bool) -> None:
    line = json.dumps(value, ensure_ascii=escaped) + end
    plain = strict_json._plain_object(line)
    if plain is not None:
        found, at = strict_json.value_at(line, 0, str)
        assert plain == found == value
        assert not line[at:].strip()
    assert plain is not None or end.strip() or end in (" ", "\n\n") or "\\u" in line
