"""Options that several verbs share, and what they do to the output."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else there.")]
RunName = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder; the one trained last if left out.")
]
Folder = Annotated[str, typer.Option("--output", help="Folder that holds the runs.")]


def emit(value: Any, as_json: bool, text: str | None = None) -> None:
    """The verb's result: the JSON value, or the text for people."""
    from inlay.api import write_json_safe

    if as_json:
        typer.echo(write_json_safe(value))
    elif text is not None:
        typer.echo(text)
