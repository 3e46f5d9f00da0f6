"""A file of JSON lines that several processes append to and read: servers of one library, and `inlay ab`."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from inlay.storage import append_line, explained, one_at_a_time
from inlay.typed_json import JsonObject


class SharedLog:
    """Lines in the order in which they were written. A line that a kill cut short is dropped before the next one is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Lines that were no JSON, and were passed over."""
        self._read_to, self._file = 0, (0, 0)

    @property
    def old_path(self) -> Path:
        """Where `rotate` puts the file."""
        return self.path.with_suffix(f".old{self.path.suffix}")

    def new_lines(self) -> list[JsonObject]:
        """The lines since the last call, of whatever process; at first all of the file."""
        with explained(self.path):
            now, lines = _file_at(self.path), []
            if now != self._file:
                if self._file == _file_at(self.old_path):
                    lines = self._lines_of(self.old_path)
                self._file, self._read_to = now, 0
            return lines + self._lines_of(self.path)

    def append(self, *added: JsonObject) -> list[JsonObject]:
        """Adds lines; gives those of others since the last call, then these. Raises: StorageError."""
        with one_at_a_time(self.path.with_suffix(".lock")):
            others = self.new_lines()
            with explained(self.path), contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_size > self._read_to:
                    os.truncate(self.path, self._read_to)
            for line in added:
                append_line(self.path, line)
            return others + self.new_lines()

    def rotate(self, largest_bytes: int) -> bool:
        """Begins a new file where this one has grown beyond a size. Only one earlier file is kept."""
        with one_at_a_time(self.path.with_suffix(".lock")), explained(self.path):
            if not self.path.exists() or self.path.stat().st_size < largest_bytes:
                return False
            self.path.replace(self.old_path)
            return True

    def _lines_of(self, path: Path) -> list[JsonObject]:
        try:
            with path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        return [line for text in whole.splitlines() if (line := self._line(text)) is not None]

    def _line(self, text: bytes) -> JsonObject | None:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            self.damaged += 1
            return None


def _file_at(path: Path) -> tuple[int, int]:
    """The identity of the file at a path, whatever its name becomes; (0, 0) of none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return 0, 0
    return state.st_dev, state.st_ino
