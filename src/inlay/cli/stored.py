"""checkpoints: what a run has kept."""

from __future__ import annotations

import typer

from inlay.cli.options import Folder, Json, RunName, emit


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="The checkpoints of a run.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list")(listed)
    group.command("resume")(resume)
    app.add_typer(group, name="checkpoints")


def listed(run: RunName = None, output: Folder = "results", as_json: Json = False) -> None:
    """Every checkpoint with its step, losses, size, and whether its files are whole."""
    from inlay import api
    from inlay.cli import view

    rows = api.checkpoints(run, folder=output)
    emit(rows, as_json, view.checkpoints_text(rows))


def resume(run: RunName = None, output: Folder = "results", as_json: Json = False) -> None:
    """Go on with a run from its newest whole checkpoint."""
    from inlay import api
    from inlay.cli import view

    finished = api.resume(run, reporter=view.reporter(), folder=output)
    emit(finished.record.get("result"), as_json, view.after_training(finished))
