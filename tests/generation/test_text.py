"""The text of an answer, token by token = the text of the whole answer, cut at its first stop string."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import toys
from inlay.generation.text import Detokenizer

TEXTS = [
    "Hello, it's 10 o'clock.",
    "  ",
    "日本語",
    "🦊🏳️‍🌈",
    "e\u0301",
    "the hell",
    "\n\n",
    "don't ' stop",
    "a b",
    " . ? ! ,",
    "x",
]


@cache
def tokenizer(kind: str) -> Any:
    if kind == "bytes":
        return toys.nano()
    if kind.startswith("space before"):
        return toys.sentencepiece(prefix="always" if kind.endswith("!") else "first")
    if kind == "unigram":
        return cleaned(unigram(), decoders.Metaspace("▁", prepend_scheme="always"))
    if kind == "no decoder":
        return cleaned(unigram(), None)
    if kind == "bytes among others":
        return changed(toys.nano(), decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]))
    if kind == "a space between words":
        return cleaned(unigram(), decoders.WordPiece(prefix="▁"))
    return AutoTokenizer.from_pretrained(os.environ["INLAY_TEST_TOKENIZER"])


def unigram() -> Tokenizer:
    pieces = [
        "<unk>",
        "▁",
        "▁it",
        "'s",
        "▁'",
        "n't",
        "t",
        "▁do",
        "▁.",
        ".",
        "▁,",
        "'",
        "n",
        "▁v",
        "e",
        "▁'m",
        "x",
        "r",
        "▁?",
    ]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁")
    return made


def cleaned(tokenizer: Tokenizer, decoder: Any) -> Any:
    """A tokenizer whose decoder takes spaces out before signs."""
    if decoder:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>", clean_up_tokenization_spaces=True)


def changed(tokenizer: Any, decoder: Any) -> Any:
    tokenizer.backend_tokenizer.decoder = decoder
    return tokenizer


KINDS = [
    "bytes",
    "space before every text!",
    "space before a text",
    "unigram",
    "no decoder",
    "bytes among others",
    "a space between words",
]
if "INLAY_TEST_TOKENIZER" in os.environ:
    KINDS.append("of the environment")


def streamed(kind: str, ids: Sequence[int], stop: Sequence[str]) -> tuple[list[str], int, bool]:
    """(the texts of each token and of the end, the number of tokens taken until it stopped, whether it did)"""
    text, found = Detokenizer(tokenizer(kind)).answer(stop), []
    for n, id_ in enumerate(ids, 1):
        found.append(text.add(id_))
        if text.stopped:
            assert text.end() == text.add(ids[0]) == ""
            return found, n, True
    found.append(text.end())
    return found, len(ids), text.stopped


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that ends first, the longest of several."""
    ends = [(place + len(s), place) for s in stop if (place := text.find(s)) >= 0]
    return text[: min(ends)[1]] if ends else text


def answer(kind: str, rng: random.Random) -> tuple[list[int], list[str]]:
    """(ids at random and of texts, stop strings of what they say)"""
    ids: list[int] = []
    for _ in range(rng.randrange(1, 8)):
        if rng.random() < 0.5:
            ids += ids_of_texts(kind)[rng.randrange(len(TEXTS))]
        else:
            ids += rng.choices(range(size(kind)), k=rng.randrange(1, 6))
        if rng.random() < 0.3:
            rng.shuffle(ids)
    whole = tokenizer(kind).decode(ids, skip_special_tokens=True)
    stop = []
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(whole) + 1)
        stop.append(whole[start : start + rng.randrange(1, 7)] + rng.choice(["", "", "x", whole[:1]]))
    return ids, [s for s in stop if s]


@cache
def ids_of_texts(kind: str) -> list[list[int]]:
    return [tokenizer(kind)(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@cache
def size(kind: str) -> int:
    return len(tokenizer(kind).get_vocab())


def every_answer_is_whole(kind: str, count: int) -> None:
    rng = random.Random(kind)
    for _ in range(count):
        ids, stop = answer(kind, rng)
        texts, taken, stopped = streamed(kind, ids, stop)
        whole = tokenizer(kind).decode(ids, skip_special_tokens=True)
        assert "".join(texts) == cut(whole, stop), (ids, stop)
        assert stopped == any(s in whole for s in stop), (ids, stop)
        assert stopped or taken == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_of_tokens_joined_are_the_text_of_the_answer(kind: str) -> None:
    every_answer_is_whole(kind, 300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_of_tokens_joined_are_the_text_of_many_answers(kind: str) -> None:
    every_answer_is_whole(kind, 20_000)


def test_half_a_character_is_held_back_and_no_more() -> None:
    ids = toys.nano()("🦊 ok", add_special_tokens=False)["input_ids"]
    texts, *_ = streamed("bytes", ids, [])
    assert next(t for t in texts if t) == "🦊"
    assert "".join(texts) == "🦊 ok"
    assert "".join(streamed("bytes", ids[:1], [])[0]) == "\ufffd"


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    text = Detokenizer(toys.nano()).answer(["abcabd", "END"])
    encoded = [toys.nano()(c, add_special_tokens=False)["input_ids"][0] for c in "abcabcabd"]
    assert [text.add(id_) for id_ in encoded] == ["", "", "", "", "", "abc", "", "", ""]
    assert text.stopped
    text = Detokenizer(toys.nano()).answer(["abcabd", "END"])
    assert [text.add(id_) for id_ in encoded[:5]] == [""] * 5
    assert (text.end(), text.stopped) == ("abcab", False)


@pytest.mark.parametrize("kind", ["bytes", "space before every text!"])
def test_a_token_late_in_an_answer_costs_what_an_early_one_costs(kind: str) -> None:
    def seconds(length: int) -> float:
        rng = random.Random(0)
        ids = rng.choices(range(len(tokenizer(kind).get_vocab())), k=length)
        text = Detokenizer(tokenizer(kind)).answer(["zzz"])
        began = time.process_time()
        for id_ in ids:
            text.add(id_)
        return time.process_time() - began

    assert min(seconds(2000) for _ in range(3)) < 12 * min(seconds(500) for _ in range(3))
