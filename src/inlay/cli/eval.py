"""inlay eval."""

from __future__ import annotations

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import USE, Data, Folder, Json, Measuring, Metrics, ModelName, NoAdapter, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = ("inlay eval", "inlay eval news --base --set eval.max_rows=50", "inlay eval ./model --data unseen.jsonl")


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=USE, name="eval")(evaluate)


def evaluate(
    model: ModelName = None,
    base: NoAdapter = False,
    data: Data = None,
    metrics: Metrics = "",
    settings: Measuring = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Score one model on held-out rows."""
    result = api.evaluate(
        model,
        adapter=not base,
        data=data,
        metrics=names_in(metrics),
        settings=settings,
        reporter=render.progress.reporter(),
        folder=output,
    )
    return Output(result, render.scores.evaluation_text(result))
