"""data: the example tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Json
from inlay.cli.outcome import Output


def add_to(app: typer.Typer) -> None:
    data = group("Look at data and make some.")
    verb(data)(make)
    app.add_typer(data, name="data", rich_help_panel="Prepare")


def make(
    task: Annotated[str, typer.Argument(metavar="TASK", help="An example task, such as customer_support.")],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Folder to write into.")] = ".",
    as_json: Json = False,
) -> Output:
    """Write the training and held-out rows of an example task as files."""
    from inlay import api

    made = api.make_data(task, to=to)
    train, heldout = made["train"], made["heldout"]
    text = f"wrote {train['path']} ({train['rows']} rows) and {heldout['path']} ({heldout['rows']} rows)\n"
    next_step = f"Next: inlay train {train['path']} --set data.eval={heldout['path']} --model builtin:nano"
    return Output(made, text + next_step)
