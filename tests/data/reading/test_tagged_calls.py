"""Calls and tool answers that a row writes as text are those of the template, or text where it knows none, or refused."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from inlay.data import Example
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.worker_pool import _examples, _plain
from inlay.data.reading.formats import parse
from inlay.data.reading.read import as_lines, from_lines
from inlay.data.types import Row, Source
from inlay.errors import DataError

HERE = Source("a.jsonl", 3)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
AS_PYTHON = "<tool_call>\n{'arguments': {'city': 'Oslo'}, 'name': 'weather'}\n</tool_call>\n"
ANSWER = "<tool_response>\n4 degrees\n</tool_response>"
QWEN = (  # writes both tags itself
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>\n{\"name\": "
    '"{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def row(*turns: tuple[str, str], **more: Any) -> Example:
    return parse(Row({"messages": [{"role": r, "content": c} for r, c in turns], **more}, HERE), "messages")


def hermes(call: str = CALL, answer: str = ANSWER, role: str = "tool") -> Example:
    return row(("user", "Rain?"), ("assistant", call), (role, answer), ("assistant", "Four."))


def texts(template: str, example: Example) -> list[str]:
    """The text of each sequence, trained parts in brackets."""
    encoder = Encoder(toys.nano(template))
    found = []
    for _, tokens in encoder.examples([example]):
        parts, trained = "", tokens.weights > 0
        edges = [0, *(n for n in range(1, len(trained)) if trained[n] != trained[n - 1]), len(trained)]
        for start, end in pairwise(edges):
            text = str(encoder.tokenizer.decode(tokens.input_ids[start:end]))
            parts += f"[{text}]" if trained[start] else text
        found.append(parts)
    return found


@pytest.mark.parametrize("call", [CALL, AS_PYTHON])
@pytest.mark.parametrize("role", ["tool", "user"])
def test_a_row_of_hermes_is_that_row_with_calls_and_tool_turns(call: str, role: str) -> None:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [function]},
             {"role": "tool", "content": "4 degrees"}, {"role": "assistant", "content": "Four."}]  # fmt: skip
    plain = parse(Row({"messages": turns}, HERE), "messages")
    for template in (toys.TOOLS, QWEN):
        assert texts(template, hermes(call, role=role)) == texts(template, plain)
    (whole,) = texts(QWEN, hermes(call, role=role))
    assert f"[{CALL}<|im_end|>]" in whole
    assert whole.count("<tool_response>") == 1


@pytest.mark.parametrize("role", ["tool", "user"])
def test_where_the_template_knows_no_calls_they_stay_the_text_of_the_row(role: str) -> None:
    two = f"{ANSWER}\n{ANSWER}"
    (whole,) = texts(toys.CHATML, hermes(f"Let me see.\n{CALL}\n{CALL}", two, role))
    assert f"[Let me see.\n{CALL}\n{CALL}<|im_end|>]\n<|im_start|>{role}\n{two}<|im_end|>" in whole


def test_a_text_before_a_call_and_a_turn_before_it_are_one_answer() -> None:
    example = hermes(f"<think>\nOslo.\n</think>\n\nLet me see.\n{CALL}\n{CALL}", f"{ANSWER}\n{ANSWER}")
    assert [(m.role, m.content, len(m.tool_calls)) for m in example.messages[1:4]] == [
        ("assistant", "<think>\nOslo.\n</think>\n\nLet me see.", 2), ("tool", "4 degrees", 0), ("tool", "4 degrees", 0),
    ]  # fmt: skip
    apart = row(
        ("user", "Rain?"), ("assistant", "Let me see."), ("assistant", CALL), ("tool", ANSWER), ("assistant", "4")
    )
    assert [(m.content, len(m.tool_calls)) for m in apart.messages[1:3]] == [("Let me see.", 1), ("4 degrees", 0)]
    assert f"[Let me see.\n{CALL}<|im_end|>]" in texts(toys.CHATML, apart)[0]


@pytest.mark.parametrize("call", [
    "<tool_call>\n{\"name\": \"weather\"}", f"{CALL}\nAnd so on.", "<tool_call>\n{name: weather}\n</tool_call>",
    "<tool_call>\n<function=weather>\n</function>\n</tool_call>", "<tool_call>[]</tool_call>",
    "<tool_call>\n{\"arguments\": {}}\n</tool_call>", "Sure.\n<tool_call>{'name': 'f', 'arguments': {1, 2}}</tool_call>",
])  # fmt: skip
def test_a_call_that_cannot_be_read_is_refused_with_its_turn(call: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*turn 2.*"):
        hermes(call)


@pytest.mark.parametrize(
    "answer", ["<tool_response>\n4", f"{ANSWER} or so", f"<tool_response>{ANSWER}</tool_response>"]
)
def test_an_answer_that_is_not_closed_is_refused_with_its_turn(answer: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: turn 3 \(tool\) has a <tool_response> that is not closed"):
        hermes(answer=answer)


@pytest.mark.parametrize("said", [
    "A call begins with <tool_call> and ends with </tool_call>.", f"```\n{CALL}\n```\nis a call.",
    "Write <tool_call>{\"name\": …}</tool_call> into the answer.", "<tool_call> is a tag.",
    f"<think>\n{CALL}\n</think>\n\nNo.",
])  # fmt: skip
def test_tags_that_are_only_mentioned_stay_text(said: str) -> None:
    example = row(("user", f"What is {ANSWER}?"), ("assistant", said))
    assert [(m.content, m.tool_calls, m.written) for m in example.messages] == [
        (f"What is {ANSWER}?", (), None),
        (said, (), None),
    ]


def test_calls_are_lifted_out_of_every_format() -> None:
    for form, value in {
        "prompt_completion": {"prompt": "Rain?", "completion": CALL},
        "sharegpt": {"conversations": [{"from": "human", "value": "Rain?"}, {"from": "gpt", "value": CALL}]},
        "text": {"text": f"<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n{CALL}<|im_end|>\n"},
        "preference": {"prompt": "Rain?", "chosen": CALL, "rejected": "No."},
    }.items():
        assert parse(Row(value, HERE), form).messages[-1].tool_calls[0]["function"]["name"] == "weather"


def test_a_lifted_row_is_the_same_through_storage_and_worker_processes() -> None:
    example = hermes(f"Let me see.\n{CALL}")
    assert from_lines(as_lines([example])) == (example,)
    assert _examples(_plain([example])) == [example]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none() | st.booleans(), max_size=3),
    st.booleans(),
)
def test_any_arguments_are_read_as_json_and_as_python_prints_them(arguments: dict[str, Any], is_json: bool) -> None:
    call = {"name": "f", "arguments": arguments}
    text = json.dumps(call) if is_json else repr(call)
    if "tool_call>" in text:
        return
    (found,) = hermes(f"<tool_call>\n{text}\n</tool_call>").messages[1].tool_calls
    assert found["function"] == call
