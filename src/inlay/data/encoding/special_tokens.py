"""Special tokens: they close turns, rows must not write them; and refusals of text that a template leaves out."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import AddedToken

from inlay.data.encoding.reasoning_prefix import ended_by, ends_before, parted
from inlay.data.reading.rendered_text import looks_rendered
from inlay.data.types import Message, Source, Tool
from inlay.errors import DataError

MARK = "\ue0f3"
"""Inserted after the first character of a special token that a row quotes."""


class _UnquotableError(Exception):
    """The tokenizer would read a special token whatever is marked."""


class SpecialTokenError(DataError):
    """A text holds a special token."""

    def __init__(self, message: str, turn: int | None = None, token: str = "") -> None:
        """`turn` counts from 0; None for the tools."""
        super().__init__(message)
        self.turn, self.token = turn, token


class SpecialTokens:
    """The tokens of a tokenizer that structure a conversation."""

    def __init__(self, tokenizer: Any, *, escapes: bool = False) -> None:
        """`escapes`: a quoted special token becomes ordinary text; otherwise its row is refused."""
        self.escapes = escapes
        added = {int(i): t for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.ids = frozenset(added) | {int(i) for i in tokenizer.all_special_ids}
        strings = {t.content for t in added.values()} | set(tokenizer.all_special_tokens)
        self.strings: tuple[str, ...] = tuple(sorted((s for s in strings if s.strip()), key=lambda s: (-len(s), s)))
        self._pattern = re.compile("|".join(map(re.escape, self.strings))) if self.strings else None
        # a token that is matched after normalization hides behind other spellings
        normalizer = tokenizer.backend_tokenizer.normalizer
        self._normalize = normalizer.normalize_str if normalizer and any(t.normalized for t in added.values()) else None
        self._is_blank = lru_cache(4096)(lambda ids: not tokenizer.decode(list(ids)).strip())

    def closing(self, text: str) -> str | None:
        """The special token that ends the text, white space after it aside."""
        stripped = text.rstrip()
        if not stripped.endswith(self.strings):
            return None
        return next(s for s in self.strings if stripped.endswith(s))

    def last_end(self, text: str) -> int:
        """The end of the last special token in the text; 0 where there is none."""
        found = list(self._pattern.finditer(text)) if self._pattern else []
        return found[-1].end() if found else 0

    def end_of_turn(self, piece_ids: np.ndarray) -> int:
        """The number of ids of an assistant piece that are trained: through its closing special token."""
        ids = piece_ids.tolist()
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] in self.ids:
                rest = tuple(ids[position + 1 :])
                return position + 1 if not rest or self._is_blank(rest) else len(ids)
        return len(ids)

    def without(
        self, messages: Sequence[Message], tools: Sequence[Tool], source: Source
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """The conversation with no text that would be read as a special token: as it is, or with quoted ones marked.

        Raises: DataError where there is one and `data.special_tokens` is `refuse`, or where it cannot be marked.
        """
        found = self._first(messages, tools)
        if found is None:
            return messages, tools
        turn, where, token, text = found
        escapes = self.escapes and token != MARK
        if escapes:
            with contextlib.suppress(_UnquotableError):
                return [self._without(m) for m in messages], _mapped(tools, self._quote)
        kind = "which inlay keeps for itself" if token == MARK else "which this tokenizer reads as a special token"
        message = f"{source}: {where} {token!r}, {kind}. {self._advice(text, token)}"
        raise SpecialTokenError(message, turn, token)

    def _advice(self, text: str, token: str) -> str:
        """The way out for a text with a special token: it may be quoted, or written by a template before."""
        stripped, count = text.strip(), len(self._pattern.findall(text)) if self._pattern else 0
        escape = "" if self.escapes else "data.special_tokens: escape"
        if count > 1 or (stripped.startswith(token) and stripped != token):
            quotes = escape and not looks_rendered(
                text
            )  # escaped, the marks of a conversation would be trained as text
            quoted_only = f" Where it only quotes them, encode them as ordinary text ({escape})." if quotes else ""
            return (
                "The text looks as if a chat template had written it already: give the text of each turn, without such "
                f"tokens, as messages with role and content; the template of this base writes them.{quoted_only}"
            )
        if stripped.endswith(token):
            quoted_only = f" Where it is only quoted: {escape}." if escape else ""
            return f"Take it off the end of the text: what ends an answer is added by itself.{quoted_only}"
        return f"Remove or rewrite it{f', or have it encoded as ordinary text ({escape})' if escape else ''}."

    def _first(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int | None, str, str, str] | None:
        """(turn, where, the token, the text with it) of the first text that holds a special token."""
        if not tools and not any(m.has_more or self._kept_out(m.content) for m in messages):
            return None
        for n, message in enumerate(messages):
            for what, text in _carriers(message):
                if found := self._kept_out(text):
                    return n, f"turn {n + 1} ({message.role}){what} contains", found, text
        return next(
            ((None, "tools contain", found, text) for text in _strings(tools) if (found := self._kept_out(text))), None
        )

    def _kept_out(self, text: str) -> str | None:
        return MARK if self.escapes and MARK in text else self.find(text)

    def _without(self, message: Message) -> Message:
        return replace(
            message,
            content=self._quote(message.content),
            name=message.name and self._quote(message.name),
            thought=self._quote(message.thought),
            tool_call_id=message.tool_call_id and self._quote(message.tool_call_id),
            tool_calls=_mapped(message.tool_calls, self._quote),
            written=message.written and (message.written[0], self._quote(message.written[1])),
        )

    def _quote(self, text: str) -> str:
        """The text with every special token in it marked. Raises: _UnquotableError."""
        while found := self.find(text):
            if len(found) < 2 or found not in text:  # nothing to mark, or another spelling
                raise _UnquotableError
            text = text.replace(found, quoted(found))
        return text

    def find(self, text: str) -> str | None:
        """A special token that the tokenizer would read in the text."""
        if self._pattern is None:
            return None
        found = self._pattern.search(text) or (self._pattern.search(self._normalize(text)) if self._normalize else None)
        return found.group() if found else None


def make_end_special(tokenizer: Any) -> None:
    """Makes the token that ends an answer in the chat template a special token of the tokenizer.

    Some tokenizers were saved with it as an ordinary added token: nothing then ends at it, and decoding shows it.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001  reported for the first conversation that meets it
        return
    end = text.rpartition(MARK)[2].lstrip()
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if not t.special and t.content.strip()]
    if own := max((content for content in added if end.startswith(content)), key=len, default=None):
        tokenizer.add_tokens([AddedToken(own, special=True, normalized=False)], special_tokens=True)


