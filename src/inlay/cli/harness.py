"""inlay harness."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import USE, Folder, Json, ModelName, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay harness news --tasks arc_easy,hellaswag --limit 200",
    "inlay harness news --tasks my_task.yaml --set eval.batch_size=4",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=USE)(harness)


def harness(
    model: ModelName = None,
    tasks: Annotated[
        str,
        typer.Option(metavar="A,B", help="Tasks by name, group or pattern, or task files (.yaml).", show_default=False),
    ] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use at most N documents of each task.")] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="eval.batch_size or eval.resamples. May be repeated."),
    ] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Run tasks of lm-evaluation-harness on the base and on the adapter.

    Needs the extra: pip install "inlay[harness]".
    """
    found = api.harness(
        model,
        names_in(tasks),
        limit=limit,
        settings=settings,
        reporter=render.progress.reporter(),
        folder=output,
    )
    return Output(found, render.scores.harness_text(found))
