"""Control tokens: where they close a turn, and where a row must not write them; and what a template must show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from inlay.data.types import Message, Source
from inlay.errors import DataError


class ControlTokens:
    """The tokens of a tokenizer that structure a dialogue rather than say something."""

    def __init__(self, tokenizer: Any) -> None:
        added = {int(i): t for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.ids = frozenset(added) | {int(i) for i in tokenizer.all_special_ids}
        strings = {t.content for t in added.values()} | set(tokenizer.all_special_tokens)
        self._strings = tuple(sorted((s for s in strings if s.strip()), key=lambda s: (-len(s), s)))
        self._pattern = re.compile("|".join(map(re.escape, self._strings))) if self._strings else None
        # a token that is matched after normalization hides behind other spellings
        normalizer = tokenizer.backend_tokenizer.normalizer
        self._normalize = normalizer.normalize_str if normalizer and any(t.normalized for t in added.values()) else None
        self._is_blank = lru_cache(4096)(lambda ids: not tokenizer.decode(list(ids)).strip())

    def closing(self, text: str) -> str | None:
        """The control token that ends the text, white space after it aside."""
        stripped = text.rstrip()
        return next((s for s in self._strings if stripped.endswith(s)), None)

    def end_of_turn(self, ids: Sequence[int]) -> int:
        """How many ids of an assistant piece are trained: through its closing control token, without what follows."""
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] in self.ids:
                rest = tuple(ids[position + 1 :])
                return position + 1 if not rest or self._is_blank(rest) else len(ids)
        return len(ids)

    def refuse(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: Source) -> None:
        """Raises: DataError when text of the row would be read as a control token."""
        for n, message in enumerate(messages, 1):
            for what, text in _carriers(message):
                if found := self._find(text):
                    raise DataError(
                        f"{source}: turn {n} ({message.role}){what} contains {found!r}, which this tokenizer reads as "
                        "a control token. Remove or rewrite it."
                    )
        for text in _strings(tools):
            if found := self._find(text):
                raise DataError(
                    f"{source}: tools contain {found!r}, which this tokenizer reads as a control token. "
                    "Remove or rewrite it."
                )

    def _find(self, text: str) -> str | None:
        if self._pattern is None:
            return None
        found = self._pattern.search(text) or (self._pattern.search(self._normalize(text)) if self._normalize else None)
        return found.group() if found else None


def _carriers(message: Message) -> Iterator[tuple[str, str]]:
    yield "", message.content
    if message.name:
        yield " name", message.name
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


def refuse_lost_prompt(
    prompt: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: Source
) -> None:
    """Raises: DataError when the template does not show a part of what is asked.

    Assistant turns may be shortened: templates leave out old reasoning.
    """
    for n, message in enumerate(messages, 1):
        if message.role != "assistant" and not _shows(prompt, message.content):
            raise _lost(source, f"what turn {n} ({message.role}) says")
    for tool in tools:
        if not _shows(prompt, tool["function"]["name"]):
            raise _lost(source, f"the tool {tool['function']['name']!r}")


def refuse_lost_answer(answer: str, n: int, message: Message, source: Source) -> None:
    """Raises: DataError when the template does not show a part of trained turn `n` (from 0)."""
    if not _shows(answer, message.content):
        raise _lost(source, f"what turn {n + 1} ({message.role}) says")
    for call in message.tool_calls:
        function = call["function"]
        if not all(_shows(answer, text) for text in (function["name"], *_strings(function["arguments"]))):
            raise _lost(source, f"the tool calls of turn {n + 1}")


def _lost(source: Source, what: str) -> DataError:
    return DataError(
        f"{source}: the chat template leaves out {what}, so the model would never see it. Use another template "
        "(model.chat_template), or take it out of the row."
    )


def _shows(text: str, content: str) -> bool:
    """Whether the content stands in the text: as it is, as JSON, or at least its longest word."""
    stripped = content.strip()
    if stripped in text:
        return True
    words = re.findall(r"\w+", stripped)
    if not words:
        return True
    longest = max(words, key=len)
    return longest in text or json.dumps(longest)[1:-1] in text
