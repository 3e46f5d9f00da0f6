"""advise: fine-tune, retrieve, or both."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import verb
from inlay.cli.options import Folder, Json, Price, Utilisation, Watts
from inlay.cli.outcome import Output
from inlay.errors import UserError

PANEL = "Prepare"
_EPILOG = """\b
Examples:
  inlay advise data.jsonl --quick                        (from the rows alone)
  inlay advise data.jsonl --model builtin:nano --max-rows 50
  inlay advise data.jsonl --model ./llama --documents handbook --cost 1.20
  inlay advise --run data-llama-1                        (an adapter that is there)"""

_TERMS = "What every arm gets"


def add_to(app: typer.Typer) -> None:
    verb(app, PANEL, epilog=_EPILOG)(advise)


def advise(
    source: Annotated[
        str | None,
        typer.Argument(metavar="DATA|CONFIG", help="As in train; not needed with --run.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="As in train.")] = None,
    documents: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Retrieve from the .md, .rst and .txt files here, not from training rows."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Take the adapter of this run instead of training one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the rule of thumb: no model, no training.")] = False,
    max_rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many held-out rows.")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="As in train.")] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, as in train; with --run those of eval. May be repeated."
        ),
    ] = [],  # noqa: B006
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest prompt, for every arm.", rich_help_panel=_TERMS)
    ] = 1024,
    passages: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most rows or passages in a prompt.", rich_help_panel=_TERMS)
    ] = 4,
    requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests over which training pays off.", rich_help_panel=_TERMS)
    ] = 100_000,
    cost: Price = None,
    watts: Watts = None,
    utilisation: Utilisation = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Fine-tune, retrieve, or both? Measures the ways on the same rows with one budget and recommends one.

    Base, base with examples, base with retrieved passages, adapter, and adapter with passages: quality with intervals,
    latency, tokens and cost of each. Trains the adapter unless --run names one.
    """
    from inlay import api
    from inlay.cli import advice_view, progress, view

    given = {
        "model.base_model": model,
        "eval.max_rows": max_rows,
        "output.folder": output,
    }
    if run is not None and (model or preset):
        raise UserError("--run: base and settings are those of the run; leave --model and --preset out.")
    config = None
    if source is not None:
        config = api.config_of(source, () if run else settings, preset, given, partial=quick or run is not None)
    found = api.advise(
        config, run=run, settings=settings if run else (), documents=documents, quick=quick, max_rows=max_rows, prompt_tokens=prompt_tokens,
        passages=passages, requests=requests, cost=cost, watts=watts, utilisation=utilisation,
        reporter=progress.reporter(), folder=output,
    )  # fmt: skip
    return Output(found.to_json(), advice_view.advice_text(found, view.width()))
