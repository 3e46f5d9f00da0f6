"""The few values that data code passes along. No torch here: the command line reads these too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inlay.errors import DataError

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


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record, before its format is known."""

    value: dict[str, Any]
    source: Source


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Role is system, user, assistant, tool, or text (a plain document without turns)."""

    role: str
    content: str
    weight: float = 0.0
    """How much each of its tokens counts in the loss; 0 masks it. Formats give assistant turns 1."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """What a format makes of a row: a dialogue with at least one trained turn."""

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[dict[str, Any], ...] = field(default=())
