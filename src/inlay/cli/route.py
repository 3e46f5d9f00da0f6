"""inlay route: fit."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import USE, Folder, Json, Library
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    routes = group("Choose an adapter by the query: a router for the model auto of inlay serve.")
    verb(routes, ["inlay route fit support:prod code:2", "inlay route fit support code --out router.json --json"])(fit)
    app.add_typer(routes, name="route", rich_help_panel=USE)


def fit(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="A B …", help="Adapters on one base: library names or runs.", show_default=False),
    ],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The router.")] = "router.json",
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it also where it is no better than one adapter alone.")
    ] = False,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Fit a router to the prompts of the adapters' training rows, and judge it on their held-out rows.

    Exit code 1, and nothing is written, where it is no better than the best adapter alone.
    """
    try:
        found = api.fit_router(
            adapters, out, accept=accept, reporter=render.progress.reporter(), library=library, folder=output
        )
    except api.RouterRefused as refused:
        refusal = {"refused": str(refused), **refused.fitted.to_json()}
        return Output(refusal, f"{render.route.fitted_text(refused.fitted)}\n{refused}", 1)
    return Output(found.to_json(), f"{render.route.fitted_text(found)}\nwritten to {out}")
