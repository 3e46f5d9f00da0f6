"""inlay init."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from inlay import api
from inlay.cli.help import verb
from inlay.cli.options import PREPARE, Json
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, ["inlay init", "inlay init support.yaml --preset support"], panel=PREPARE)(init)


def init(
    path: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "inlay.yaml",
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from the settings of a preset; inlay config show lists them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Write a commented config to start from."""
    written = api.init(path, preset=preset, force=force)
    return Output({"path": str(written)}, f"wrote {written}. Edit it, then: inlay train {shlex.quote(str(written))}")
