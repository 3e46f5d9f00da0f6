"""inlay verify."""

from __future__ import annotations

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import USE, Folder, Json, RunName
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, ["inlay verify news", "inlay verify support:prod"], panel=USE)(verify)


def verify(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Prove again what a run states: files, mask, counts, adapter, base, prompts. Exit code 1 when a proof fails."""
    proved = api.verify(run, reporter=render.progress.reporter(), folder=output)
    return Output(proved, render.run.proofs_text(proved), 0 if proved["passed"] else 1)
