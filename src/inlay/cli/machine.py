"""doctor, init, config: before a run."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.options import Folder, Json, emit


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)
    app.command()(init)
    group = typer.Typer(help="Look settings up.", no_args_is_help=True, rich_markup_mode=None)
    group.command("show")(show)
    group.command("explain")(explain)
    app.add_typer(group, name="config")


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the slow probes.")] = False,
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """What this machine can really do, and the settings that suit it."""
    from inlay import api
    from inlay.cli.doctor_view import lines

    record = api.doctor(quick=quick, folder=output)
    emit(record, as_json, "\n".join(lines(record)))


def init(
    path: Annotated[str, typer.Argument(help="The file to write.")] = "inlay.yaml",
    preset: Annotated[str | None, typer.Option(help="Start from a preset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented config to start from."""
    from inlay import api

    written = api.init(path, preset=preset, force=force)
    emit({"path": str(written)}, as_json, f"wrote {written}. Edit it, then: inlay train {written}")


def show(
    what: Annotated[
        str | None, typer.Argument(help="A config file, a run, or a preset; the presets if left out.")
    ] = None,
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """Print a config with every default filled in, or list the presets."""
    from inlay import api

    value, text = api.show_config(what, folder=output)
    emit(value, as_json, text)


def explain(
    setting: Annotated[str | None, typer.Argument(help="A setting or a section; all if left out.")] = None,
    as_json: Json = False,
) -> None:
    """What a setting means, what it may be, and its default."""
    from inlay import api
    from inlay.cli import view

    rows = api.explain_config(setting)
    emit(rows, as_json, view.explanation_text(rows))
