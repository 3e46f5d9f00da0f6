"""The few values that data code passes along. No torch here: the command line reads these too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Protocol

from inlay.errors import DataError


class Hash(Protocol):
    """What `hashlib.sha256()` gives."""

    def update(self, data: bytes, /) -> None: ...


OnFault = Callable[[DataError], None]
"""Told of a defect, so that reading can go on with the next row."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row came from, for every message that speaks of it."""

    file: str
    line: int
    """1-based line of a text file, row number of a JSON array, CSV record or table."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


_PART_BITS: Final = 40


def row_key(part: int, line: int) -> int:
    """One number for a line of one of the files that a path stands for; of the first file it is the line."""
    return part << _PART_BITS | line


def part_and_line(key: int) -> tuple[int, int]:
    """What `row_key` made one number of."""
    return key >> _PART_BITS, key & ((1 << _PART_BITS) - 1)


def lines_in(keys: Set[int], part: int) -> set[int]:
    """The lines that these keys name in one of a path's files."""
    return {line for of, line in map(part_and_line, keys) if of == part}


_PRINTABLE: Final = bytes(range(0x20, 0x7F))


@lru_cache(8)  # the check and the split ask for the same text one after the other
def normalised(text: str) -> str:
    """Text whose case and white space do not count."""
    flat = text.replace("\n", " ").strip()
    if flat.isascii() and not flat.encode().translate(None, _PRINTABLE) and "  " not in flat:
        return flat.lower()  # a space is the only white space in it
    return " ".join(text.split()).casefold()


ASSISTANT: Final[Mapping[str, float]] = MappingProxyType({"assistant": 1.0})
"""The weight of a turn by its role, where nothing else is set."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record, before its format is known."""

    value: dict[str, Any]
    source: Source
    role_weights: Mapping[str, float] = field(default_factory=lambda: ASSISTANT)
    """How much a trained turn counts, by its role; a role that is not named does not."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Role is system, user, assistant, tool, or text (a plain document without turns)."""

    role: str
    content: str
    weight: float = 0.0
    """How much each of its tokens counts in the loss; 0 masks it. Formats give a turn that of its role."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    thought: str = ""
    """The reasoning before an answer, where it has a field of its own."""
    thought_field: str = ""
    """The name of that field in the row."""
    tool_call_id: str | None = None
    """Of a tool's answer: the id of the call that it answers."""

    @property
    def has_more(self) -> bool:
        """Whether the turn has more than a role and what it says."""
        return bool(self.tool_calls or self.name or self.thought or self.tool_call_id)


@dataclass(frozen=True, slots=True)
class Example:
    """What a format makes of a row: a dialogue with at least one trained turn."""

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[dict[str, Any], ...] = field(default=())
    unread: tuple[str, ...] = field(default=(), compare=False)
    """What of the row has no effect: fields by name, and turns that are read without being trained."""
