"""inlay cross-validate."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import TRAIN, Json, Metrics, Model, Name, Preset, Results, Sets, Source, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay cross-validate data.jsonl --model builtin:nano --folds 5",
    "inlay cross-validate config.yaml --metrics token_f1",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=TRAIN, name="cross-validate")(cross_validate)


def cross_validate(
    source: Source,
    folds: Annotated[int, typer.Option(metavar="K", help="Number of folds, each of which is held out once.")] = 5,
    metrics: Metrics = "",
    model: Model = None,
    preset: Preset = None,
    settings: Sets = [],  # noqa: B006
    name: Name = None,
    output: Results = None,
    as_json: Json = False,
) -> Output:
    """Train once per fold and score every row by the adapter that did not train on it.

    Gives a verdict over all rows and the spread over the folds. The same command resumes an interrupted one.
    """
    given = {"model.base_model": model, "output.name": name, "output.folder": output}
    config = api.config_of(source, settings, preset, given)
    found = api.cross_validate(config, folds, metrics=names_in(metrics), reporter=render.progress.reporter())
    return Output(found.to_json(), render.scores.folds_text(found, render.terminal.width()))
