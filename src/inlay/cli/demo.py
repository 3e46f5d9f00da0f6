"""inlay demo."""

from __future__ import annotations

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import TRAIN, Folder, Json
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, ["inlay demo"], panel=TRAIN)(demo)


def demo(output: Folder = "results", as_json: Json = False) -> Output:
    """Fine-tune the built-in model on customer support and compare it with its base, in about two minutes."""
    run, comparison = api.demo(folder=output, reporter=render.progress.reporter())
    value = {"run": run.result.to_json(), "comparison": comparison.to_json()}
    text = render.comparison.comparisons_text(comparison, render.terminal.width())
    return Output(value, text + render.run.after_demo(run))
