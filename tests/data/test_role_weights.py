"""Weights of roles: which turns they train beside the answers, in every format, and through templates of every habit."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from data.habits import HABITS
from inlay.config.sections.data import DataConfig
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.prepare import PreparedData, prepare
from inlay.data.reading.formats import FORMATS
from inlay.data.reading.read import stream_examples
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError
from parts import write_rows

WEIGHTS = {"assistant": 2.0, "user": 0.5, "system": 0.25}
SYSTEM_ELSEWHERE = {
    "chatml, over several lines", "llama 2", "mistral, system in the first question",
    "mistral, system in the last turn", "gemma, system in the first question",
}  # fmt: skip
"""Habits that write the system turn where it does not stand in the conversation."""
TURNS = (
    Message("user", "Hi there", 0.5), Message("assistant", "Hello.", 2.0),
    Message("user", "And\nthen?", 0.75), Message("assistant", "So long.", 3.0),
)  # fmt: skip


@cache
def encoder(name: str) -> Encoder:
    return Encoder(HABITS[name].tokenizer(), roles=WEIGHTS)


def encoded(enc: Encoder, messages: tuple[Message, ...]) -> list[TokenizedSequence]:
    return [tokens for _, tokens in enc.examples([Example(messages, Source("a", 1))])]


def spans(enc: Encoder, rows: list[TokenizedSequence]) -> list[tuple[float, str]]:
    """(weight, text) of each stretch of trained tokens."""
    found = []
    for row in rows:
        edges = [0, *(np.flatnonzero(np.diff(row.weights)) + 1).tolist(), len(row.weights)]
        for a, b in pairwise(edges):
            if row.weights[a]:
                found.append((float(row.weights[a]), str(enc.tokenizer.decode(row.input_ids[a:b]))))
    return found


def parsed(tmp_path: Path, row: dict[str, Any], name: str = "auto") -> list[tuple[str, float]]:
    path = write_rows(tmp_path / "a.jsonl", [row])
    (example,) = stream_examples(str(path), name, role_weights=WEIGHTS)[1]
    return [(m.role, m.weight) for m in example.messages]


@pytest.mark.parametrize("name", HABITS)
def test_a_turn_is_trained_by_its_role_once_and_the_served_prompt_is_still_the_start_of_the_row(name: str) -> None:
    enc, plain = encoder(name), Encoder(HABITS[name].tokenizer())
    rows = encoded(enc, TURNS)
    found = spans(enc, rows)
    assert sorted(weight for weight, _ in found) == [0.5, 0.75, 2.0, 3.0]
    for message in TURNS:
        (text,) = [text for weight, text in found if weight == message.weight]
        assert message.content in text
        assert not any(other.content in text for other in TURNS if other is not message)
    for n in (1, 3):
        prompt = enc.prompt(TURNS[:n])
        assert any(row.input_ids[: len(prompt)].tolist() == prompt for row in rows)
        assert enc.tokenizer.decode(prompt) == plain.tokenizer.decode(plain.prompt(TURNS[:n]))
    masked = tuple(Message(m.role, m.content, m.weight if m.role == "assistant" else 0.0) for m in TURNS)
    assert sorted(spans(enc, encoded(enc, masked))) == sorted(spans(plain, encoded(plain, masked)))


@pytest.mark.parametrize("name", [name for name, habit in HABITS.items() if "system" not in habit.refuses])
def test_a_system_turn_is_trained_where_the_template_leaves_it_in_its_place_and_else_refused(name: str) -> None:
    messages = (Message("system", "Now be brief.", 0.25), *TURNS)
    if name in SYSTEM_ELSEWHERE:
        with pytest.raises(
            DataError, match=r"a:1: the chat template moves or merges turn 1 \(system\).* data\.role_weights"
        ):
            encoded(encoder(name), messages)
        return
    (text,) = [text for weight, text in spans(encoder(name), encoded(encoder(name), messages)) if weight == 0.25]
    assert " be brief." in text  # nothing comes before a first token to predict it from


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "text"])
def test_every_format_gives_a_turn_the_weight_of_its_role(tmp_path: Path, name: str) -> None:
    masks = {"prompt_completion", "preference", "openai_preference"}  # nothing of a prompt is trained
    for role, weight in parsed(tmp_path, FORMATS[name].example, name):
        assert weight == (0.0 if name in masks and role != "assistant" else WEIGHTS.get(role, 0.0))


def test_a_turns_own_weight_is_a_factor_of_its_roles_and_0_masks(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a", "weight": 0.5},
        {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c", "weight": 0},
        {"role": "assistant", "content": "d", "weight": 0.25}, {"role": "user", "content": "e"},
    ]  # fmt: skip
    assert parsed(tmp_path, {"messages": turns}) == [
        ("system", 0.25), ("user", 0.25), ("assistant", 0.0), ("user", 0.0), ("assistant", 0.5),
    ]  # fmt: skip
    row = {"messages": [*turns, {"role": "tool", "content": "x", "weight": 1}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(DataError, match=r"Only assistant and user and system turns .* set data\.role_weights\.tool"):
        parsed(tmp_path, row)


def test_other_weights_of_roles_are_other_sequences_in_the_cache(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": f"Number {n}?", "answer": f"It is {n}."} for n in range(20)])

    def made(**roles: float) -> PreparedData:
        config = DataConfig(train=str(path), role_weights=roles)
        return prepare(config, Encoder(toys.nano(), roles=config.weights_of_roles), 256, 100, 0)

    alone, both, again = made(), made(user=0.5), made(assistant=1.0, user=0.0)
    assert both.train.trained_tokens > alone.train.trained_tokens == again.train.trained_tokens
    assert set(both.train.row(0).weights.tolist()) == {0.0, 0.5, 1.0}
    assert made(user=0.5).train.row(0).weights.tolist() == both.train.row(0).weights.tolist()
