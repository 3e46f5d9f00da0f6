"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else there.")]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run's name or folder; the one trained last if left out.", show_default=False),
]
RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN", help="A run's name or folder; the one trained last if left out."),
]
Folder = Annotated[str, typer.Option("--output", metavar="FOLDER", help="Folder that holds the runs.")]
NoAdapter = Annotated[bool, typer.Option("--base", help="Take the base without the adapter.")]
Sampling = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A generation setting, e.g. temperature=0. May be repeated."),
]
Measuring = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of eval over the run's, e.g. eval.max_rows=50 or eval.batch_size=4; with --data also data.format "
        "and data.columns. May be repeated.",
    ),
]
_COST = "What it costs"
Price = Annotated[
    float | None,
    typer.Option("--cost", metavar="PRICE", help="Price of an hour of this machine.", rich_help_panel=_COST),
]
Watts = Annotated[
    float | None,
    typer.Option(metavar="WATTS", help="What it draws while it computes. [assumed by device]", rich_help_panel=_COST),
]
Utilisation = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Share of the paid time in which it serves. [assumed: 0.5]", rich_help_panel=_COST
    ),
]
