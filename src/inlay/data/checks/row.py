"""A row as the checks see it: the example, and its texts, normalised once for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from inlay.data.splits import prompt_turns
from inlay.data.types import Example, Message, normalised


def text_of(message: Message) -> str:
    """The text of a turn, and its tool calls as JSON."""
    if not message.tool_calls:
        return message.content
    calls = json.dumps(message.tool_calls, ensure_ascii=False, sort_keys=True)
    return f"{message.content}\n{calls}" if message.content else calls


class CheckedRow:
    """An example, with its texts prepared for all checks."""

    __slots__ = ("example", "held_out", "is_document", "normal", "number", "source", "text", "texts")

    def __init__(self, example: Example, number: int, held_out: bool) -> None:
        messages = example.messages
        self.example, self.source, self.held_out = example, example.source, held_out
        self.number = number
        """Position among the rows of all files, from 0."""
        self.is_document = messages[0].role == "text"
        self.texts = tuple([text_of(message) for message in messages])
        """The text of each turn, calls included."""
        self.text = "\n".join(self.texts)
        """All turns, a line break between them."""
        self.normal = tuple([(m.role, normalised(text)) for m, text in zip(messages, self.texts, strict=True)])
        """(role, normalised text) of each turn."""

    @property
    def whole_key(self) -> int:
        """Equal for rows with the same text in every turn."""
        return hash(self.normal)

    @property
    def prompt_key(self) -> int:
        """Equal for rows with the same prompt: all turns before the last answer. 0 for a document."""
        return hash(self.normal[:-1]) if len(self.normal) > 1 else 0

    @property
    def opening_key(self) -> int:
        """Equal for rows that begin with the same question, as the split groups them."""
        return hash(self.normal[: prompt_turns(self.example.messages)])

    @property
    def answer(self) -> str:
        """The last turn, which is trained."""
        return self.texts[-1]

    @property
    def question(self) -> str:
        """The turn before the last answer; the document itself where there is none."""
        return self.texts[-2] if len(self.texts) > 1 else self.texts[0]

    def trained(self) -> Iterator[tuple[int, str]]:
        """(number from 0, text) of each answer that is trained, or of the document."""
        turns = enumerate(self.example.messages)
        return ((n, self.texts[n]) for n, m in turns if m.weight > 0 and m.role in ("assistant", "text"))
