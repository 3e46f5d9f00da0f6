"""The command line. Verbs are thin: each reads its options and calls one function of `inlay.api`."""

from __future__ import annotations

import os
import sys

import typer

from inlay.cli import ask, data, machine, stored, train
from inlay.errors import InlayError

app = typer.Typer(
    name="inlay",
    help="Fine-tune a frozen language model with a small low-rank adapter, and prove what it changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (train, ask, data, machine, stored):
    module.add_to(app)


def main() -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong input, 3 data check, 128 + signal."""
    try:
        app(standalone_mode=True)
    except InlayError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was being trained.\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
