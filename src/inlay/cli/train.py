"""inlay train."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import TRAIN, Extend, Fresh, Json, Model, Name, Preset, Results, Sets, Source
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay train data.jsonl --model builtin:nano",
    "inlay train data.jsonl --model Qwen/Qwen2.5-0.5B --preset code --name news",
    "inlay train config.yaml --set adapter.rank=8 --set data.columns.prompt=ask",
    "inlay train config.yaml --model ./llama   (write a config with: inlay init)",
    "inlay train config.yaml --name news --resume   (after Ctrl+C or a crash)",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=TRAIN)(train)


def train(
    source: Source,
    model: Model = None,
    preset: Preset = None,
    settings: Sets = [],  # noqa: B006
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the adapter of this run, checkpoint or folder.",
            rich_help_panel="What to train",
        ),
    ] = None,
    name: Name = None,
    output: Results = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run from its last checkpoint.", rich_help_panel="The run")
    ] = False,
    fresh: Fresh = False,
    extend: Extend = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print at the end where the time went.", rich_help_panel="The run")
    ] = False,
    as_json: Json = False,
) -> Output:
    """Train an adapter on your data, save it, and evaluate it on held-out rows.

    Detects the format of the data, checks every row, holds some rows out, prints its plan, trains, and measures whether
    the adapter is better than the base. All files of a run lie in one folder.
    """
    given = {"model.base_model": model, "output.name": name, "output.folder": output, "adapter.start_from": start_from}
    config = api.config_of(source, settings, preset, given)
    run = api.train(
        config,
        resume=resume,
        fresh=fresh,
        extend=extend,
        profile=profile,
        reporter=render.progress.reporter(),
        confirm=render.progress.confirm(as_json),
    )
    return Output(run.result.to_json(), render.run.after_training(run))
