"""A row as the checks see it: the example, and its text once normalised for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from inlay.data.types import Example, Message, Source


def normalised(text: str) -> str:
    """Text whose case and white space do not count."""
    return " ".join(text.split()).casefold()


def said(message: Message) -> str:
    """All that a turn says: its text, and its tool calls as JSON."""
    if not message.tool_calls:
        return message.content
    calls = json.dumps(message.tool_calls, ensure_ascii=False, sort_keys=True)
    return f"{message.content}\n{calls}" if message.content else calls


@dataclass(frozen=True)
class CheckedRow:
    """One example on its way through the checks."""

    example: Example
    number: int
    """Position among the rows of all files, from 0."""
    held_out: bool

    @property
    def source(self) -> Source:
        return self.example.source

    @property
    def is_document(self) -> bool:
        return self.example.messages[0].role == "text"

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """What each turn says."""
        return tuple(said(message) for message in self.example.messages)

    @cached_property
    def text(self) -> str:
        """All turns, a line break between them."""
        return "\n".join(self.texts)

    @cached_property
    def normal(self) -> tuple[tuple[str, str], ...]:
        """(role, normalised text) of each turn."""
        return tuple((m.role, normalised(text)) for m, text in zip(self.example.messages, self.texts, strict=True))

    @cached_property
    def whole_key(self) -> int:
        """Equal for rows that say the same in every turn."""
        return hash(self.normal)

    @cached_property
    def prompt_key(self) -> int:
        """Equal for rows that ask the same: all turns before the last answer. 0 for a document."""
        return hash(self.normal[:-1]) if len(self.normal) > 1 else 0

    @cached_property
    def opening_key(self) -> int:
        """Equal for rows that begin with the same question, as the split groups them."""
        n = next((n for n, (role, _) in enumerate(self.normal) if role == "assistant"), len(self.normal))
        return hash(self.normal[:n])

    @property
    def answer(self) -> str:
        """The last turn, which is trained."""
        return self.texts[-1]

    @property
    def question(self) -> str:
        """What stands before the last answer; the document itself where there is none."""
        return self.texts[-2] if len(self.texts) > 1 else self.texts[0]

    def trained(self) -> Iterator[tuple[int, str]]:
        """(number from 0, text) of each answer that is trained, or of the document."""
        said = enumerate(self.example.messages)
        return ((n, self.texts[n]) for n, m in said if m.weight > 0 and m.role in ("assistant", "text"))
