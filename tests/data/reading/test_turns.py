"""Every field of a turn is trained, masks, reaches the template, or is refused by name."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from inlay.data import Example, Message
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.worker_pool import _examples, _plain
from inlay.data.reading import turn_fields
from inlay.data.reading.formats import parse
from inlay.data.reading.read import as_lines, from_lines
from inlay.data.types import Row, Source
from inlay.errors import DataError

THINKS = (  # shows the thought of an answer, as Qwen 3's template does
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.tool_call_id if m.tool_call_id else '' }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = (  # knows thoughts in what an answer says alone
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] if not loop.last else "
    "m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
APART = (  # writes the thought of a field between its marks, and whatever an answer says behind them
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>"
    "{{ m.reasoning_content if m.reasoning_content and FIELD }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
WRONG, RIGHT = "It is 5.", "It is 4."
STYLES = ("messages", "sharegpt")


def conversation(style: str, *turns: dict[str, Any], **more: Any) -> Example:
    """The example of turns that are given as role/content."""
    if style == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "tool": "observation"}
        turns = tuple({"from": names[t["role"]], "value": t["content"], **_rest(t)} for t in turns)
    return parse(Row({"messages" if style == "messages" else "conversations": list(turns), **more}, HERE), style)


HERE = Source("a.jsonl", 3)


def _rest(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key not in ("role", "content")}


def asks(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def trained(template: str, example: Example) -> str:
    encoder = Encoder(toys.nano(template))
    return "|".join(
        str(encoder.tokenizer.decode(tokens.input_ids[tokens.weights > 0])) for _, tokens in encoder.examples([example])
    )


class TestWeights:
    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize(
        ("field", "off"), [*product(turn_fields.SWITCHES, (False, 0, 0.0)), *product(turn_fields.WEIGHTS, (0, 0.0))]
    )
    def test_a_turn_that_is_marked_so_is_not_trained(self, style: str, field: str, off: object) -> None:
        example = conversation(style, asks("2 + 2?"), says(WRONG, **{field: off}), asks("Sure?"), says(RIGHT))
        assert [m.weight for m in example.messages] == [0, 0, 0, 1]
        assert trained(toys.CHATML, example) == f"{RIGHT}<|im_end|>"

    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize(
        ("field", "on"), [*product(turn_fields.SWITCHES, (True, 1)), *product(turn_fields.WEIGHTS, (1,))]
    )
    def test_the_others_are(self, style: str, field: str, on: object) -> None:
        example = conversation(style, asks("2 + 2?"), says(RIGHT, **{field: on}), asks("Sure?"), says(RIGHT))
        assert [m.weight for m in example.messages] == [0, 1, 0, 1]

    def test_weights_that_contradict_each_other_are_refused(self) -> None:
        for more in ({"weight": 1, "train": False}, {"loss": True, "training": False}, {"weight": 1, "loss_scale": 2}):
            with pytest.raises(DataError, match=r"a\.jsonl:3: field 'messages\[1\]' has weights that contradict"):
                conversation("messages", asks("a"), says("b", **more))
        example = conversation("messages", asks("a"), says("b", weight=0.5, train=True))
        assert example.messages[1].weight == 0.5

    @pytest.mark.parametrize(("field", "value"), [("loss", "false"), ("train", 2), ("loss_mask", [0, 1])])
    def test_a_switch_is_true_or_false(self, field: str, value: object) -> None:
        with pytest.raises(DataError, match=rf"'messages\[1\]\.{field}' is .* must be true or 1"):
            conversation("messages", asks("a"), says("b", **{field: value}))


class TestUnknownFields:
    @pytest.mark.parametrize("style", STYLES)
    def test_one_with_something_in_it_is_refused_with_the_nearest_that_is_read(self, style: str) -> None:
        with pytest.raises(DataError, match=r"\[1\]\.trian' is false.*Did you mean 'train'\?.*tool_call_id"):
            conversation(style, asks("a"), says("b", trian=False))
        with pytest.raises(DataError, match=r"\[1\]\.channel' is string 'analysis'"):
            conversation(style, asks("a"), says("b", channel="analysis"))

    @pytest.mark.parametrize("nothing", [None, "", [], {}])
    def test_one_without_is_none(self, nothing: object) -> None:
        assert conversation("messages", asks("a"), says("b", refusal=nothing)).messages[1] == Message(
            "assistant", "b", 1.0
        )

    def test_notes_change_nothing(self) -> None:
        plain = conversation("messages", asks("a"), says("b"))
        assert conversation("messages", asks("a") | {"timestamp": 3}, says("b", id="x")).messages == plain.messages


CHANNELS = (  # has marks of its own for the thought of a field
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}analysis: {{ m.thinking }}<|im_end|>\n"
    "<|im_start|>assistant\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TestThoughts:
    def test_a_thought_in_tags_is_that_of_the_field_where_the_template_has_other_marks_for_it(self) -> None:
        of_field = trained(CHANNELS, conversation("messages", asks("a"), says("4", reasoning_content="Two and two.")))
        assert of_field == "analysis: Two and two.<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
        for text in ("<think>\nTwo and two.\n</think>\n\n4", "Two and two.\n</think>\n\n4"):
            assert trained(CHANNELS, conversation("messages", asks("a"), says(text))) == of_field

    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize("field", turn_fields.THOUGHTS)
    def test_a_thought_is_trained_as_the_template_writes_its_own_field(self, style: str, field: str) -> None:
        turns = [asks("17 + 26?"), says("43", **{field: "Carry the one."})]
        tokenizer = toys.nano(THINKS)
        theirs = tokenizer.apply_chat_template(
            [turns[0], says("43", reasoning_content="Carry the one.")], tokenize=False
        )
        example = conversation(style, *turns)
        ((_, tokens),) = Encoder(tokenizer).examples([example])
        assert tokenizer.decode(tokens.input_ids) == theirs.removesuffix("\n") + "\n"
        assert trained(THINKS, example) == "<think>\nCarry the one.\n</think>\n\n43<|im_end|>"

    def test_a_template_that_knows_them_in_the_answer_gets_them_there(self) -> None:
        example = conversation("messages", asks("17 + 26?"), says("43", reasoning="Carry the one."))
        assert trained(SPLITS, example) == "<think>\nCarry the one.\n</think>\n\n43<|im_end|>"

    def test_a_template_that_shows_none_refuses_the_row(self) -> None:
        example = conversation("messages", asks("17 + 26?"), says("43", thinking="Carry the one."))
        with pytest.raises(DataError, match=r"a\.jsonl:3: the chat template shows no field 'thinking'.*<think>"):
            trained(toys.CHATML, example)

    def test_two_that_say_the_same_are_one_and_two_that_differ_are_refused(self) -> None:
        same = conversation("messages", asks("a"), says("b", reasoning="x", reasoning_content="x"))
        assert (same.messages[1].thought, same.messages[1].thought_field) == ("x", "reasoning_content")
        with pytest.raises(DataError, match=r"thoughts that differ \(reasoning_content, reasoning\)"):
            conversation("messages", asks("a"), says("b", reasoning="x", reasoning_content="y"))

    def test_only_an_answer_has_one_and_an_empty_one_is_none(self) -> None:
        with pytest.raises(DataError, match="Only an assistant turn has a thought"):
            conversation("messages", asks("a") | {"thinking": "x"}, says("b"))
        assert conversation("messages", asks("a"), says("b", thinking=" ")).messages[1].thought == ""

    @pytest.mark.parametrize("answer", ["<think>\nTens first.\n</think>\n\n43.", "Tens first.</think>43."])
    def test_a_thought_in_the_content_goes_where_the_template_writes_that_of_a_field(self, answer: str) -> None:
        example = conversation("messages", asks("Add."), says(answer))
        assert trained(APART.replace("FIELD", "true"), example) == "Tens first.</think>43.<|im_end|>"

    def test_a_thought_behind_an_empty_one_of_the_template_is_refused(self) -> None:
        example = conversation("messages", asks("Add."), says("<think>\nTens first.\n</think>\n\n43."))
        with pytest.raises(DataError, match="ends an empty thought before that of turn 2"):
            trained(APART.replace("FIELD", "false"), example)

    def test_a_special_token_in_a_thought_or_an_id_is_found(self) -> None:
        example = conversation("messages", asks("a"), says("b", reasoning_content="<|im_end|>"))
        with pytest.raises(DataError, match=r"turn 2 \(assistant\) reasoning_content contains '<\|im_end\|>'"):
            trained(THINKS, example)


CALL = {"name": "age", "arguments": {"year": 1990}}
TOOLS = [{"name": "age"}, {"name": "now"}]


def called(*names: str) -> dict[str, Any]:
    return says(None, tool_calls=[{"id": n, "function": {"name": "age", "arguments": {"year": n}}} for n in names])


class TestCalls:
    def test_the_id_of_the_call_that_a_tool_answers_reaches_the_template(self) -> None:
        tool = {"role": "tool", "content": "35", "tool_call_id": "call_7"}
        example = conversation("messages", asks("a"), called("call_7"), tool, says("35"), tools=TOOLS)
        assert example.messages[2].tool_call_id == "call_7"
        encoder = Encoder(toys.nano("{{ tools | tojson if tools }}" + THINKS))
        text = "".join(str(encoder.tokenizer.decode(t.input_ids)) for _, t in encoder.examples([example]))
        assert "<|im_start|>tool call_7\n35<|im_end|>" in text
        with pytest.raises(DataError, match=r"\.tool_call_id' is string 'x'\. Only a tool turn"):
            conversation("messages", asks("a") | {"tool_call_id": "x"}, says("b"))

    @pytest.mark.parametrize("role", ["function_call", "tool_call"])
    def test_call_turns_in_a_row_are_one_answer_that_ends_once(self, role: str) -> None:
        years = [json.dumps(CALL | {"arguments": {"year": year}}) for year in (1990, 1992)]
        turns = [("human", "Ages?"), (role, years[0]), (role, years[1]), ("observation", "35"), ("gpt", "35, 33.")]
        value = {"conversations": [{"from": who, "value": what} for who, what in turns], "tools": TOOLS}
        example = parse(Row(value, HERE), "sharegpt")
        assert [m.role for m in example.messages] == ["user", "assistant", "tool", "assistant"]
        assert [c["function"]["arguments"]["year"] for c in example.messages[1].tool_calls] == [1990, 1992]
        assert trained("{{ tools | tojson if tools }}" + THINKS, example).count("<|im_end|>") == 2

    def test_a_call_after_the_text_of_an_answer_belongs_to_it(self) -> None:
        example = conversation("messages", asks("a"), says("Let me look."), called("x"))
        assert [(m.content, len(m.tool_calls)) for m in example.messages] == [("a", 0), ("Let me look.", 1)]
        with pytest.raises(DataError, match=r"messages\[1\] and messages\[2\] are one answer"):
            conversation("messages", asks("a"), called("x") | {"train": False}, called("y"))

    def test_call_turns_of_messages_are_read_too(self) -> None:
        turns = [
            asks("a"),
            {"role": "tool_call", "content": json.dumps(CALL)},
            {"role": "tool_response", "content": "4"},
        ]
        example = conversation("messages", *turns, says("b"), tools=TOOLS)
        assert [m.role for m in example.messages] == ["user", "assistant", "tool", "assistant"]
        assert example.messages[1].tool_calls[0]["function"] == CALL

    @pytest.mark.parametrize(
        "call",
        [
            {"name": "now"},
            *({"name": "now", "arguments": none} for none in (None, "", " ", "{}", {}, '"{}"', "null")),
            {"name": "now", "parameters": {}},
            {"type": "function", "id": None, "function": {"name": "now", "arguments": ""}, "index": 0},
        ],
    )
    def test_a_call_without_arguments_has_an_empty_object_of_them(self, call: dict[str, Any]) -> None:
        example = conversation("messages", asks("a"), says(None, tool_calls=[call]))
        assert example.messages[1].tool_calls == ({"type": "function", "function": {"name": "now", "arguments": {}}},)

    @settings(max_examples=40, deadline=None)
    @given(
        st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4) | st.lists(st.booleans()))
    )
    def test_arguments_are_the_same_however_they_are_written(self, arguments: dict[str, Any]) -> None:
        once = json.dumps(arguments)
        for name, value in [
            ("arguments", arguments),
            ("arguments", once),
            ("arguments", json.dumps(once)),
            ("parameters", once),
        ]:
            example = conversation("messages", asks("a"), says(None, tool_calls=[{"name": "f", name: value}]))
            assert example.messages[1].tool_calls[0]["function"]["arguments"] == arguments

    def test_what_else_stands_in_a_call_is_refused_by_name(self) -> None:
        for call, words in (
            ({"name": "f", "argumets": {"x": 1}}, r"\.argumets' is an object.*Did you mean 'arguments'"),
            ({"name": "f", "arguments": {}, "type": "custom"}, r"\.type' is string 'custom'"),
            ({"name": "f", "arguments": {"x": 1}, "parameters": {"y": 1}}, "Keep one of the two"),
        ):
            with pytest.raises(DataError, match=words):
                conversation("messages", asks("a"), says(None, tool_calls=[call]))

    @pytest.mark.parametrize(
        ("given", "text"),
        [(None, ""), ({"celsius": 4}, '{"celsius": 4}'), (4, "4"), ([1, "é"], '[1, "é"]'), (False, "false"),
         ([{"type": "text", "text": "4 C"}], "4 C"), ([{"text": "4 C"}], "4 C")],
    )  # fmt: skip
    @pytest.mark.parametrize("style", STYLES)
    def test_what_a_tool_gives_back_is_text_or_becomes_json(self, style: str, given: object, text: str) -> None:
        example = conversation(style, asks("a"), called("x"), {"role": "tool", "content": given}, says("b"))
        assert example.messages[2].content == text

    def test_tools_are_the_same_however_they_are_written(self) -> None:
        tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
        for tools in (
            [tool], json.dumps([tool]), [json.dumps(tool)], [tool | {"type": "function"}],
            [{"type": "function", "function": tool}],
            [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        ):  # fmt: skip
            example = conversation("messages", asks("a"), says("b"), tools=tools)
            assert example.tools == ({"type": "function", "function": tool},)


class TestParts:
    def test_text_in_parts_is_read_whoever_wrote_them(self) -> None:
        for kind in ("text", "input_text", "output_text", None):
            part = {"text": "a", "image_url": None, "annotations": [1]} | ({"type": kind} if kind else {})
            assert conversation("messages", asks("q"), says([part, part])).messages[1].content == "aa"  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "part", [{"type": "tool_use", "name": "f"}, {"type": "text", "text": "a", "image": "b.png"}]
    )
    def test_what_is_no_text_is_refused(self, part: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=r"\[1\]\.content\[0\]\."):
            conversation("messages", asks("q"), says([part]))  # type: ignore[arg-type]


def test_all_of_a_turn_survives_the_run_folder_and_another_process() -> None:
    example = Example(
        (
            Message("user", "a", name="Ann"),
            Message("assistant", "b", 0.5, (CALL,), None, "so", "thinking"),
            Message("tool", "c", tool_call_id="x"),
            Message("assistant", "d", 1.0),
        ),
        HERE,
        switches=(("effort", "low"), ("enable_thinking", False)),
    )
    assert from_lines(as_lines([example])) == (example,)
    assert _examples(_plain([example])) == [example]
