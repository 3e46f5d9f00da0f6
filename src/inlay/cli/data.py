"""data: look at files, split them, and the example tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Json
from inlay.cli.outcome import Output

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Data files (.jsonl .json .csv .tsv .parquet, also .gz), or one .yaml config.",
        show_default=False,
    ),
]
HeldOut = Annotated[str | None, typer.Option("--eval", metavar="FILE", help="Held-out rows, checked for leakage.")]
DataSets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. data.columns.question=ask. May be repeated."),
]


def add_to(app: typer.Typer) -> None:
    data = group("Look at data and make some.")
    verb(data)(check)
    verb(data)(make)
    app.add_typer(data, name="data", rich_help_panel="Prepare")


def check(
    files: Files,
    held_out: HeldOut = None,
    settings: DataSets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Look for everything in the rows that would spoil training: damage, duplicates, leakage, secrets.

    Every finding has a severity, its places, and a fix. The exit code is 3 when there is an error among them.
    """
    from inlay import api
    from inlay.cli import check_view, view

    report = api.check_data(*files, eval=held_out, settings=settings)
    return Output(report.to_json(), check_view.report_text(report, view.width()), 3 if report.has_errors else 0)


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
