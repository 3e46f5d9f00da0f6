"""Arguments and options that several verbs share, and the headings of the help."""

from __future__ import annotations

from typing import Annotated

import typer

TRAIN, USE, PREPARE = "Train", "Use a run", "Prepare"
"""Headings that verbs stand under."""
_WHAT, _RUN, _COST = "What to train", "The run", "Costs"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else there.")]
RunName = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="Name or folder of a run. [default: the newest]", show_default=False),
]
ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", show_default=False,
        help="A run, RUN@STEP, a library adapter NAME:TAG, an adapter or model folder, or a hub id. [default: the newest run]",
    ),
]  # fmt: skip
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", help="A run, RUN@STEP, or a library adapter NAME:TAG. [default: the newest run]"
    ),
]
Folder = Annotated[str, typer.Option("--output", metavar="FOLDER", help="Folder that holds the runs.")]
Library = Annotated[
    str | None,
    typer.Option(
        "--library", metavar="DIR", help="The library. [default: $INLAY_LIBRARY, else library beside results]"
    ),
]
NoAdapter = Annotated[bool, typer.Option("--base", help="Use the base without the adapter.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="FILE", help="Measure on these rows. [default: the run's held-out rows]")
]
Metrics = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="A,B",
        help="Metrics to compute; FILE.py:FUNCTION is one of your own. [default: those that suit the references]",
        show_default=False,
    ),
]
Sampling = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A generation setting, e.g. temperature=0. May be repeated."),
]
Measuring = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an eval setting of the run, e.g. eval.max_rows=50; with --data also data.format and "
        "data.columns. May be repeated.",
    ),
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="DATA|CONFIG",
        help="A data file (.jsonl .json .csv .tsv .parquet .arrow .xlsx .txt, also compressed), a folder or pattern of "
        "them, a hub dataset, or a .yaml config.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="The base to fine-tune: a local folder, a hub id, or builtin:nano.", rich_help_panel=_WHAT
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Start from the settings of a preset; inlay config show lists them.", rich_help_panel=_WHAT
    ),
]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", rich_help_panel=_WHAT,
        help="Any setting, e.g. adapter.rank=8; overrides config and preset. May be repeated. inlay config explain "
        "lists all.",
    ),
]  # fmt: skip
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the run. [default: data and model with a number]", rich_help_panel=_RUN),
]
Results = Annotated[
    str | None,
    typer.Option(
        "--output", metavar="FOLDER", help="Folder that holds the runs. [default: results]", rich_help_panel=_RUN
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Move an earlier run of that name aside and start anew.", rich_help_panel=_RUN),
]
Extend = Annotated[
    str | None,
    typer.Option(
        "--extend", metavar="LENGTH", rich_help_panel=_RUN,
        help="Continue an earlier run to this total length: steps (600) or epochs (5epochs).",
    ),
]  # fmt: skip

Price = Annotated[
    float | None,
    typer.Option("--cost", metavar="PRICE", help="Price of an hour of this machine.", rich_help_panel=_COST),
]
Watts = Annotated[
    float | None,
    typer.Option(
        metavar="WATTS", help="Power of this machine while it computes. [assumed by device]", rich_help_panel=_COST
    ),
]
Utilisation = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Share of the paid time in which it serves. [assumed: 0.5]", rich_help_panel=_COST
    ),
]


def names_in(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