def quoted(token: str) -> str:
    """The special token as marked text."""
    return token[0] + MARK + token[1:]


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key) if isinstance(key, str) else key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(inner, change) for inner in value)
    return value


def _carriers(message: Message) -> Iterator[tuple[str, str]]:
    yield "", message.content
    if message.name:
        yield " name", message.name
    if message.thought:
        yield f" {message.thought_field}", message.thought
    if message.tool_call_id:
        yield " tool_call_id", message.tool_call_id
    for text in _strings(message.tool_calls):
        yield " tool_calls", text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def refuse_lost_prompt(prompt: str, messages: Sequence[Message], tools: Sequence[Tool], source: Source) -> None:
    """Raises: DataError when the template leaves out a part of the prompt.

    Assistant turns may be shortened: templates leave out old reasoning.
    """
    for n, message in enumerate(messages, 1):
        if message.role != "assistant" and not _shows(prompt, message.content):
            raise _lost(source, f"the text of turn {n} ({message.role})")
    for tool in tools:
        if not _shows(prompt, tool["function"]["name"]):
            raise _lost(source, f"the tool {tool['function']['name']!r}")


def refuse_lost_answer(
    before: str, answer: str, n: int, message: Message, source: Source, way_to_think: Callable[[], str]
) -> None:
    """Raises: DataError when the template leaves out a part of trained turn `n` (from 0), which follows the text `before`."""
    thought, text = parted(message.content)
    if (thought or message.thought) and ended_by(before, message.content):
        raise DataError(
            f"{source}: the chat template ends the thought before turn {n + 1} ({message.role}) is answered, so the thought in "
            f"it would follow an ended one. {way_to_think()}"
        )
    if not _shows(answer, thought):
        raise _lost(source, f"the thought of turn {n + 1} ({message.role})", way_to_think())
    if message.thought and not _shows(answer, message.thought):
        raise DataError(
            f"{source}: the chat template shows no field {message.thought_field!r}, so the thought of turn {n + 1} would be "
            "lost. Write it before the answer in the content, between <think> and </think>, or use a template that shows "
            "it (model.chat_template), or take it out of the row."
        )
    own = thought or message.thought
    if own and ends_before(answer, own):
        raise DataError(
            f"{source}: the chat template ends an empty thought before that of turn {n + 1} ({message.role}), so the answer "
            f"would begin with the empty one. {way_to_think()}"
        )
    if not _shows(answer, text):
        raise _lost(source, f"the text of turn {n + 1} ({message.role})")
    for call in message.tool_calls:
        function = call["function"]
        if not all(_shows(answer, part) for part in (function["name"], *_strings(function["arguments"]))):
            raise _lost(source, f"the tool calls of turn {n + 1}")


_WAY = "Use another template (model.chat_template), or take it out of the row."


def _lost(source: Source, what: str, way: str = _WAY) -> DataError:
    return DataError(f"{source}: the chat template leaves out {what}, so the model would never see it. {way}")


def _shows(text: str, content: str) -> bool:
    """Whether the text shows the content: as it is, as JSON, or at least its longest word."""
    stripped = content.strip()
    if stripped in text:
        return True
    words = re.findall(r"\w+", stripped)
    if not words:
        return True
    longest = max(words, key=len)
    return longest in text or json.dumps(longest)[1:-1] in text
