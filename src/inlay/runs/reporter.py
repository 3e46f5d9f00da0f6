"""Progress of long work. The command line draws it; a notebook gets plain lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol

from inlay.runs.folder import Run

Figures = Mapping[str, float | str]
"""Latest figures of counted work by their short names, such as `lr`."""


class Reporter(Protocol):
    """Receives the progress of a verb. A reporter changes no result."""

    def stage(self, text: str) -> None:
        """A piece of work has begun."""

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        """A table of facts, such as the pre-flight block."""

    def start(self, total: int, done: int, unit: str) -> None:
        """Counted work begins at `done` of `total`."""

    def progress(self, done: int, values: Figures) -> None:
        """Counted work has reached `done`; `values` are its latest figures."""

    def note(self, text: str) -> None:
        """A line worth keeping on the screen."""

    def end(self) -> None:
        """The counted work is over, well or not."""


class Pace:
    """Estimates the remaining time of counted work from its mean pace so far, pauses for evaluations included."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._began = time.perf_counter()
        self._reports = 0

    def left_s(self, done: int) -> float | None:
        """Seconds, None before anything is done."""
        now = time.perf_counter()
        self._reports += done > self._first
        if done <= self._first:
            return None
        left_s = (now - self._began) / (done - self._first) * (self._total - done)
        if self._reports == 1:  # it paid for warming up
            self._first, self._began = done, now
        return left_s


class LateBar:
    """A bar for counted work that shows once there is enough to wait for."""

    def __init__(self, reporter: Reporter, total: int, unit: str, patience_s: float = 5.0) -> None:
        self._reporter, self._total, self._unit, self._patience_s = reporter, total, unit, patience_s
        self._is_shown = False

    def __enter__(self) -> LateBar:
        self._began = time.perf_counter()
        return self

    def reached(self, done: int) -> None:
        """Counted work has reached `done`."""
        if self._is_shown:
            self._reporter.progress(done, {})
        elif done < self._total and time.perf_counter() - self._began >= self._patience_s:
            self._is_shown = True
            self._reporter.start(self._total, done, self._unit)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._is_shown:
            self._reporter.end()


class Unbreakable:
    """A text stream whose reader may go away: a closed pipe or terminal must not end a run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, or drops it where nobody reads any more."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it is still open."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_SHORTEST_SHOWN_S: Final = 1.0


class PlainReporter:
    """Lines on stderr: for a notebook, a log file, a pipe."""

    def __init__(self, every: int = 1) -> None:
        self._every, self._total, self._unit, self._printed = every, 0, "", 0
        self._pace = Pace(0, 0)

    def stage(self, text: str) -> None:
        self._line(f"… {text}")

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        width = max(len(name) for name, _ in rows)
        self._line("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)]))

    def start(self, total: int, done: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._every = max(1, total // 20)
        self._printed = done // self._every
        self._pace = Pace(total, done)

    def progress(self, done: int, values: Figures) -> None:
        left_s = self._pace.left_s(done)
        if done // self._every != self._printed or done == self._total:
            self._printed = done // self._every
            reached = f"{done}{self._unit}" if self._unit.startswith("%") else f"{done}/{self._total}"
            figures = [reached, *(f"{name} {shown(name, value)}" for name, value in values.items())]
            if left_s is not None and left_s >= _SHORTEST_SHOWN_S:
                figures.append(f"{duration_shown(left_s)} left")
            self._line("  " + "  ".join(figures))

    def note(self, text: str) -> None:
        self._line(text)

    def end(self) -> None:
        pass

    def _line(self, text: str) -> None:
        screen = Unbreakable(sys.stderr)
        screen.write(text + "\n")
        screen.flush()


class LoggedReporter:
    """Passes everything on and keeps the lasting lines in the run's log.txt, once there is one."""

    def __init__(self, inner: Reporter, run: Run | None = None) -> None:
        self._inner, self._run = inner, run
        self._before: list[str] = []
        self.start, self.progress, self.end = inner.start, inner.progress, inner.end

    def opened(self, run: Run) -> None:
        """Writes the lines so far into the log of the run, whose folder exists from here on, and all later ones."""
        self._run = run
        for text in self._before:
            run.log(text)

    def _log(self, text: str) -> None:
        if self._run is None:
            self._before.append(text)
        else:
            self._run.log(text)

    def stage(self, text: str) -> None:
        self._log(f"… {text}")
        self._inner.stage(text)

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        self._log("\n".join([title, *(f"  {name}: {value}" for name, value in rows)]))
        self._inner.block(title, rows)

    def note(self, text: str) -> None:
        self._log(text)
        self._inner.note(text)


def shown(name: str, value: float | str) -> str:
    """A figure with as many digits as it deserves."""
    if isinstance(value, float):
        if name.endswith("_bytes") or name == "memory":
            return bytes_shown(value)
        if name == "tok/s":
            return f"{value:,.0f}"
        return (
            f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
        )
    return f"{value:,}" if isinstance(value, int) and name == "rows" else str(value)


def bytes_shown(count: float) -> str:
    """`1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if round(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration_shown(seconds: float) -> str:
    """`1 h 04 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Change(Protocol):
    """A difference and the ends of its interval; None of both where too few rows give none."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def interval_shown(change: Change, number: Callable[[float], str], missing: str = "—") -> str:
    """`[low, high]`; `missing` where there is none."""
    if change.low is None or change.high is None:
        return missing
    return f"[{number(change.low)}, {number(change.high)}]"


def change_shown(change: Change, number: Callable[[float], str]) -> str:
    """`-0.42 [-0.57, -0.31]`, as a sentence has it."""
    return f"{number(change.difference)} {interval_shown(change, number, '(no interval)')}"


def signed(value: float) -> str:
    """`figure_shown` with its sign."""
    return figure_shown(value, "+")


def figure_shown(value: float, sign: str = "") -> str:
    """About three significant digits in at most six characters and a sign; `sign` is "+" to write it for both."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 0.001 or size >= 1e6:
        return f"{value:{sign}.0e}"
    decimals = 4 if size < 0.1 else 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0
    return f"{value:{sign}.{decimals}f}"
