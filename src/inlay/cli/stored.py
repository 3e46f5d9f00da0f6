"""checkpoints: what a run has kept."""

from __future__ import annotations

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Folder, Json, RunName
from inlay.cli.outcome import Output


def add_to(app: typer.Typer) -> None:
    checkpoints = group("The checkpoints of a run: list them, or go on from the newest.")
    verb(checkpoints, name="list")(listed)
    verb(checkpoints, name="resume")(resume)
    app.add_typer(checkpoints, name="checkpoints", rich_help_panel="Train")


def listed(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Every checkpoint with its step, losses, size, and whether its files are whole."""
    from inlay import api
    from inlay.cli import view

    rows = api.checkpoints(run, folder=output)
    return Output(rows, view.checkpoints_text(rows))


def resume(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Go on with a run from its newest whole checkpoint."""
    from inlay import api
    from inlay.cli import progress, view

    finished = api.resume(run, reporter=progress.reporter(), folder=output)
    return Output(finished.record.get("result"), view.after_training(finished))
