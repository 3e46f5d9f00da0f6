"""data: look at files, split them, and the example tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Json
from inlay.cli.outcome import Output
from inlay.errors import UserError

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="Data files (.jsonl .json .csv .tsv .parquet .arrow .xlsx .txt, also compressed), folders or patterns of "
        "them, or one .yaml config.",
        show_default=False,
    ),
]  # fmt: skip
EvalSet = Annotated[str | None, typer.Option("--eval", metavar="FILE", help="Held-out rows, checked for leakage.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Base whose tokens, chat template and context count, e.g. builtin:nano."),
]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML file.")]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. data.columns.question=ask. May be repeated."),
]
Price = Annotated[
    float | None, typer.Option(metavar="AMOUNT", min=0, help="Price of a million training tokens, to reckon with.")
]


def add_to(app: typer.Typer) -> None:
    data = group("Look at data and make some.")
    for function in (check, show, stats, split, make):
        verb(data)(function)
    app.add_typer(data, name="data", rich_help_panel="Prepare")


def check(
    files: Files,
    held_out: EvalSet = None,
    model: Model = None,
    html: Html = None,
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Look for everything in the rows that would spoil training: damage, duplicates, leakage, secrets.

    Every finding has a severity, its places, and a fix. The exit code is 3 when there is an error among them.
    """
    from inlay import api
    from inlay.cli import check_view, progress, view

    if html is not None and (not Path(html).name or Path(html).is_dir()):
        raise UserError(f"--html {html!r}: names no file. Give the name of one, such as report.html.")
    report = api.check_data(*files, eval=held_out, model=model, settings=settings, reporter=progress.reporter())
    if html is not None:
        api.write_data_page(report, html)
    return Output(report.to_json(), check_view.report_text(report, view.width()), 3 if report.has_errors else 0)


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

    What is trained is coloured; without a terminal it stands between ⟦ and ⟧.
    """
    from inlay import api
    from inlay.cli import row_view

    shown = api.show_data(file, model=model, row=row, settings=settings)
    if as_json:
        return Output(shown.to_json())
    return Output(None, row_view.row_text(shown, row_view.is_coloured()))  # a long row is millions of values


def stats(
    files: Files,
    model: Model = None,
    price: Price = None,
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Rows, roles, lengths, tokens and what training on them costs; looks for nothing that is wrong."""
    from inlay import api
    from inlay.cli import check_view, progress, view

    report, cost = api.data_stats(*files, model=model, price=price, settings=settings, reporter=progress.reporter())
    value = report.to_json() | {"cost": cost}
    return Output(value, check_view.stats_text(report, cost, view.width()), 3 if report.has_errors else 0)


def split(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to split.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Folder to write into.")] = ".",
    settings: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> Output:
    """Write the two parts that train would make of a file: rows to train on, and rows to hold out.

    Rows with the same question stay on one side. data.eval_fraction is the share that is held out.
    """
    from inlay import api

    made = api.split_data(file, to=to, settings=settings)
    train, held_out = made["train"], made["heldout"]
    text = f"wrote {train['path']} ({train['rows']:,} rows) and {held_out['path']} ({held_out['rows']:,} rows)\n"
    return Output(made, text + f"Next: inlay train {train['path']} --set data.eval={held_out['path']} --model MODEL")


def make(
    task: Annotated[str, typer.Argument(metavar="TASK", help="An example task, such as customer_support.")],
    to: Annotated[str, typer.Option(metavar="FOLDER", help="Folder to write into.")] = ".",
    as_json: Json = False,
) -> Output:
    """Write the training and held-out rows of an example task as files."""
    from inlay import api

    made = api.make_data(task, to=to)
    train, heldout = made["train"], made["heldout"]
    text = f"wrote {train['path']} ({train['rows']} rows) and {heldout['path']} ({heldout['rows']} rows)\n"
    next_step = f"Next: inlay train {train['path']} --set data.eval={heldout['path']} --model builtin:nano"
    return Output(made, text + next_step)
