"""data: the example tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.options import Json, emit


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Look at data and make some.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(lambda: None)  # keeps `make` a subcommand while it is the only one
    group.command("make")(make)
    app.add_typer(group, name="data")


def make(
    task: Annotated[str, typer.Argument(help="An example task, such as customer_support.")],
    to: Annotated[str, typer.Option(help="Folder to write into.")] = ".",
    as_json: Json = False,
) -> None:
    """Write the training and held-out rows of an example task as files."""
    from inlay import api

    made = api.make_data(task, to=to)
    train, heldout = made["train"], made["heldout"]
    text = f"wrote {train['path']} ({train['rows']} rows) and {heldout['path']} ({heldout['rows']} rows)\n"
    next_step = f"Next: inlay train {train['path']} --set data.eval={heldout['path']} --model builtin:nano"
    emit(made, as_json, text + next_step)
