"""The command line: one file per verb or group of verbs. A verb reads its options, calls `inlay.api`, returns an Output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from inlay._version import __version__
from inlay.cli import (
    ab,
    adapters,
    advise,
    bench,
    chat,
    checkpoints,
    compare,
    compare_methods,
    config,
    cross_validate,
    data,
    demo,
    doctor,
    generate,
    harness,
    init,
    plan,
    route,
    serve,
    sweep,
    train,
    verify,
)
from inlay.cli import eval as evaluate
from inlay.cli.help import WIDTH, Verbs
from inlay.cli.quiet import quiet_libraries
from inlay.cli.render.outcome import Output, finish
from inlay.errors import ONLY_ASCII, UserError

_EPILOG = """\b
Start: inlay demo
       inlay train data.jsonl --model Qwen/Qwen2.5-0.5B-Instruct
Exit codes: 0 done, 1 the run failed, 2 wrong input, 3 the data check failed,
            130 or 143 stopped by a signal with a checkpoint saved.
With --json an error is {"error": text, "exit_code": number} on stdout."""

app = typer.Typer(
    name="inlay",
    cls=Verbs,
    help="Fine-tune a frozen language model with a small low-rank adapter, and prove what it changed.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
for module in (
    train, sweep, compare_methods, cross_validate, demo, checkpoints,
    compare, evaluate, harness, generate, chat, serve, verify, adapters, ab, route, bench,
    doctor, plan, init, advise, data, config,
):  # fmt: skip
    module.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inlay {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
]


@app.callback()
def _top(version: Version = False) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong input, 3 data check, 128 + signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    quiet_libraries()
    if not words:
        words = ["--help"]
    as_json = "--json" in words[: words.index("--") if "--" in words else None]
    sys.exit(finish(lambda: _run(words), as_json))


def _run(words: list[str]) -> Any:
    broken = [word for word in words if not word.isprintable() and any("\udc80" <= c <= "\udcff" for c in word)]
    if broken:
        with contextlib.suppress(UnicodeDecodeError):
            shown = os.fsencode(broken[0]).decode("utf-8")
            raise UserError(f"{shown}: {ONLY_ASCII}")
        raise UserError(f"{broken[0]!a}: not UTF-8 text. Write it as UTF-8; rename a file with such a name.")
    result = app(args=words, prog_name="inlay", standalone_mode=False)
    return result if isinstance(result, (int, Output)) else None
