"""Every field of a row is used, named among what is not, or refused: in the shapes of ten ecosystems and more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data import Example, read_examples
from inlay.data.checks.report import check_files
from inlay.data.reading import row_fields, turn_fields
from inlay.data.reading.detection import detect
from inlay.data.reading.formats import FORMATS
from inlay.data.types import Row, Source
from inlay.errors import DataError
from parts import write_rows

ASK, SAY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
HUMAN, GPT = {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}
SHAPES: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": [{"role": "system", "content": "Be kind."}, ASK, SAY]},
    "OpenAI, tools": {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c1", "content": "4"}, SAY],
        "tools": [TOOL],
    },
    "OpenAI, preference": FORMATS["openai_preference"].example,
    "Gemini and Vertex": {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
        "contents": [{"role": "user", "parts": [{"text": "2 + 2?"}]}, {"role": "model", "parts": [{"text": "4"}]}],
    },
    "Anthropic and Bedrock": {"system": [{"text": "Be kind."}], "messages": [ASK, SAY]},
    "ShareGPT": {"conversations": [HUMAN, GPT], "system": "Be kind."},
    "LLaMA-Factory, tools": FORMATS["sharegpt"].example,
    "ms-swift": {
        "messages": [ASK, {"role": "tool_call", "content": '{"name": "add", "arguments": {}}'},
                     {"role": "tool_response", "content": "4"}, SAY | {"loss": True}],
        "tools": json.dumps([TOOL]),
    },
    "Axolotl": {"messages": [ASK, SAY | {"train": False}, ASK, SAY | {"train": True}]},
    "NeMo": {"system": "", "mask": "User", "conversations": [HUMAN, GPT | {"loss_mask": 1}]},
    "Qwen and DeepSeek": {"messages": [ASK, SAY | {"reasoning_content": "Two and two."}]},
    "gpt-oss": {"messages": [ASK, SAY | {"thinking": "Two and two."}]},
    "Alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4"},
    "Dolly": {"instruction": "Add 2 and 2.", "context": "", "response": "4", "category": "sums"},
    "TRL": {"prompt": [ASK], "completion": [SAY]},
    "TRL, KTO": {"prompt": "2 + 2?", "completion": "4", "label": True},
    "TRL, DPO": {"prompt": "2 + 2?", "chosen": [SAY], "rejected": [SAY | {"content": "5"}]},
    "Orca, DPO": {"system": "Be kind.", "question": "2 + 2?", "chosen": "4", "rejected": "5"},
    "GSM8K": {"question": "2 + 2?", "answer": "4"},
    "a table of labels": {"text": "2 + 2?", "label": "sum"},
}  # fmt: skip
NAMES = sorted({
    *(name for form in FORMATS.values() for name in form.fields), *row_fields.SYSTEMS, *row_fields.SWITCHES, *row_fields.NOTES, *row_fields.COSTS,
    *(name for kind in row_fields.KINDS for name in kind.names), *turn_fields.KNOWN, "A", "B", "option_1", "option_2", "split",
} - set(row_fields.PARTS))  # fmt: skip
WITHOUT_EFFECT = {"parallel_tool_calls"}
VALUES = (
    st.sampled_from([None, "", True, False, 0, 1, 2, 0.5, -1, "true", "False", "0", "x", " ", "test", [], {}, ["x"], [["q", "a"]],
                     {"a": 1}, [TOOL], [CALL], [ASK, SAY], [HUMAN, GPT], [{"text": "x"}], json.dumps([ASK, SAY])])
    | st.text(max_size=3) | st.integers(-2, 9) | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
HERE = Source("a.jsonl", 3)


def read(value: dict[str, Any]) -> Example:
    row = Row(value, HERE)
    return FORMATS[detect([row]).name].parse(row, strict=True)


def read_or_refused(value: dict[str, Any]) -> Example | str:
    try:
        return read(value)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_read_without_naming_a_format(shape: str) -> None:
    assert read(SHAPES[shape]).messages[-1].weight > 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(NAMES) | st.text("abcd_", min_size=1, max_size=5), VALUES)
@example("TRL, KTO", "images", ["a.png"])
@example("Alpaca", "response", "5")
@example("TRL, DPO", "input", "so")
@example("OpenAI, tools", "functions", [TOOL])
def test_one_field_more_in_a_row_is_used_named_or_refused(shape: str, name: str, value: object) -> None:
    before = SHAPES[shape]
    if name in before:
        return
    found = read_or_refused(before | {name: value})
    if isinstance(found, str):
        assert name in found
    elif found == read(before):
        assert name in found.unread or row_fields.is_empty(value) or name in WITHOUT_EFFECT


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(NAMES) | st.text("abcd_", min_size=1, max_size=5),
    VALUES,
    st.data(),
)
def test_one_field_more_in_a_turn_is_used_or_a_note_or_refused(
    shape: str, name: str, value: object, data: st.DataObject
) -> None:
    before = SHAPES[shape]
    lists = [key for key in ("messages", "conversations") if key in before]
    if not lists:
        return
    turns = list(before[lists[0]])
    at = data.draw(st.integers(0, len(turns) - 1))
    if name in turns[at]:
        return
    turns[at] = turns[at] | {name: value}
    found = read_or_refused(before | {lists[0]: turns})
    if isinstance(found, str):
        assert name in found or (
            name in (*turn_fields.WEIGHTS, *turn_fields.SWITCHES) and "nothing to train on" in found
        )
    elif found == read(before) and name not in (*turn_fields.WEIGHTS, *turn_fields.SWITCHES):
        assert name in turn_fields.NOTES or row_fields.is_empty(value)


@pytest.mark.parametrize(
    "value",
    [
        *({"prompt": "a", "completion": "b", "label": bad} for bad in (False, 0, "False", "0", "false", 0.0)),
        {"prompt": "a", "completion": "b", "desirable": False},
        {"instruction": "a", "output": "b", "kto_tag": False},
        {"prompt": "a", "completion": "b", "label": -1},
        {"prompt": "a", "completion": "b", "label": "Undesirable"},
        {"prompt": "a", "completion": "b", "preferred": False},
        {"messages": [ASK, SAY], "label": False},
        {"messages": [ASK, SAY], "rejected": True},
        {"question": "a", "answer": "b", "reward": 0.0},
        {"question": "a", "answer": "b", "score": -1},
        {"question": "a", "answer": "b", "quality": "Bad"},
        {"question": "a", "answer": "b", "rating": "thumbs_down"},
        {"messages": [ASK, SAY], "feedback": "thumbs_down"},
        {"messages": [ASK, SAY], "vote": 0},
    ],
)
def test_a_row_that_is_judged_bad_is_not_trained_unless_the_format_is_named(
    value: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: field '\w+' is .* rows are judged good or bad.*format="):
        read(value)
    good = {name: True if name in row_fields.KINDS[1].names else v for name, v in value.items()}
    if good != value:
        read(good)
    path = write_rows(tmp_path / "a.jsonl", [value])
    form = detect([Row(value, HERE)]).name
    assert len(read_examples(str(path), form).examples) == 1


def test_a_bad_row_is_found_wherever_it_stands(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": n != 150} for n in range(200)]
    with pytest.raises(DataError, match=r"a\.jsonl:151: field 'label' is false"):
        read_examples(str(write_rows(tmp_path / "a.jsonl", rows)))


def test_what_no_text_model_can_read_is_refused_also_in_a_named_format(tmp_path: Path) -> None:
    value = {"messages": [ASK | {"content": "<image>What is it?"}, SAY], "images": ["a.png"]}
    path = str(write_rows(tmp_path / "a.jsonl", [value]))
    for form in ("auto", "messages"):
        with pytest.raises(DataError, match=r"field 'images' is a list of 1: the model would not see"):
            read_examples(path, form)
    assert read(value | {"images": []}).unread == ()


@pytest.mark.parametrize("name", row_fields.SYSTEMS)
@pytest.mark.parametrize("form", [name for name in FORMATS if name != "text"])
def test_a_system_prompt_beside_the_turns_is_the_system_turn(form: str, name: str) -> None:
    for system in ("Be kind.", [{"text": "Be kind."}]):
        found = read(FORMATS[form].example | {name: system})
        assert (found.messages[0].role, found.messages[0].content, found.messages[0].weight) == (
            "system",
            "Be kind.",
            0,
        )
        assert found.messages[1:] == read(FORMATS[form].example).messages
    with pytest.raises(DataError, match="two system prompts"):
        read(FORMATS[form].example | dict(zip(row_fields.SYSTEMS[:2], ("a", "b"), strict=True)))


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "text"])
@pytest.mark.parametrize(
    "fields",
    [{"chat_template_kwargs": {"enable_thinking": False, "style": None}}, {"chat_template_kwargs": '{"enable_thinking": false}'},
     {"enable_thinking": False}, {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}}],
)  # fmt: skip
def test_switches_of_the_chat_template_are_those_of_the_row(form: str, fields: dict[str, Any]) -> None:
    found = read(FORMATS[form].example | fields)
    assert (found.switches, found.unread) == ((("enable_thinking", False),), ())
    assert found.messages == read(FORMATS[form].example).messages


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"chat_template_kwargs": ["x"]}, "'chat_template_kwargs' is a list of 1"),
     ({"chat_template_kwargs": {"tools": ["x"]}}, r"'chat_template_kwargs\.tools' is a list of 1"),
     ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "contradict each other")],
)  # fmt: skip
def test_a_switch_that_is_no_plain_value_or_contradicts_another_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(SHAPES["OpenAI"] | fields)


def test_turns_of_gemini_are_those_of_messages() -> None:
    found = read(SHAPES["Gemini and Vertex"])
    assert found.messages == read(SHAPES["OpenAI"]).messages
    assert found.unread == ()
    turns = SHAPES["Gemini and Vertex"]["contents"]
    for part in ({"inlineData": {"data": "x"}}, {"functionCall": {"name": "f"}}, {"text": "so", "thought": True}):
        with pytest.raises(DataError, match=r"'contents\[1\]\.parts\[0\]\.\w+' is .*Only the text of a part"):
            read({"contents": [turns[0], {"role": "model", "parts": [part]}]})
    with pytest.raises(DataError, match=r"role/parts, which is format 'gemini'.*columns: \{contents: messages\}"):
        read({"messages": turns})
    with pytest.raises(DataError, match=r"role/content, which is format 'messages'.*columns: \{messages: contents\}"):
        read({"contents": [ASK, SAY]})


def test_the_nested_file_of_squad_is_refused_with_the_row_to_write(tmp_path: Path) -> None:
    answers = [{"text": "resin", "answer_start": 9}]
    paragraph = {"context": "Amber is resin.", "qas": [{"id": "1", "question": "What is it?", "answers": answers}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": [paragraph]}]}))
    with pytest.raises(DataError, match=r'a\.json:1: .*Write a row for each question.*"output": qa\["answers"\]\[0\]'):
        read_examples(str(path))


def test_a_list_of_choices_is_to_be_written_into_the_question() -> None:
    for value in (["4", "5"], {"text": ["4"], "label": ["A"]}):
        with pytest.raises(
            DataError, match=r"would not see the choices\. Write them into the question.*\"A\. first\""
        ) as e:
            read({"question": "2 + 2?", "choices": value, "answer": "A"})
        assert "columns" not in str(e.value)


def test_a_question_after_the_last_answer_is_named_as_not_read(tmp_path: Path) -> None:
    assert read({"messages": [ASK, SAY, ASK]}).unread == (row_fields.UNANSWERED,)
    assert read({"messages": [SAY, ASK, SAY, ASK]}).unread == row_fields.PARTS
    assert read({"messages": [ASK, SAY, ASK, SAY | {"weight": 0}]}).unread == ()  # the row says so itself
    path = str(write_rows(tmp_path / "a.jsonl", [{"messages": [ASK, SAY, ASK]}]))
    (found,) = check_files([TrainFile(path=path)], DataConfig(train="-")).findings
    assert found.places[0].shown == "the turns after the last answer: not read, as no answer follows them"


def test_the_choices_of_a_question_are_not_left_out() -> None:
    for names in ("ABCD", ("option_a", "option_b"), ("choice1", "choice2"), ("opa", "opb")):
        value = {"question": "Which?", "answer": "A", **dict.fromkeys(names, "x")}
        with pytest.raises(DataError, match=f"the model would not see the choices {names[0]}, {names[1]}"):
            read(value)


@pytest.mark.parametrize("name", row_fields.SPLITS)
def test_rows_of_two_splits_are_not_trained_together(tmp_path: Path, name: str) -> None:
    rows = [{"question": f"q{n}", "answer": "a", name: "train" if n < 150 else "test"} for n in range(160)]
    with pytest.raises(DataError, match=rf"a\.jsonl:151: field '{name}' is string 'test', while rows before"):
        read_examples(str(write_rows(tmp_path / "a.jsonl", rows)))
    assert len(read_examples(str(write_rows(tmp_path / "b.jsonl", rows[150:]))).examples) == 10
    assert len(read_examples(str(tmp_path / "a.jsonl"), "question_answer").examples) == 160


@pytest.mark.parametrize("name", row_fields.RATINGS)
def test_an_answer_rated_low_is_not_trained_beside_those_rated_high(tmp_path: Path, name: str) -> None:
    def path(*ratings: object) -> str:
        return str(write_rows(tmp_path / "a.jsonl", [SHAPES["GSM8K"] | {name: rating} for rating in ratings]))

    for ratings in ((5, 1, 4), ("5", "4", "1.0"), (10, 4), (4, 2)):
        with pytest.raises(DataError, match=rf"a\.jsonl:[23]: field '{name}' is .*other rows are rated \d+.*format="):
            read_examples(path(*ratings))
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*other rows are rated 5"):
        read_examples(path(1, 3, 5))
    for fine in ((5, 3, 4), (1, 1, 1), (1, 2, 3), ("good", None, 5), (900, 3)):
        assert len(read_examples(path(*fine)).examples) == len(fine)
    assert len(read_examples(path(5, 1), "question_answer").examples) == 2


def test_a_weight_of_one_is_none_and_another_is_refused() -> None:
    assert read(SHAPES["GSM8K"] | {"weight": 1.0}).unread == ("weight",)
    with pytest.raises(DataError, match=r"'weight' is number 0\.5: it could be how much the row counts"):
        read(SHAPES["GSM8K"] | {"weight": 0.5})


def test_what_is_left_out_is_named_with_what_it_costs() -> None:
    value = SHAPES["OpenAI"] | {"id": 7, "topic": "sums", "rejected_response": "5"}
    why = detect([Row(value, HERE)]).why
    assert "ignored: id, topic, rejected_response (not learned from; the model never sees it)" in why
    assert read(value).unread == ("id", "topic", "rejected_response")


def test_a_greeting_before_the_first_question_is_read_and_not_trained() -> None:
    greeting = {"role": "assistant", "content": "Welcome!"}
    found = read({"messages": [greeting, ASK, SAY]})
    assert [(m.role, m.weight) for m in found.messages] == [("assistant", 0), ("user", 0), ("assistant", 1)]
    assert found.unread == (row_fields.GREETING,)
    assert read({"messages": [greeting | {"weight": 0}, ASK, SAY]}).unread == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (HUMAN, r"from, value are those of one turn.*\"conversations\""),
        (ASK, r"role, content are those of one turn.*\"messages\""),
        ({"input_ids": [1], "labels": [1]}, "rows of tokens"),
        ({"problem": "a", "solution": "b"}, r"columns: \{prompt: problem, completion: solution\}"),
        (
            {"system_prompt": "s", "question": "a", "response": "b"},
            r"columns: \{prompt: question, completion: response\}",
        ),
        ({"request": {"messages": []}, "response": {"choices": []}}, r"response of an API.*choices\[0\]\.message"),
        (
            {"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}},
            r"as SQuAD writes it.*answers\[\"text\"\]\[0\]",
        ),
        (
            {"title": "t", "paragraphs": [{"context": "c", "qas": []}]},
            r"SQuAD's own files.*\"input\": paragraph\[\"context\"\]",
        ),
        ({"question": "q", "answers": ["a", "b"]}, r"several answers.*answers\[0\]"),
        ({"title": "t", "mapping": {"x": {"message": None}}}, "ChatGPT exports it.*'current_node'"),
        (
            {"custom_id": "r0", "method": "POST", "url": "/v1", "body": {"messages": [ASK]}},
            "batch API, which holds no answer",
        ),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1}, '"chosen": better'),
        (
            {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
            "several answers to one prompt in a list",
        ),
        ({"instruction": "i", "input": "", "output": ["good", "bad"]}, r"\"chosen\": output\[0\]"),
        ({"chat": [ASK, SAY]}, r"'chat' holds turns.*columns: \{messages: chat\}"),
        ({"chat": SHAPES["Gemini and Vertex"]["contents"]}, r"'chat' holds turns.*columns: \{contents: chat\}"),
        ({"chat": [HUMAN, GPT]}, r"'chat' holds turns.*columns: \{conversations: chat\}"),
    ],
)
def test_a_row_of_no_format_is_refused_with_what_would_read_it(value: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(value)


def test_the_page_on_data_has_the_tables_of_the_code() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for of, table in (("turn", turn_fields.table()), ("row", row_fields.table())):
        assert row_fields.markdown(table, of) in page, "run tools/write_docs.py"
    assert {name for names, _ in turn_fields.table() for name in names} == turn_fields.KNOWN


def test_a_pair_is_not_asked_without_its_context() -> None:
    with pytest.raises(DataError, match="'context' is string 'c': the model would not see it beside the question"):
        read({"prompt": "a", "context": "c", "chosen": "b", "rejected": "d"})
    assert read(SHAPES["OpenAI"] | {"context": "c"}).unread == ("context",)
