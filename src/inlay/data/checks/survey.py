"""The contents of a file, counted: rows, roles, turns, scripts, characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from inlay.data.checks.row import CheckedRow
from inlay.typed_json import JsonObject

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LATIN_LETTER = re.compile(r"[A-Za-z]")
_LOOKED_AT: Final = 2000  # characters of a turn that decide its script
_OTHER_NAMES: Final = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HALFWIDTH": "Katakana", "FULLWIDTH": "Latin"}


@dataclass(slots=True)
class FileFacts:
    """Counts of one file."""

    file: str
    held_out: bool
    format: str = "?"
    why: str = ""
    rows: int = 0
    """Rows that could be read."""
    faulty: int = 0
    """Rows that could not."""
    turns: Counter[int] = field(default_factory=Counter)
    """Rows by their number of turns."""
    roles: Counter[str] = field(default_factory=Counter)
    """Turns by role."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Rows by the script that most of their letters are in."""
    characters: Counter[str] = field(default_factory=Counter)
    """Characters by role."""
    trained_turns: int = 0
    with_tools: int = 0
    with_system: int = 0

    def see(self, row: CheckedRow) -> None:
        """Counts one row."""
        messages = row.example.messages
        self.rows += 1
        self.turns[len(messages)] += 1
        for message, text in zip(messages, row.texts, strict=True):
            self.roles[message.role] += 1
            self.characters[message.role] += len(text)
            self.trained_turns += message.weight > 0
        self.with_tools += bool(row.example.tools)
        self.with_system += messages[0].role == "system"
        self.scripts[script_of(row.texts)] += 1

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        counted = {name: dict(getattr(self, name).most_common()) for name in ("roles", "scripts", "characters")}
        plain = ("file", "held_out", "format", "why", "rows", "faulty", "trained_turns", "with_tools", "with_system")
        turns = {str(n): count for n, count in sorted(self.turns.items())}
        return {name: getattr(self, name) for name in plain} | counted | {"turns": turns}


def script_of(texts: tuple[str, ...]) -> str:
    """The writing system of most letters: Latin, Cyrillic, Han, …; "none" where there are no letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        piece = text[:_LOOKED_AT]
        if piece.isascii():
            counts["Latin"] += len(piece) if _LATIN_LETTER.search(piece) else 0
            continue
        others = "".join(_NOT_ASCII.findall(piece))
        counts["Latin"] += sum(c.isalpha() for c in piece) - sum(c.isalpha() for c in others)
        counts.update(_scripts(others))
    found = counts.most_common(1)
    return found[0][0] if found and found[0][1] else "none"


def _scripts(text: str) -> Iterator[str]:
    return (_script(c) for c in text if c.isalpha())


@lru_cache(maxsize=16384)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "OTHER").partition(" ")[0].partition("-")[0]
    return _OTHER_NAMES.get(first, first.capitalize())
