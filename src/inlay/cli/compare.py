"""inlay compare."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import USE, Data, Folder, Json, Measuring, Metrics, Price, Utilisation, Watts, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay compare                     (the newest run against its base)",
    "inlay compare first second --set eval.max_rows=50",
    "inlay compare base news@120 news --data unseen.jsonl --metrics token_f1",
    "inlay compare news --set 'eval.prompts=[Where is my parcel?]'",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=USE)(compare)


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODELS",
            help="Runs, RUN@STEP, library adapters NAME:TAG, adapter or model folders, base, hub ids. The others are compared with the first; one "
            "alone with its base. [default: the newest run]",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    metrics: Metrics = "",
    settings: Measuring = [],  # noqa: B006
    python_tests: Annotated[
        str | None,
        typer.Option(
            "--python-tests",
            metavar="FILE",
            help='Run the Python in the answers against these tests: rows of {"question", "tests"}. It is code that a '
            "model wrote; it runs with limits, but with your rights.",
        ),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Then judge the answers on a local page that hides which model gave them.")
    ] = False,
    cost: Price = None,
    watts: Watts = None,
    utilisation: Utilisation = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Compare models on the same held-out rows: every metric with its confidence interval, and a verdict."""
    comparison = api.compare(
        *(models or ()),
        data=data,
        metrics=names_in(metrics),
        settings=settings,
        python_tests=python_tests,
        blind=blind,
        cost=cost,
        watts=watts,
        utilisation=utilisation,
        reporter=render.progress.reporter(),
        folder=output,
    )
    return Output(comparison.to_json(), render.comparison.comparisons_text(comparison, render.terminal.width()))
