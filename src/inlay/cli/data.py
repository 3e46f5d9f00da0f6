"""inlay data: check, show, stats, split, make."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import PREPARE, Json
from inlay.cli.render.outcome import Output
from inlay.errors import UserError, count_shown
from inlay.typed_json import JsonObject

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="Data files (.jsonl .json .csv .tsv .parquet .arrow .xlsx .txt, also compressed), folders or patterns of "
        "them, or one .yaml config.",
        show_default=False,
    ),
]  # fmt: skip
EvalSet = Annotated[str | None, typer.Option("--eval", metavar="FILE", help="Held-out file, checked for leakage.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Count tokens and apply the chat template of this base, e.g. builtin:nano."),
]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML file.")]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. data.columns.question=ask. May be repeated."),
]
Price = Annotated[float | None, typer.Option(metavar="AMOUNT", min=0, help="Price of a million training tokens.")]


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    data = group("Data files: check, show, count and split them; write the rows of an example task.")
    verb(data, ["inlay data check train.jsonl --eval heldout.jsonl --html report.html"])(check)
    verb(data, ["inlay data show data.jsonl --model builtin:nano --row 7"])(show)
    verb(data, ["inlay data stats data.jsonl --model builtin:nano --price 3"])(stats)
    verb(data, ["inlay data split data.jsonl --to parts --set data.eval_fraction=0.1"])(split)
    verb(data, ["inlay data make customer_support --to rows"])(make)
    app.add_typer(data, name="data", rich_help_panel=PREPARE)


def check(
    files: Files,
    held_out: EvalSet = None,
    model: Model = None,
    html: Html = None,
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Check the rows for anything that would spoil training: damage, duplicates, leakage, secrets.

    Every finding has a severity, its places, and a fix. The exit code is 3 when one of them is an error.
    """
    if html is not None and (not Path(html).name or Path(html).is_dir()):
        raise UserError(f"--html {html!r}: names no file. Give the name of one, such as report.html.")
    report = api.check_data(*files, eval=held_out, model=model, settings=settings, reporter=render.progress.reporter())
    if html is not None:
        api.write_data_page(report, html)
    return Output(
        report.to_json(), render.data_check.report_text(report, render.terminal.width()), 3 if report.has_errors else 0
    )


def show(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The data file, or the .yaml config of a run.", show_default=False)
    ],
    model: Model = None,
    row: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Line of the row, as messages name it; of a mixture FILE:N. [default: the first]"
        ),
    ] = None,
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Show a row exactly as training sees it: tokens, ids, labels, weights, and the step and micro batch it lands in.

    Trained tokens are coloured; without a terminal they stand between ⟦ and ⟧.
    """
    shown = api.show_data(file, model=model, row=row, settings=settings)
    if as_json:
        return Output(shown.to_json())
    return Output(
        None, render.data_row.row_text(shown, render.terminal.is_coloured())
    )  # a long row is millions of values


def stats(
    files: Files,
    model: Model = None,
    price: Price = None,
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Count rows, roles, lengths and tokens, and the compute of an epoch; runs no checks."""
    report, cost = api.data_stats(
        *files, model=model, price=price, settings=settings, reporter=render.progress.reporter()
    )
    value = report.to_json() | {"cost": cost}
    return Output(
        value, render.data_check.stats_text(report, cost, render.terminal.width()), 3 if report.has_errors else 0
    )


def split(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to split.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Folder to write into.")] = ".",
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Write the split that train would make of a file: training rows and held-out rows.

    Rows with the same prompt stay on one side. data.eval_fraction sets the fraction that is held out.
    """
    made = api.split_data(file, to=to, settings=settings)
    train, held_out = made["train"], made["heldout"]
    text = f"wrote {_file_text(train)} and {_file_text(held_out)}\n"
    return Output(made, text + _next(train, held_out, "MODEL"))


def make(
    task: Annotated[str, typer.Argument(metavar="TASK", help="An example task, such as customer_support.")],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Folder to write into.")] = ".",
    as_json: Json = False,
) -> Output:
    """Write the training and held-out rows of an example task as files."""
    made = api.make_data(task, to=to)
    train, heldout = made["train"], made["heldout"]
    text = f"wrote {_file_text(train)} and {_file_text(heldout)}\n"
    return Output(made, text + _next(train, heldout, "builtin:nano"))


def _file_text(made: JsonObject) -> str:
    """A written file and the number of its rows."""
    return f"{made['path']} ({count_shown(made['rows'], 'row')})"


def _next(train: JsonObject, heldout: JsonObject, model: str) -> str:
    """The command that trains on the written files, safe to paste."""
    data, judged = shlex.quote(train["path"]), shlex.quote(f"data.eval={heldout['path']}")
    return f"Next: inlay train {data} --set {judged} --model {model}"
