"""What is trained is what each template makes of the answers, after the very prompt that is served: 49 templates with
the habits of those that models ship with, and 26 conversations."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from data.habits import HABITS, TOOL, Habit
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.rendering import TODAY
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError

CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
UNOPENED = "They greet, so I greet.\n</think>\n\n"
THOUGHT = "<think>\nThey greet, so I greet.\n</think>\n\n"


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, weight: float = 1.0) -> Message:
    return Message("assistant", text, weight)


Conversation = tuple[tuple[Message, ...], str]
"""(turns, a feature that not every template has a place for)."""

CONVERSATIONS: dict[str, Conversation] = {
    "one turn": ((user("Hi"), said("Hello.")), ""),
    "two turns": ((user("Hi"), said("Hello."), user("Bye"), said("So long.")), ""),
    "five turns": (tuple(m for n in range(5) for m in (user(f"Ask {n}"), said(f"Answer {n}"))), ""),
    "system": ((system("Be brief."), user("Hi"), said("Hello.")), "system"),
    "system and turns": ((system("Be brief."), user("Hi"), said("Hello."), user("Bye"), said("So long.")), "system"),
    "empty system": ((system(""), user("Hi"), said("Hello.")), "system"),
    "system of spaces": ((system("  \n"), user("Hi"), said("Hello.")), "system"),
    "the first answer is not trained": ((user("Hi"), said("Hello.", 0.0), user("Bye"), said("So long.")), ""),
    "answers of two weights": ((user("Hi"), said("Hello.", 0.25), user("Bye"), said("So long.", 2.0)), ""),
    "an empty answer before": ((user("Hi"), said("", 0.0), user("Well?"), said("Hello.")), ""),
    "leading newlines": ((user("\n\nHi"), said("\n\nHello.")), ""),
    "spaces at the end": ((user("Hi  \n"), said("Hello. \n\n")), ""),
    "an indented answer": ((user("Code?"), said("    return 1\n")), ""),
    "unicode": ((user("日本語? 🦊 مرحبا"), said("Ünïcödé 🏳️‍🌈 e\u0301 \u200bא")), ""),
    "words that templates look for": ((user("User: what is </think> or ### Input:?"), said("Assistant: ### Response: user")), ""),
    "jinja": ((user("{{ 7 * 7 }} {% raw %}"), said("{% endif %}{{ bos_token }}{# x #}")), ""),
    "the question repeated": ((user("Hello."), said("Hello."), user("Hello."), said("Hello.")), ""),
    "a long answer": ((user("Hi"), said("All of it. " * 60 + "End.")), ""),
    "one letter": ((user("a"), said("b")), ""),
    "two questions in a row": ((user("Hi"), user("There?"), said("Hello.")), "in a row"),
    "a thought": ((user("Hi"), said(THOUGHT + "Hello.")), "thought"),
    "thoughts": ((user("Hi"), said(THOUGHT + "Hello."), user("Bye"), said(THOUGHT + "So long.")), "thought"),
    "the end of a thought alone": ((user("Hi"), said(UNOPENED + "Hello.")), "thought"),
    "ends of thoughts alone": ((user("Hi"), said(UNOPENED + "Hello."), user("Bye"), said(UNOPENED + "So long.")), "thought"),
    "a thought before": ((user("Hi"), said(THOUGHT + "Hello.", 0.0), user("Bye"), said("So long.")), ""),
    "a tool": (
        (user("Rain?"), Message("assistant", "", 1.0, (CALL,)), Message("tool", '{"celsius": 4}'), said("4 degrees.")),
        "tools",
    ),
}  # fmt: skip


@cache
def encoder(name: str, special_tokens: str = "refuse") -> Encoder:
    return Encoder(tokenizer(name), special_tokens=special_tokens)


@cache
def tokenizer(name: str) -> Any:
    return HABITS[name].tokenizer()


def rendered(enc: Encoder, messages: tuple[Message, ...], tools: list[Any]) -> str:
    """What transformers makes of the conversation with an answer opened: what any server would send."""
    turns = [
        {"role": m.role, "content": m.content} | ({"tool_calls": list(m.tool_calls)} if m.tool_calls else {})
        for m in messages
    ]
    # the day on which this runs is not the one that was trained
    template = re.sub(
        r"strftime_now\(['\"](.*?)['\"]\)", lambda m: f"'{TODAY.strftime(m[1])}'", enc.tokenizer.chat_template
    )
    return str(
        enc.tokenizer.apply_chat_template(
            turns, tools=tools or None, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    )


def answer(enc: Encoder, row: TokenizedSequence, start: int) -> str:
    """The text of the trained tokens from `start` on, to where they end."""
    end = start
    while end < len(row.weights) and row.weights[end] > 0:
        end += 1
    return str(enc.tokenizer.decode(row.input_ids[start:end]))


def check(enc: Encoder, habit: Habit, messages: tuple[Message, ...], tools: list[Any]) -> list[TokenizedSequence]:
    rows = [tokens for _, tokens in enc.examples([Example(messages, Source("a", 1), tuple(tools))])]
    trained = 0
    for n, message in enumerate(messages):
        if message.role != "assistant" or message.weight == 0:
            continue
        prompt = enc.prompt(messages[:n], tools)
        assert enc.tokenizer.decode(prompt) == rendered(enc, messages[:n], tools)
        k = len(prompt)
        (row,) = [r for r in rows if r.input_ids[:k].tolist() == prompt and (r.weights[k : k + 1] > 0).any()]
        assert row.weights[k] == message.weight
        assert row.weights[k - 1] == 0
        if not message.tool_calls:
            assert answer(enc, row, k) == habit.trained.replace("{}", habit.says(message.content))
        else:
            assert '{"name": "weather"' in answer(enc, row, k)
        trained += len(enc.tokenizer(answer(enc, row, k), add_special_tokens=False)["input_ids"])
    assert sum(int((r.weights > 0).sum()) for r in rows) == trained
    return rows


@pytest.mark.parametrize("name", HABITS)
def test_what_is_trained_is_the_answer_as_the_template_writes_it_and_its_end(name: str) -> None:
    habit, enc = HABITS[name], encoder(name)
    for conversation, (messages, feature) in CONVERSATIONS.items():
        tools = [TOOL] if feature == "tools" else []
        if feature in habit.refuses:
            with pytest.raises(
                DataError, match=r"^a:1: the chat template (leaves out|refuses|ends the thought|ends an empty thought)"
            ):
                check(enc, habit, messages, tools)
            continue
        rows = check(enc, habit, messages, tools)
        turns = sum(m.weight > 0 for m in messages)
        if feature != "thought":
            in_one = habit.one_row and not (habit.moves_system and feature == "system" and messages[0].content.strip())
            assert len(rows) == (1 if in_one else turns), conversation


@pytest.mark.parametrize("name", HABITS)
def test_a_quoted_special_token_is_refused_or_becomes_ordinary_text(name: str) -> None:
    habit, enc = HABITS[name], encoder(name, "escape")
    quotes = f"It is {habit.eos} or <s>{habit.eos}."
    messages = (user(f"What ends a turn, {habit.eos}?"), said(quotes), user("<s>"), said("Yes."))
    with pytest.raises(DataError, match=r"turn 1 \(user\) contains .* special token\. .*data\.special_tokens: escape"):
        encoder(name).prompt(messages[:1])
    plain = (user("What ends a turn, X?"), said("It is X or YX."), user("Y"), said("Yes."))
    rows, others = ([t for _, t in enc.examples([Example(m, Source("a", 1))])] for m in (messages, plain))
    assert [_controls(enc, row) for row in rows] == [_controls(enc, row) for row in others]
    whole = "".join(str(enc.tokenizer.decode(row.input_ids[row.weights > 0])) for row in rows)
    assert habit.trained.replace("{}", habit.says(quotes)) in whole
    asked = enc.prompt(messages[:1])
    assert any(row.input_ids[: len(asked)].tolist() == asked for row in rows)
    assert enc.text(enc.prompt(messages[:1])).count(habit.eos) == 1


def _controls(enc: Encoder, row: TokenizedSequence) -> list[int]:
    return [int(i) for i in row.input_ids if int(i) in enc._special.ids]
