"""Each format is found by its fields and gives the turns that its rows mean."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.data import Example, Message, read_examples
from inlay.data.reading.detection import detect
from inlay.data.reading.formats import FORMATS, parse
from inlay.data.reading.read import stream_examples
from inlay.data.types import Row, Source
from inlay.errors import DataError


def row(value: dict[str, Any], line: int = 1) -> Row:
    return Row(value, Source("a.jsonl", line))


def turns(example: Example) -> list[tuple[str, str, float]]:
    return [(m.role, m.content, m.weight) for m in example.messages]


def parsed(value: dict[str, Any], name: str) -> list[tuple[str, str, float]]:
    return turns(parse(row(value), name))


def written(folder: Path, values: list[dict[str, Any]]) -> str:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


class TestContract:
    """What every line of FORMATS must hold; a new format passes these or is not one."""

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_example_row_is_detected_as_its_own_format(self, name: str) -> None:
        example = FORMATS[name].example
        assert detect([row(example)] * 3).name == name
        assert detect([row(example | {"id": 7})]).name == name

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_example_row_survives_a_file_and_has_a_trained_turn(self, name: str, tmp_path: Path) -> None:
        example = FORMATS[name].example
        direct = parse(row(example), name)
        assert any(m.weight > 0 for m in direct.messages)
        assert direct.source == Source("a.jsonl", 1)
        result = read_examples(written(tmp_path, [example]))
        assert result.format == name
        assert result.examples[0].messages == direct.messages
        assert result.examples[0].tools == direct.tools

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_required_field_that_is_missing_misspelt_or_null_is_named(self, name: str) -> None:
        chosen = FORMATS[name]
        for choice in chosen.required:
            field = choice.partition("|")[0]
            without = {key: value for key, value in chosen.example.items() if key != field}
            for bad in (without, without | {field + "s": chosen.example[field]}, without | {field: None}):
                with pytest.raises(DataError, match=rf"a\.jsonl:4: .*'{field}'"):
                    parse(row(bad, 4), name)

    @pytest.mark.parametrize("name", FORMATS)
    def test_it_describes_itself_in_one_line(self, name: str) -> None:
        assert FORMATS[name].name == name
        assert FORMATS[name].about.endswith(".")
        assert "\n" not in FORMATS[name].about

    @pytest.mark.parametrize("name", FORMATS)
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_values_in_its_fields_give_an_example_or_one_line(self, name: str, data: st.DataObject) -> None:
        atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        keys = st.sampled_from(["role", "content", "from", "value", "weight", "tool_calls", "type", "text", "name"])
        words = atoms | st.sampled_from(["user", "assistant", "human", "gpt", "function_call", "tool", "{}", "[1]"])
        anything = st.recursive(
            words, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=10
        )
        value = {field: data.draw(anything) for field in FORMATS[name].fields}
        refusal = ""
        try:
            example = parse(row(value), name)
        except DataError as error:
            refusal = str(error)
        if refusal:
            assert refusal.startswith("a.jsonl:1: ")
            assert "\n" not in refusal
        else:
            assert example.messages[-1].weight > 0


class TestDetection:
    def test_the_reason_names_the_fields_used_and_those_ignored(self) -> None:
        found = detect([row({"question": "a", "answer": "b", "id": 1})])
        assert (found.name, found.ignored) == ("question_answer", ("id",))
        assert "question, answer; ignored: id" in found.why

    def test_a_text_with_a_label_is_not_plain_text(self) -> None:
        assert detect([row({"text": "a", "label": 1})]).name == "classification"
        assert detect([row({"text": "a", "source": "b"})]).name == "text"

    def test_rows_with_and_without_input_are_one_alpaca_file(self) -> None:
        with_input = {"instruction": "a", "input": "b", "output": "c"}
        without = {"instruction": "a", "output": "c"}
        assert detect([row(without), row(with_input), row(without)]).name == "alpaca"
        assert detect([row(without)]).name == "instruction_output"
        assert detect([row({"instruction": "a", "response": "c"})]).name == "instruction_output"

    def test_rendered_text_beside_the_turns_does_not_confuse(self) -> None:
        assert detect([row(FORMATS["alpaca"].example | {"text": "rendered"})]).name == "alpaca"
        assert detect([row(FORMATS["messages"].example | {"prompt": "a", "prompt_id": "b"})]).name == "messages"

    def test_one_bad_row_leaves_the_format_to_the_others_and_is_refused_on_its_own_line(self) -> None:
        good, bad = FORMATS["alpaca"].example, {"instuction": "a", "input": "", "output": "b"}
        assert detect([row(good), row(bad), row(good)]).name == "alpaca"

    def test_the_order_of_rows_and_fields_does_not_matter(self) -> None:
        example = FORMATS["alpaca"].example
        backwards = dict(reversed(example.items()))
        assert detect([row(backwards)]).name == detect([row(example)]).name

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(DataError, match="no rows"):
            detect([])

    def test_a_named_format_is_not_second_guessed(self, tmp_path: Path) -> None:
        judged = FORMATS["messages"].example | {"label": False}
        assert read_examples(written(tmp_path, [judged]), "messages").format == "messages"
        with pytest.raises(DataError, match=r"unknown format 'mesages'.*Did you mean 'messages'"):
            read_examples(written(tmp_path, [judged]), "mesages")


class TestInstructions:
    def test_input_follows_the_instruction_after_an_empty_line(self) -> None:
        value = {"instruction": "Add.", "input": "2 3", "output": " 5\n"}
        assert parsed(value, "alpaca") == [("user", "Add.\n\n2 3", 0), ("assistant", " 5\n", 1)]

    @pytest.mark.parametrize("blank", ["", "  ", None])
    def test_a_blank_input_system_or_history_is_as_good_as_none(self, blank: str | None) -> None:
        value = {"instruction": "a", "input": blank, "output": "b", "system": blank, "history": blank or None}
        assert parsed(value, "alpaca") == [("user", "a", 0), ("assistant", "b", 1)]

    def test_system_and_history_come_first_and_old_answers_are_trained(self) -> None:
        value = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
        expected = [
            ("system", "s", 0),
            ("user", "a", 0),
            ("assistant", "b", 1),
            ("user", "c", 0),
            ("assistant", "d", 1),
        ]
        assert parsed(value, "instruction_output") == expected


class TestConversations:
    def test_weights_are_kept_and_0_masks(self) -> None:
        value = {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": 0},
                {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
                {"role": "assistant", "content": "e", "weight": 0.5},
            ]
        }
        weights = [
            ("system", "s", 0),
            ("user", "a", 0),
            ("assistant", "b", 0),
            ("user", "cd", 0),
            ("assistant", "e", 0.5),
        ]
        assert parsed(value, "messages") == weights

    def test_what_follows_the_last_trained_turn_is_dropped(self) -> None:
        value = {"conversations": [{"from": f, "value": f} for f in ("human", "gpt", "human")]}
        assert parsed(value, "sharegpt") == [("user", "human", 0), ("assistant", "gpt", 1)]

    def test_a_greeting_and_repeated_roles_are_allowed(self) -> None:
        roles = ["assistant", "user", "user", "assistant", "assistant"]
        value = {"messages": [{"role": role, "content": "x"} for role in roles]}
        assert [role for role, _, _ in parsed(value, "messages")] == roles

    @pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
    @pytest.mark.parametrize(
        "call",
        [
            {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
            {"tool_calls": [{"id": "1", "name": "f", "arguments": {"x": 1}}]},
        ],
    )
    def test_tool_calls_have_one_shape(self, content: dict[str, Any], call: dict[str, Any]) -> None:
        value = {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", **content, **call},
                {"role": "tool", "name": "f", "content": ""},
                {"role": "assistant", "content": "b"},
            ],
            "tools": [{"name": "f"}],
        }
        example = parse(row(value), "messages")
        function = {"name": "f", "arguments": {"x": 1}}
        expected = {"type": "function", "function": function, "id": "1"}
        assert example.messages[1] == Message("assistant", "", 1.0, (expected,))
        assert example.messages[2] == Message("tool", "", 0.0, (), "f")
        assert example.tools == ({"type": "function", "function": {"name": "f"}},)

    @pytest.mark.parametrize(
        "call", ['{"name": "f", "arguments": {"x": 1}}', '[{"name": "f", "arguments": "{\\"x\\": 1}"}]']
    )
    def test_a_sharegpt_call_is_an_openai_call(self, call: str) -> None:
        value = {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": call},
                {"from": "observation", "value": "b"},
                {"from": "gpt", "value": "c"},
            ],
            "tools": '[{"name": "f"}]',
        }
        example = parse(row(value), "sharegpt")
        expected = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        assert example.messages[2] == Message("assistant", "", 1.0, (expected,))
        assert [m.role for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert example.tools == ({"type": "function", "function": {"name": "f"}},)

    @pytest.mark.parametrize("tools", [None, "", "[]", []])
    def test_no_tools_is_no_tools(self, tools: object) -> None:
        value = FORMATS["messages"].example | {"tools": tools}
        assert parse(row(value), "messages").tools == ()

    def test_a_conversational_prompt_trains_only_the_completion(self) -> None:
        value = {
            "prompt": [{"role": role, "content": role} for role in ("user", "assistant", "user")],
            "completion": [{"role": "assistant", "content": "x"}],
        }
        assert [weight for _, _, weight in parsed(value, "prompt_completion")] == [0, 0, 0, 1]


class TestPlainRows:
    def test_a_document_is_one_text_turn(self) -> None:
        assert parsed({"text": " a\n"}, "text") == [("text", " a\n", 1)]

    @pytest.mark.parametrize(("label", "content"), [("x", "x"), (3, "3"), (0, "0"), (0.5, "0.5")])
    def test_a_label_is_the_answer_to_its_text(self, label: object, content: str) -> None:
        assert parsed({"text": "a", "label": label}, "classification") == [
            ("user", "a", 0),
            ("assistant", content, 1),
        ]


class TestColumns:
    def test_columns_are_read_under_the_names_of_the_format(self, tmp_path: Path) -> None:
        path = written(tmp_path, [{"text": "a", "code": "b", "task_id": 1}])
        result = read_examples(path, columns={"prompt": "text", "completion": "code"})
        assert result.format == "prompt_completion"
        assert turns(result.examples[0]) == [("user", "a", 0), ("assistant", "b", 1)]
        value = {"utterance": "a", "category": "b"}
        assert (
            parse(row(value), "classification", {"text": "utterance", "label": "category"}).messages[1].content == "b"
        )

    def test_a_mapped_object_list_or_number_becomes_its_json(self) -> None:
        value = {"utterance": "a", "slots": {"é": ["x"]}, "n": 51.0, "empty": None}
        for column, content in (("slots", '{"é": ["x"]}'), ("n", "51.0")):
            example = parse(row(value), "prompt_completion", {"prompt": "utterance", "completion": column})
            assert example.messages[1].content == content
        with pytest.raises(DataError, match="'completion' is null"):
            parse(row(value), "prompt_completion", {"prompt": "utterance", "completion": "empty"})

    def test_mapped_turns_stay_turns(self) -> None:
        value = {"dialog": FORMATS["messages"].example["messages"]}
        assert len(parse(row(value), "messages", {"messages": "dialog"}).messages) == 2

    def test_two_fields_may_trade_names(self) -> None:
        value = {"prompt": "answer", "completion": "question"}
        columns = {"prompt": "completion", "completion": "prompt"}
        assert parsed(value, "prompt_completion")[0][1] == "answer"
        assert turns(parse(row(value), "prompt_completion", columns))[0][1] == "question"

    def test_an_unknown_column_or_field_names_the_nearest(self, tmp_path: Path) -> None:
        path = written(tmp_path, [{"utterance": "a", "code": "b"}])
        with pytest.raises(
            DataError, match=r"a\.jsonl:1: columns: unknown column 'uterance'\. Did you mean 'utterance'"
        ):
            read_examples(path, columns={"prompt": "uterance", "completion": "code"})
        with pytest.raises(DataError, match=r"columns: unknown field 'promt'\. Did you mean 'prompt'"):
            read_examples(path, columns={"promt": "utterance"})
        with pytest.raises(DataError, match=r"unknown field 'answer'"):
            read_examples(path, "prompt_completion", columns={"answer": "code"})


def test_examples_can_be_streamed(tmp_path: Path) -> None:
    example = FORMATS["question_answer"].example
    path = written(tmp_path, [example] * 300 + [{"question": "a", "answer": ""}])
    found, examples = stream_examples(path)
    assert found.name == "question_answer"
    assert next(examples).source.line == 1
    with pytest.raises(DataError, match=r"a\.jsonl:301: field 'answer' is an empty string"):
        list(examples)


def test_the_hash_of_a_read_file_is_its_sha256(tmp_path: Path) -> None:
    path = written(tmp_path, [FORMATS["text"].example] * 300)
    assert read_examples(path).hash == hashlib.sha256(Path(path).read_bytes()).hexdigest()


ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
WORSE = {"role": "assistant", "content": "bad"}
CHOSEN = [("user", "q", 0), ("assistant", "good", 1)]


class TestPreferences:
    @pytest.mark.parametrize(
        "value",
        [
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
            {"prompt": [ASK], "chosen": [SAY], "rejected": [WORSE]},
            {"prompt": "q", "chosen": SAY, "rejected": WORSE},
            {"chosen": [ASK, SAY], "rejected": [ASK, WORSE]},
            {"prompt": "q", "chosen": [ASK, SAY], "rejected": [ASK, WORSE], "messages": [ASK, SAY]},
            {"chosen": [ASK, SAY], "rejected": [ASK, SAY]},
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
        ],
    )
    def test_every_shape_is_found_and_trains_the_chosen_answer_alone(
        self, value: dict[str, Any], tmp_path: Path
    ) -> None:
        read = read_examples(written(tmp_path, [value]))
        assert read.format == "preference"
        assert "the chosen answer is trained, the rejected one is not" in read.why
        assert turns(read.examples[0]) == CHOSEN

    def test_of_whole_conversations_only_what_parts_them_is_trained(self) -> None:
        before = [ASK, {"role": "assistant", "content": "both"}, {"role": "user", "content": "more"}]
        value = {"chosen": [*before, SAY], "rejected": [*before, WORSE]}
        assert [weight for _, _, weight in parsed(value, "preference")] == [0, 0, 0, 1]

    def test_a_prompt_of_several_turns_is_not_trained(self) -> None:
        value = {"prompt": [ASK, SAY, ASK], "chosen": "good", "rejected": "bad", "system": "s"}
        assert [(role, weight) for role, _, weight in parsed(value, "preference")] == [
            ("system", 0), ("user", 0), ("assistant", 0), ("user", 0), ("assistant", 1),
        ]  # fmt: skip

    def test_openai_preference_files_train_the_preferred_output_with_the_tools_of_the_input(self) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        value = FORMATS["openai_preference"].example
        value = value | {"input": value["input"] | {"tools": [tool], "parallel_tool_calls": True}}
        example = parse(row(value), detect([row(value)]).name)
        assert turns(example) == [("user", "Hi", 0), ("assistant", "Hello!", 1)]
        assert example.tools == (tool,)

    def test_a_named_format_says_what_is_trained_too(self, tmp_path: Path) -> None:
        path = written(tmp_path, [FORMATS["preference"].example])
        assert "the chosen answer is trained" in read_examples(path, "preference").why


class TestPairs:
    @pytest.mark.parametrize(("question", "answer"), [("input", "output"), ("source", "target")])
    def test_a_pair_is_a_question_and_its_answer(self, question: str, answer: str) -> None:
        value = {question: "q", answer: "a"}
        assert detect([row(value)]).name == f"{question}_{answer}"
        assert parsed(value, f"{question}_{answer}") == [("user", "q", 0), ("assistant", "a", 1)]

    def test_a_note_of_the_source_makes_no_source_of_it(self) -> None:
        assert detect([row({"input": "q", "output": "a", "source": "web"})]).name == "input_output"


class TestVariants:
    @pytest.mark.parametrize("ask", ["human", "user"])
    @pytest.mark.parametrize("say", ["gpt", "assistant", "chatgpt", "model", "bot"])
    @pytest.mark.parametrize("tool", ["tool", "observation", "function_response", "tool_response"])
    @pytest.mark.parametrize("call", ["function_call", "tool_call"])
    def test_sharegpt_roles_have_many_names(self, ask: str, say: str, tool: str, call: str) -> None:
        value = {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": ask, "value": "q"},
                {"from": call, "value": '{"name": "f", "arguments": {}}'},
                {"from": tool, "value": "4"},
                {"from": say, "value": "a"},
            ]
        }
        assert [role for role, _, _ in parsed(value, "sharegpt")] == [
            "system", "user", "assistant", "tool", "assistant",
        ]  # fmt: skip

    def test_functions_are_the_older_name_of_tools(self) -> None:
        value = FORMATS["messages"].example | {"functions": [{"name": "f"}], "parallel_tool_calls": False}
        assert detect([row(value)]).ignored == ()
        assert parse(row(value), "messages").tools == ({"type": "function", "function": {"name": "f"}},)
