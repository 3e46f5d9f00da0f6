"""The one encoder: training, evaluation and generation get their ids here.

A dialogue is rendered by its chat template and cut at the starts and ends of the assistant turns; each piece is
tokenized by itself. Trained spans are whole pieces, so no text is ever searched, no token straddles a boundary,
and the ids of a served prompt are the first ids of the training row by construction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from inlay.data.types import Example, Message, Source
from inlay.errors import DataError, ModelError

CODE_VERSION = 1
"""Raised when the same row would give other ids than before; part of the cache key."""

QUESTION_ANSWER = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}Answer: {{ message.content }}{{ eos_token }}\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'tool' %}Result: {{ message.content }}\n"
    "{% else %}Question: {{ message.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""The template of a base that has none."""

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Tokens:
    """One training sequence. `weights[t]` is how much predicting `input_ids[t]` counts; 0 is not trained."""

    input_ids: np.ndarray  # (L,) int32
    weights: np.ndarray  # (L,) float32
    source: Source


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    weight: float
    """Weight of its tokens up to the end of turn."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    pieces: tuple[_Piece, ...]
    source: Source


class Encoder:
    """Dialogues to ids for one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer: it names no end-of-sequence token, so an answer could never end.")
        self.tokenizer = tokenizer
        self.own_template = not tokenizer.chat_template
        if self.own_template:
            tokenizer.chat_template = QUESTION_ANSWER
        self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        added = {int(i): t for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special_ids = frozenset(added) | {int(i) for i in tokenizer.all_special_ids}
        strings = {t.content for t in added.values()} | set(tokenizer.all_special_tokens)
        longest_first = sorted((re.escape(s) for s in strings if s.strip()), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first)) if longest_first else None
        self._bos = self._default_bos()
        self.ends_turn = True
        self.stop_ids = self._find_stop_ids()

    @property
    def template_name(self) -> str:
        return "question-answer (inlay's own; the base has none)" if self.own_template else "the tokenizer's own"

    @property
    def template_hash(self) -> str:
        """Hex digest of the chat template in use."""
        return hashlib.sha256(json.dumps(self.tokenizer.chat_template, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_hash(self) -> str:
        """Hex digest of the tokenizer's whole behaviour."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The ids that generation starts from: the dialogue and the opening of an assistant turn."""
        source = Source("prompt", 1)
        if len(messages) == 1 and messages[0].role == "text":
            return self._bos_of_text() + self._ids(messages[0].content)
        self._refuse_control_tokens(messages, source)
        text = self._render(messages, tools, source, opens_turn=True)
        pieces = _cut(text, self._boundaries(text, messages, tools, source))
        ids = [i for piece in pieces for i in self._ids(piece)]
        return self._with_bos(ids)

    def examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, Tokens]]:
        """Each training sequence with the position of its example: usually one a row, one per trained turn where
        the template rewrites earlier turns."""
        numbered = enumerate(examples)
        while chunk := list(islice(numbered, _CHUNK)):
            sequences = [(n, s) for n, example in chunk for s in self._sequences(example)]
            texts = [piece.text for _, s in sequences for piece in s.pieces]
            ids = iter(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
            for number, sequence in sequences:
                yield number, self._assemble(sequence, [next(ids) for _ in sequence.pieces])

    def _sequences(self, example: Example) -> list[_Sequence]:
        messages, tools, source = example.messages, example.tools, example.source
        if messages[0].role == "text":
            return [_Sequence((_Piece(messages[0].content, messages[0].weight),), source)]
        self._refuse_control_tokens(messages, source)
        remaining = [n for n, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
        found = []
        while remaining:
            sequence, done = self._sequence_ending_at(remaining[-1], messages, tools, source)
            found.append(sequence)
            remaining = [n for n in remaining if n not in done]
        return found[::-1]

    def _sequence_ending_at(
        self, last: int, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: Source
    ) -> tuple[_Sequence, set[int]]:
        """The sequence whose last trained turn is `last`, and every turn that it trains."""
        before = messages[:last]
        prompt = self._render(before, tools, source, opens_turn=True)
        whole = self._render(messages[: last + 1], tools, source, opens_turn=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"{source}: the chat template renders turn {last + 1} differently when it is answered than when it is "
                "asked, so what is trained could not be served. Use another template (model.chat_template)."
            )
        boundaries = self._boundaries(prompt, before, tools, source)
        cuts = [*_cut(prompt, boundaries), whole[len(prompt) :]]
        trained = {piece: n for piece, n in self._turn_of_piece(boundaries).items() if self.ends_turn}
        weights = [messages[trained[k]].weight if k in trained else 0.0 for k in range(len(cuts) - 1)]
        pieces = [_Piece(t, w) for t, w in zip(cuts, [*weights, messages[last].weight], strict=True)]
        return _Sequence(tuple(pieces), source), {last, *trained.values()}

    def _boundaries(
        self, text: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: Source
    ) -> list[tuple[int, int, int]]:
        """(turn, start, end) of each earlier assistant turn that stands unchanged in the rendered text."""
        found = []
        for n, message in enumerate(messages):
            if message.role != "assistant" or n == 0:
                continue
            opening = self._render(messages[:n], tools, source, opens_turn=True)
            closing = self._render(messages[: n + 1], tools, source, opens_turn=False)
            if text.startswith(opening) and text.startswith(closing) and closing.startswith(opening):
                found.append((n, len(opening), len(closing)))
        return found

    @staticmethod
    def _turn_of_piece(boundaries: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        # _cut puts turn k of the boundaries at piece 2k + 1
        return {2 * k + 1: turn for k, (turn, _, _) in enumerate(boundaries)}

    def _assemble(self, sequence: _Sequence, ids: list[list[int]]) -> Tokens:
        input_ids: list[int] = []
        weights: list[float] = []
        for piece, piece_ids in zip(sequence.pieces, ids, strict=True):
            end = self._end_of_turn(piece_ids) if piece.weight > 0 else 0
            input_ids += piece_ids
            weights += [piece.weight] * end + [0.0] * (len(piece_ids) - end)
        if len(sequence.pieces) == 1 or not self.ends_turn:
            input_ids.append(int(self.tokenizer.eos_token_id))
            weights.append(sequence.pieces[-1].weight)
        whole = self._bos_of_text() + input_ids if len(sequence.pieces) == 1 else self._with_bos(input_ids)
        weights = [0.0] * (len(whole) - len(weights)) + weights
        return Tokens(np.asarray(whole, np.int32), np.asarray(weights, np.float32), sequence.source)

    def _end_of_turn(self, ids: Sequence[int]) -> int:
        """How many ids of an assistant piece are trained: through its closing control token, without what follows."""
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] in self._special_ids:
                rest = self.tokenizer.decode(ids[position + 1 :]) if position + 1 < len(ids) else ""
                return position + 1 if not rest.strip() else len(ids)
        return len(ids)

    def _find_stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end-of-sequence token and the template's own end of turn."""
        ask, answer = Message("user", "a"), Message("assistant", "b", 1.0)
        source = Source("chat template", 1)
        prompt = self._render([ask], (), source, opens_turn=True)
        whole = self._render([ask, answer], (), source, opens_turn=False)
        ids = self._ids(whole[len(prompt) :]) if whole.startswith(prompt) else []
        end = self._end_of_turn(ids)
        self.ends_turn = bool(ids) and ids[end - 1] in self._special_ids
        closing = {ids[end - 1]} if self.ends_turn else set()
        return frozenset(closing | {int(self.tokenizer.eos_token_id)})

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: Source, *, opens_turn: bool
    ) -> str:
        turns = [_turn(message) for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=opens_turn
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise DataError(f"{source}: the chat template refuses this dialogue: {error}") from None

    def _refuse_control_tokens(self, messages: Sequence[Message], source: Source) -> None:
        for n, message in enumerate(messages, 1):
            found = self._control.search(message.content) if self._control else None
            if found:
                raise DataError(
                    f"{source}: turn {n} ({message.role}) contains {found.group()!r}, which this tokenizer reads as a "
                    "control token. Remove or rewrite it."
                )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        # A model's own template says itself whether a BOS belongs there; ours follows the tokenizer.
        return self._bos + ids if self.own_template and ids[:1] != self._bos else ids

    def _bos_of_text(self) -> list[int]:
        return self._bos

    def _default_bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    if message.name:
        turn["name"] = message.name
    return turn


def _cut(text: str, boundaries: Sequence[tuple[int, int, int]]) -> list[str]:
    """The text between and inside the boundaries, in order: outside, inside, outside, …"""
    points = [0, *(p for _, start, end in boundaries for p in (start, end)), len(text)]
    return [text[a:b] for a, b in pairwise(points)]
