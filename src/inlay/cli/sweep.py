"""inlay sweep."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import TRAIN, Fresh, Json, Model, Name, Results, Sets, Source
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay sweep data.jsonl --model builtin:nano --over adapter.rank=4,8,16",
    "inlay sweep config.yaml --over train.learning_rate=5e-5..2e-3:log",
)
_WHAT = "What to try"


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=TRAIN)(sweep)


def sweep(
    source: Source,
    over: Annotated[
        list[str],
        typer.Option(
            "--over", metavar="KEY=VALUES", rich_help_panel=_WHAT,
            help="A setting and what it may be: A,B,C or LOW..HIGH or LOW..HIGH:log. May be repeated.",
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="grid, random, qmc, tpe or gp. [default: tpe]", rich_help_panel=_WHAT),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Trials in all; the first is the config as it is. [default: 16]", rich_help_panel=_WHAT),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none", rich_help_panel=_WHAT,
            help="Judge the winner on these rows; none: on the rows that chose it. [default: on half of the held-out rows]",
        ),
    ] = None,
    model: Model = None,
    settings: Sets = [],  # noqa: B006
    name: Name = None,
    output: Results = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Try settings, and judge the winner on rows that chose nothing.

    Every trial is an ordinary run; the first one is the config as it is. The smallest adapter wins among those that
    cannot be told from the best. The same command resumes an interrupted sweep.
    """
    given = {"model.base_model": model, "output.name": name, "output.folder": output}
    config, own = api.sweep_settings(source, settings, given)
    own |= {key: value for key, value in (("method", method), ("trials", trials)) if value is not None}
    tried = own.pop("over", {}) | api.over_of(over)
    reporter = render.progress.reporter()
    found = api.sweep(config, tried, settings=own, confirm=confirm, fresh=fresh, reporter=reporter)
    return Output(found.to_json(), render.sweep.sweep_text(found, render.terminal.width()))
