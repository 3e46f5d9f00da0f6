"""inlay adapters: rank, shrink, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import Folder, Json, Library
from inlay.cli.render.outcome import Output
from inlay.errors import UserError

Adapter = Annotated[
    str, typer.Argument(metavar="REF", help="A library name, a run, RUN@STEP, or the folder of an adapter.")
]
Rows = Annotated[
    str | None,
    typer.Option("--rows", metavar="FILE", help="Rows of its task. [default: the held-out rows of its run]"),
]
Page = Annotated[str | None, typer.Option("--out", metavar="FILE", help="Also write an HTML page.")]


def add_to(adapters: typer.Typer) -> None:
    """Adds the verbs to the group."""
    verb(adapters, ["inlay adapters rank support", "inlay adapters rank support:3 --out ranks.html"])(rank)
    verb(adapters, _SHRINK_EXAMPLES)(shrink)
    verb(adapters, ["inlay adapters diff support:3 support:4", "inlay adapters diff a b --answers --out page.html"])(
        diff
    )


_SHRINK_EXAMPLES = (
    "inlay adapters shrink support:3 --name support-small",
    "inlay adapters shrink support --name s --rank 4 --rows rows.jsonl",
)


def page_path(out: str | None) -> Path | None:
    """The file of `--out`. Raises: UserError where that is none."""
    if out is not None and (not Path(out).name or Path(out).is_dir()):
        raise UserError(f"--out {out!r}: names no file. Give the name of one, such as page.html.")
    return None if out is None else Path(out)


def rank(
    ref: Adapter,
    rows: Rows = None,
    keep: Annotated[
        float, typer.Option("--keep", metavar="S", help="Share of the gain that a recommended rank keeps.")
    ] = 0.98,
    out: Page = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Show how much rank an adapter uses: singular values, and the held-out loss at half its rank, a quarter, down to 1."""
    found = api.rank_adapter(
        ref, rows=rows, keep=keep, page=page_path(out), reporter=render.progress.reporter(), library=library,
        folder=output,
    )  # fmt: skip
    return Output(found.to_json(), render.adapter_ranks.rank_text(found, ref, out))


def shrink(
    ref: Adapter,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its name in the library.", show_default=False)],
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="Size of this rank, shared out to where it keeps the most."),
    ] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", metavar="E", help="Size that keeps this share of each module's ‖ΔW‖².")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="S", help="The smallest that keeps this share of the gain. [default: 0.98]"),
    ] = None,
    rows: Rows = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Store a smaller form of an adapter: the smallest that keeps its gain on held-out rows, or one of a given size.

    Exit code 1, and nothing is written, where no lower rank keeps the gain.
    """
    found = api.shrink_adapter(
        ref, name, rank=rank, energy=energy, keep=keep, rows=rows, reporter=render.progress.reporter(), library=library,
        folder=output,
    )  # fmt: skip
    return Output(found.to_json(), render.adapter_ranks.shrunk_text(found, ref))


def diff(
    a: Adapter,
    b: Annotated[str, typer.Argument(metavar="REF", help="The other one.")],
    answers: Annotated[
        bool, typer.Option("--answers", help="Also compare both on held-out rows, as compare does.")
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows", metavar="FILE", help="Rows for --answers. [default: the held-out rows of the first run]"
        ),
    ] = None,
    out: Page = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Compare two adapters: facts and settings, weights by module, behaviour on golden prompts."""
    found = api.diff_adapters(
        a, b, answers=answers, rows=rows, page=page_path(out), reporter=render.progress.reporter(), library=library,
        folder=output,
    )  # fmt: skip
    return Output(found.to_json(), render.adapter_difference.difference_text(found, out, render.terminal.width()))
