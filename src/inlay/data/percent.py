"""How far a pass over a file has come, shown where there is enough to wait for."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final, Protocol

_WORTH_A_BAR_BYTES: Final = 8_000_000
_SILENCE_S: Final = 10.0


class Bar(Protocol):
    """Where counted work shows how far it is; a `Reporter` is one."""

    def start(self, total: int, done: int, unit: str) -> None: ...
    def progress(self, done: int, values: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


class Percent:
    """The percent that are `done` ("tokenized") of a file of this size, with its rows; 100 when the work inside is over."""

    def __init__(self, bar: Bar | None, size_bytes: int, done: str) -> None:
        self._bar = bar if size_bytes >= _WORTH_A_BAR_BYTES else None
        self._done = done
        self._percent = 0

    def __enter__(self) -> Percent:
        self._began = self._told = time.perf_counter()
        if self._bar:
            self._bar.start(100, 0, f"% {self._done}")
        return self

    def reached(self, share: float, rows: int) -> None:
        """So much of the whole, and the rows in it."""
        if self._bar is None:
            return
        percent, now = min(99, int(99 * share)), time.perf_counter()
        if percent > self._percent or now - self._told > _SILENCE_S:
            self._percent, self._told = max(percent, self._percent), now
            self._bar.progress(self._percent, {"rows": rows, "rows/s": rows / (now - self._began)})

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar:
            if kind is None:
                self._bar.progress(100, {})
            self._bar.end()
