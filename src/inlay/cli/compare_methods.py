"""inlay compare-methods."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import TRAIN, Fresh, Json, Model, Name, Preset, Results, Sets, Source, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay compare-methods data.jsonl --model builtin:nano --methods lora,full",
    "inlay compare-methods config.yaml --methods lora,dora,lora+ --name methods",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=TRAIN, name="compare-methods")(compare_methods)


def compare_methods(
    source: Source,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", metavar="A,B", help="Some of lora, qlora, rslora, dora, lora+, ia3, prompt, full.",
            rich_help_panel="What to train",
        ),
    ],
    model: Model = None,
    preset: Preset = None,
    settings: Sets = [],  # noqa: B006
    name: Name = None,
    output: Results = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Train once per fine-tuning method and compare the runs.

    The same data, steps and seed for each method; a table shows trained parameters, memory, time and held-out loss. The
    same command resumes an interrupted comparison.
    """
    given = {"model.base_model": model, "output.name": name, "output.folder": output}
    config = api.config_of(source, settings, preset, given)
    found = api.compare_methods(config, names_in(methods), fresh=fresh, reporter=render.progress.reporter())
    return Output(found.to_json(), render.scores.methods_text(found, render.terminal.width()))
