"""train, demo, and what they print."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.options import Folder, Json, emit

Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. adapter.rank=8.")]


def add_to(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(demo)


def train(
    source: Annotated[
        str, typer.Argument(metavar="DATA|CONFIG", help="A data file, a hub dataset, or a .yaml config.")
    ],
    model: Annotated[str | None, typer.Option(help="Local folder, hub id, or builtin:nano.")] = None,
    preset: Annotated[str | None, typer.Option(help="Known settings for a task: see inlay config show.")] = None,
    settings: Sets = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    start_from: Annotated[str | None, typer.Option("--from", help="Start from the adapter of this run.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder that holds the runs [results].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run of that name aside.")] = False,
    as_json: Json = False,
) -> None:
    """Train an adapter: check the data, split it, train, save, and judge it on held-out rows."""
    from inlay import api
    from inlay.cli import view

    given = {"model.base_model": model, "output.name": name, "adapter.start_from": start_from, "output.folder": output}
    config = api.config_of(source, settings, preset, given)
    run = api.train(config, resume=resume, fresh=fresh, reporter=view.reporter(), confirm=view.confirm(as_json))
    emit(run.record.get("result"), as_json, view.after_training(run))


def demo(
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """Fine-tune the built-in model on customer support and compare it with its base, in about two minutes."""
    from inlay import api
    from inlay.cli import view

    run, comparison = api.demo(folder=output, reporter=view.reporter())
    value = {"run": run.record.get("result"), "comparison": comparison.to_json()}
    emit(value, as_json, view.comparison_text(comparison, run) + view.after_demo(run))
