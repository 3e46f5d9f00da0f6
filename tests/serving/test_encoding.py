"""Prompts over HTTP become the ids of training, and texts that would be read as marks of a turn are refused by their place."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.data.types import Example, Message, Source
from inlay.serving import encoding
from inlay.serving.encoding import Encoders, answer
from inlay.serving.wire import Start, refusal_from_json
from serving.harmful import HARM, make_harmful_base


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    folder = tmp_path_factory.mktemp("encoding")
    base = make_harmful_base(folder / "base")
    return Encoders(Start(str(base), str(folder / "results"), str(folder / "library")))


@pytest.fixture(scope="module", autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, encoding.on_alarm)
    yield
    signal.signal(signal.SIGALRM, before)


def refused(reply: dict[str, Any]) -> tuple[int, str, str | None, str]:
    found = refusal_from_json(reply["refused"])
    return found.status, found.code, found.param, str(found)


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"chat": {"messages": messages, "tools": [], "switches": {}, "identity": None} | more}


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co"]), min_size=1, max_size=30).filter(
    lambda text: "<|" not in text and text not in HARM
)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=2), TEXTS)
def test_the_ids_of_a_prompt_are_the_first_ids_of_the_training_row(
    encoders: Encoders, before: list[tuple[str, str]], question: str
) -> None:
    turns = [turn for asked, said in before for turn in (("user", asked), ("assistant", said))]
    found = answer(encoders, chat(*turns, ("user", question)))["encoded"]
    messages = [Message(role, text, float(role == "assistant")) for role, text in [*turns, ("user", question)]]
    row = Example((*messages, Message("assistant", "An answer.", 1.0)), Source("a", 1))
    encoder = encoders._encoder(None)
    (*_, (_, trained)) = encoder.examples([row], beside=False)
    assert trained.input_ids[: len(found["ids"])].tolist() == list(found["ids"])
    assert found["text"] == encoder.tokenizer.decode(found["ids"])


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: "<|" not in text))
def test_the_bytes_of_the_tokens_joined_are_the_text(encoders: Encoders, text: str) -> None:
    ids = encoders._encoder(None).tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = answer(encoders, {"token_texts": ids})["texts"]
    assert b"".join(bytes.fromhex(one) for one in texts).decode() == text


def test_a_special_token_in_a_text_is_refused_with_the_place_of_its_message(encoders: Encoders) -> None:
    reply = answer(encoders, chat(("user", "Hello"), ("assistant", "Yes?"), ("user", "A <|im_end|> in it")))
    status, code, param, text = refused(reply)
    assert (status, code, param) == (400, "special_token", "messages[2]")
    assert "'<|im_end|>'" in text


@pytest.mark.parametrize(
    ("turns", "part"),
    [
        ([("user", "a"), ("cat", "b")], "Not a role"),
        ([], "at least one turn"),
    ],
)
def test_what_a_template_cannot_take_is_refused(encoders: Encoders, turns: Any, part: str) -> None:
    status, _, _, text = refused(answer(encoders, chat(*turns)))
    assert status == 400
    assert part in text


def test_a_switch_that_the_template_does_not_read_is_refused(encoders: Encoders) -> None:
    reply = answer(encoders, chat(("user", "a"), switches={"enable_thinking": False}))
    assert refused(reply)[2] == "chat_template_kwargs"


def test_a_template_that_loops_ends_in_time_and_the_next_prompt_is_encoded(encoders: Encoders) -> None:
    before, begun = answer(encoders, chat(("user", "Hello"))), time.monotonic()
    assert refused(answer(encoders, chat(("user", "SPIN"))))[:3] == (400, "template_failed", "messages")
    assert time.monotonic() - begun < 2.5
    assert answer(encoders, chat(("user", "Hello"))) == before
