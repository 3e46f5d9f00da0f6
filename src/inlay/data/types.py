"""The values that the data code passes along: rows, messages, examples. No torch here: the command line reads these too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, NotRequired, Protocol, TypedDict

from inlay.errors import DataError
from inlay.typed_json import JsonObject


class Hash(Protocol):
    """A running digest, such as `hashlib.sha256()`."""

    def update(self, data: bytes, /) -> None:
        """Adds these bytes."""


OnFault = Callable[[DataError], None]
"""Receives a defect, so that reading can go on with the next row."""


Switches = tuple[tuple[str, bool | int | float | str], ...]
"""(name, value) of each switch of a chat template, such as `enable_thinking`, by the alphabet."""


class CalledFunction(TypedDict):
    """The function of a call, and its arguments."""

    name: str
    arguments: JsonObject


class ToolCall(TypedDict):
    """One call of an assistant turn, in the shape that chat templates take."""

    type: Literal["function"]
    function: CalledFunction
    id: NotRequired[str]


class Tool(TypedDict):
    """One tool of a row, in the shape that chat templates take; `function` has at least a name."""

    type: Literal["function"]
    function: JsonObject


@dataclass(frozen=True, slots=True)
class Source:
    """The file and line of a row, for messages about it."""

    file: str
    line: int
    """1-based line of a text file, row number of a JSON array, CSV record or table."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


_PART_BITS: Final = 40


def row_key(part: int, line: int) -> int:
    """One number for a line in one of the files of a path; in the first file it is the line."""
    return part << _PART_BITS | line


def part_and_line(key: int) -> tuple[int, int]:
    """(position of the file, line) of a `row_key`."""
    return key >> _PART_BITS, key & ((1 << _PART_BITS) - 1)


def lines_in(keys: Set[int], part: int) -> set[int]:
    """The lines of these keys that are in one of a path's files."""
    return {line for of, line in map(part_and_line, keys) if of == part}


_PRINTABLE: Final = bytes(range(0x20, 0x7F))


@lru_cache(8)  # the check and the split ask for the same text one after the other
def normalised(text: str) -> str:
    """The text in lower case, with one space in place of each run of white space."""
    flat = text.replace("\n", " ").strip()
    if flat.isascii() and not flat.encode().translate(None, _PRINTABLE) and "  " not in flat:
        return flat.lower()  # a space is the only white space in it
    return " ".join(text.split()).casefold()


ASSISTANT: Final[Mapping[str, float]] = MappingProxyType({"assistant": 1.0})
"""The default weight of a turn by its role."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record, before its format is known."""

    value: JsonObject
    source: Source
    role_weights: Mapping[str, float] = field(default_factory=lambda: ASSISTANT)
    """The weight of a trained turn by its role; 0 for a role that is not named."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Role is system, user, assistant, tool, or text (a plain document without turns)."""

    role: str
    content: str
    weight: float = 0.0
    """Weight of each of its tokens in the loss; 0 masks it. Formats give a turn the weight of its role."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    thought: str = ""
    """The reasoning before an answer, where it has a field of its own."""
    thought_field: str = ""
    """The name of that field in the row."""
    tool_call_id: str | None = None
    """For a tool's answer: the id of the call that it answers."""
    written: tuple[str, str] | None = None
    """(role, text) of the turn in its row, where calls or tool answers were lifted out of the text."""

    @property
    def has_more(self) -> bool:
        """Whether the turn has more than a role and text."""
        return bool(self.tool_calls or self.name or self.thought or self.tool_call_id)


@dataclass(frozen=True, slots=True)
class Example:
    """A row read by its format: a conversation with at least one trained turn, or a document."""

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[Tool, ...] = field(default=())
    switches: Switches = ()
    """Switches that the row sets for its chat template (`chat_template_kwargs`)."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """Parts of the row that have no effect: fields by name, and turns that are read without being trained."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last trained answer."""
        last = max(n for n, m in enumerate(self.messages) if m.role == "assistant" and m.weight > 0)
        return self.messages[:last]
