"""inlay ab: show, start, stop."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import USE, Folder, Json, Library
from inlay.cli.render.outcome import Output
from inlay.errors import UserError

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="An alias that a server has had.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    tests = group("Tests on live traffic: which arm of an alias gives better answers, by the scores of its users.")
    verb(tests, ["inlay ab show", "inlay ab show help"])(show)
    verb(tests, ["inlay ab start help", "inlay ab start help support:3=80 support:4=20"])(start)
    verb(tests, ["inlay ab stop help", "inlay ab stop help --keep support:4"])(stop)
    app.add_typer(tests, name="ab", rich_help_panel=USE)


def show(
    alias: Annotated[
        str | None, typer.Argument(metavar="ALIAS", help="One alias. [default: all]", show_default=False)
    ] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Show counts, intervals and outcome of a test, and what the outcome assumes. Looking often does no harm."""
    reports = api.show_tests(alias, library=library, folder=output)
    return Output([one.to_json() for one in reports], render.ab.reports_text(reports))


def start(
    alias: Alias,
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARM=PERCENT …", help="Shares of the arms. Of a running test: the new ones.", show_default=False
        ),
    ] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Begin the test of an alias again, with nothing counted yet; or change the shares of a running test, which goes on."""
    report = api.start_test(alias, _weights(weights or []), library=library, folder=output)
    return Output(report.to_json(), render.ab.report_text(report))


def stop(
    alias: Alias,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="ARM", help="Give this arm to all users. [default: the shares stay]")
    ] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """End the test of an alias. Its figures stay."""
    report = api.stop_test(alias, keep=keep, library=library, folder=output)
    return Output(report.to_json(), render.ab.report_text(report))


def _weights(texts: list[str]) -> dict[str, float] | None:
    """Percentages by arm. Raises: UserError for what is none."""
    found = {}
    for text in texts:
        arm, sign, percent = text.rpartition("=")
        try:
            found[arm] = float(percent.removesuffix("%"))
        except ValueError:
            sign = ""
        if not sign or not arm:
            raise UserError(f"{text!r}: is no share of an arm. Write ARM=PERCENT, for example support:4=20.")
    return found or None
