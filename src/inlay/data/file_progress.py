"""Progress of a pass over a file, shown for files that take a while."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Protocol

from inlay.typed_json import JsonObject

_SHOWN_FROM_BYTES: Final = 8_000_000
_SHOWN_EVERY_S: Final = 10.0


class ProgressBar(Protocol):
    """A place that shows progress; a `Reporter` is one."""

    def start(self, total: int, done: int, unit: str) -> None:
        """Shows the bar."""

    def progress(self, done: int, values: JsonObject) -> None:
        """Moves the bar, with numbers beside it."""

    def end(self) -> None:
        """Takes the bar away."""


class FileProgress:
    """A bar for the percentage of a file that is `done` ("tokenized"), and rows a second; shown inside `with`."""

    def __init__(self, bar: ProgressBar | None, size_bytes: int, done: str) -> None:
        self._bar = bar if size_bytes >= _SHOWN_FROM_BYTES else None
        self._done = done
        self._percent = 0

    def __enter__(self) -> FileProgress:
        self._began = self._shown_at = time.perf_counter()
        if self._bar:
            self._bar.start(100, 0, f"% {self._done}")
        return self

    def reached(self, share: float, rows: int) -> None:
        """Moves the bar to this share of the file; `rows` are those in it."""
        if self._bar is None:
            return
        percent, now = min(99, int(99 * share)), time.perf_counter()
        if percent > self._percent or now - self._shown_at > _SHOWN_EVERY_S:
            self._percent, self._shown_at = max(percent, self._percent), now
            self._bar.progress(self._percent, {"rows": rows, "rows/s": rows / (now - self._began)})

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar:
            if kind is None:
                self._bar.progress(100, {})
            self._bar.end()
