"""Calls of tools: the form that a template shows, answers read back in it whatever their pieces, and calls that must be made."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
import torch
from fronts import HELLO, chat, on_a_socket
from stub_engine import StubEngine, server

import toys
from inlay.data.encoding.encoder import Encoder
from inlay.generation.choice import ChoiceRow, choose
from inlay.generation.constraint import Grammars
from inlay.generation.request import Sampling
from inlay.generation.text import Detokenizer
from inlay.serving.engine import CallForm, ChatPrompt, EncodedPrompt, Refusal
from inlay.serving.tools import Call, CallReader, calls_grammar, form_of, require_form

TAGS = CallForm("<tool_call>\n", "name", "arguments", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
LIST = CallForm("[", "name", "arguments", ", ", "]")
BARE = CallForm("", "name", "parameters", "", "")
IN_TAGS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{% if not loop.first %}{{ '\\n' }}{% endif %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Oslo", 'the "city"']}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop_it"}},
]


def read(form: CallForm, pieces: list[str], most: int | None = None) -> list[str | Call]:
    """Calls, and the text between them as one."""
    reader, found = CallReader(form, {"weather", "stop_it"}, most), []
    for piece in [*(p for text in pieces for p in reader.add(text)), *reader.end()]:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return found


OSLO = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'
STOP = '{"arguments": {}, "name": "stop_it"}'
CALLED = [Call("weather", '{"city": "Oslo", "days": 2}'), Call("stop_it", "{}")]
ANSWERS: list[tuple[CallForm, str, list[str | Call]]] = [
    (TAGS, "Plain < text, <tool> and {braces}.", ["Plain < text, <tool> and {braces}."]),
    (TAGS, f"I look.\n<tool_call>\n{OSLO}\n</tool_call>", ["I look.\n", CALLED[0]]),
    (TAGS, f"<tool_call>\n{OSLO}\n</tool_call>\n<tool_call>{STOP}</tool_call>\n", CALLED),
    (TAGS, f"<tool_call>\n{OSLO}\n</tool_call>\nDone.", [CALLED[0], "Done."]),
    (TAGS, f"<tool_call>\n{OSLO}", [CALLED[0]]),
    (TAGS, '<tool_call>\n{"name": "weather", "argu', ['<tool_call>\n{"name": "weather", "argu']),
    (TAGS, '<tool_call>\n{"name": "other"}\n</tool_call>', ['<tool_call>\n{"name": "other"}\n</tool_call>']),
    (TAGS, "<tool_call> is how calls begin", ["<tool_call> is how calls begin"]),
    (LIST, f"[{OSLO}, {STOP}]", CALLED),
    (LIST, f"A list [1, 2] and [{STOP}]", ["A list [1, 2] and ", CALLED[1]]),
    (BARE, OSLO.replace("arguments", "parameters"), CALLED[:1]),
    (BARE, "Not {a call}", ["Not {a call}"]),
    (BARE, '{"an": "object"} that is none', ['{"an": "object"} that is none']),
]


@pytest.mark.parametrize(("form", "text", "expected"), ANSWERS)
def test_an_answer_in_any_pieces_has_the_calls_of_the_whole(form: CallForm, text: str, expected: Any) -> None:
    assert read(form, [text]) == expected
    assert read(form, list(text)) == expected
    rng = random.Random(text)
    for _ in range(20):
        cuts = sorted(rng.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(form, pieces) == expected


def test_text_before_a_call_is_not_held_back() -> None:
    reader = CallReader(TAGS, {"weather"})
    assert reader.add("I look <tool_") == ["I look "]
    assert reader.add("box>") == ["<tool_box>"]


def test_no_more_calls_than_allowed_are_read() -> None:
    assert read(TAGS, [f"<tool_call>\n{OSLO}\n</tool_call>\n<tool_call>\n{STOP}\n</tool_call>"], 1) == CALLED[:1]


def test_the_form_of_calls_is_found_in_the_template() -> None:
    assert form_of(Encoder(toys.nano(IN_TAGS)).answer_with_calls) == TAGS
    for template in (toys.CHATML, toys.NO_END, toys.LLAMA2):
        assert form_of(Encoder(toys.nano(template)).answer_with_calls) is None
    with pytest.raises(Refusal, match="shows no tool calls") as caught:
        require_form(None)
    assert (caught.value.status, caught.value.param) == (400, "tools")


def test_a_call_that_must_be_made_has_arguments_that_fit_its_schema() -> None:
    encoder = Encoder(toys.nano(IN_TAGS))
    grammars = Grammars(encoder.tokenizer, encoder.stop_ids)
    names = set()
    for seed in range(8):
        grammar = calls_grammar(TAGS, TOOLS, {"weather"} if seed % 2 else {"weather", "stop_it"})
        rule = grammars(grammar)
        row = ChoiceRow([1], Sampling(temperature=1.0, seed=seed), encoder.stop_ids, constraint=rule)
        text, said = Detokenizer(encoder.tokenizer).answer(), ""
        rng = np.random.default_rng(seed)
        closing = [id_ for token, id_ in encoder.tokenizer.get_vocab().items() if token[-1] in '"}],']
        while not rule.is_complete and len(row.ids) < 300:
            logits = rng.standard_normal(4096).astype(np.float32)
            logits[closing] += 4
            row.append(choose(torch.from_numpy(logits)[None], [row]).ids[0])
            said += text.add(row.ids[-1])
        (call,) = read(TAGS, [said])
        assert isinstance(call, Call)
        names.add(call.name)
        if call.name == "weather":
            jsonschema.validate(json.loads(call.arguments), WEATHER)
    assert names == {"weather", "stop_it"}


def test_parameters_that_are_not_supported_are_named() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "not": {}}}}
    with pytest.raises(Refusal, match="tools: the schema has the keyword 'not'"):
        calls_grammar(TAGS, [tool], {"weather"})


class CallingEngine(StubEngine):
    """Looks, and then calls; knows the form of calls where the prompt has tools."""

    async def encode_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        return replace(await super().encode_chat(prompt), calls=TAGS if prompt.tools else None)


def calling() -> CallingEngine:
    return CallingEngine(words=f"I look.\n<tool_call>\n{OSLO}\n</tool_call>\n<tool_call>\n{STOP}\n</tool_call>\n")


def test_calls_come_whole_and_streamed_as_the_client_of_openai_reads_them() -> None:
    with (
        on_a_socket(server(calling())) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "base", "messages": HELLO, "tools": TOOLS, "seed": 1}
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content.startswith("I look.\n")
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert calls == [tuple(call) for call in CALLED]
        with client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == "tool_calls"
        assert streamed.message.content == choice.message.content
        assert [(call.function.name, call.function.arguments) for call in streamed.message.tool_calls] == calls
        one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
        assert len(one.message.tool_calls) == 1
        result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "4 degrees"}
        client.chat.completions.create(**asked | {"messages": [*HELLO, choice.message, result]})
        none = client.chat.completions.create(**asked, tool_choice="none").choices[0]
        assert "<tool_call>" in none.message.content
        assert none.finish_reason == "stop"


def test_a_choice_of_tools_is_a_grammar_or_is_refused() -> None:
    engine = calling()
    for choice in ("required", {"type": "function", "function": {"name": "stop_it"}}):
        assert chat(server(engine), tools=TOOLS, tool_choice=choice).status_code == 200
        grammar = engine.asks[-1].grammar
        assert grammar is not None
        assert ("Oslo" in grammar) == (choice == "required")
    for choice in ("auto", "none"):
        assert chat(server(engine), tools=TOOLS, tool_choice=choice).status_code == 200
        assert engine.asks[-1].grammar is None
    refused = {
        "tool_choice": {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        "response_format": {"response_format": {"type": "json_object"}},
    }
    for param, fields in refused.items():
        error = chat(server(engine), tools=TOOLS, **fields)
        assert (error.status_code, error.json()["error"]["param"]) == (400, param)
    shows_none = chat(tools=TOOLS)
    assert (shows_none.status_code, shows_none.json()["error"]["param"]) == (400, "tools")
