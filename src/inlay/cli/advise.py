"""inlay advise."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import PREPARE, Folder, Json, Price, Utilisation, Watts
from inlay.cli.render.outcome import Output
from inlay.errors import UserError

_EXAMPLES = (
    "inlay advise data.jsonl --quick                        (from the rows alone)",
    "inlay advise data.jsonl --model builtin:nano --set eval.max_rows=50",
    "inlay advise data.jsonl --model ./llama --documents handbook --cost 1.20",
    "inlay advise --run data-llama-1 --set advise.passages=2",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=PREPARE)(advise)


def advise(
    source: Annotated[
        str | None,
        typer.Argument(metavar="DATA|CONFIG", help="As in train; not needed with --run.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="The base, as in train.")] = None,
    documents: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Retrieve from the .md, .rst and .txt files here, not from training rows."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Use the adapter of this run instead of training one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the rule of thumb: no model, no training.")] = False,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, as in train; with --run those of eval. Also advise.prompt_tokens, advise.passages and "
            "advise.requests. May be repeated.",
        ),
    ] = [],  # noqa: B006
    cost: Price = None,
    watts: Watts = None,
    utilisation: Utilisation = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Fine-tune, retrieve, or both? Measures these on the same rows with one budget and recommends one.

    Base, base with examples, base with retrieved passages, adapter, and adapter with passages: quality with confidence
    intervals, latency, tokens and cost of each. Trains the adapter unless --run names one.
    """
    terms, others = api.advise_settings(settings)
    if run is not None and model:
        raise UserError("--run: base and settings are those of the run; leave --model out.")
    config = None
    if source is not None:
        given = {"model.base_model": model, "output.folder": output}
        config = api.config_of(source, () if run else others, None, given, partial=quick or run is not None)
    found = api.advise(
        config,
        run=run,
        settings=others if run else (),
        documents=documents,
        quick=quick,
        prompt_tokens=terms.prompt_tokens,
        passages=terms.passages,
        requests=terms.requests,
        cost=cost,
        watts=watts,
        utilisation=utilisation,
        reporter=render.progress.reporter(),
        folder=output,
    )
    return Output(found.to_json(), render.advice.advice_text(found, render.terminal.width()))
