"""Progress on a terminal, and the question that a terminal can answer. Everything goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any, cast

import typer

from inlay.errors import UserError
from inlay.runs.reporter import Figures, Pace, PlainReporter, Reporter, Unbreakable, duration_shown, shown

_LEFT = len("59 min 59 s left")


def reporter() -> Reporter:
    """A progress bar on a terminal, plain lines elsewhere."""
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()


class TerminalReporter:
    """Rich's progress bar with the figures of the last step, as many as the line holds."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=cast(IO[str], Unbreakable(sys.stderr)), highlight=False)
        self._bar: Any = None
        self._task: Any = None

    def stage(self, text: str) -> None:
        self._console.print(f"… {text}", style="dim", markup=False)

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(f"  {name}", style="bold"), Text(value))
        self._console.print(Text(title, style="bold"))
        self._console.print(table)

    def start(self, total: int, done: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        wide = self._console.width >= 110
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24 if wide else 10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._room = self._console.width - len(unit) - (24 if wide else 10) - 2 * len(str(total)) - 1 - _LEFT - 5
        self._task = self._bar.add_task(unit, total=total, completed=done, figures="", left=" " * _LEFT)
        self._pace = Pace(total, done)
        self._bar.start()

    def progress(self, done: int, values: Figures) -> None:
        left_s = self._pace.left_s(done)
        left = "" if left_s is None else f"{duration_shown(left_s)} left"
        self._bar.update(self._task, completed=done, figures=_fitting(values, self._room), left=f"{left:<{_LEFT}}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _fitting(values: Figures, room: int) -> str:
    """The first figures that fit into the room; a line that wraps cannot be redrawn."""
    line = ""
    for name, value in values.items():
        longer = f"{line}  {name} {shown(name, value)}".lstrip()
        if len(longer) > room:
            break
        line = longer
    return line


def confirm(as_json: bool) -> Callable[[str], bool] | None:
    """Asks on a terminal; None where nobody can answer."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, default=True, err=True)


def require_yes(question: str, yes: bool, as_json: bool) -> None:
    """Asks before something is lost. Raises: UserError on a no, and where nobody can answer."""
    if yes:
        return
    ask = confirm(as_json)
    if ask is None:
        raise UserError(f"{question} Nobody is here to ask: say --yes.")
    if not ask(question):
        raise UserError("nothing was deleted.")
