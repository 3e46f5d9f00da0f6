"""inlay chat."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from inlay import api
from inlay.cli.help import verb
from inlay.cli.options import USE, Folder, Json, NoAdapter, Sampling
from inlay.cli.render.outcome import Output
from inlay.cli.stdin import decoded, utf8
from inlay.errors import DataError

if TYPE_CHECKING:
    from inlay.api import Loaded
    from inlay.config.sections.base import Assignments


ChatModel = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", show_default=False,
        help="A run, RUN@STEP, or a library adapter NAME:TAG. [default: the newest run]",
    ),
]  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, ["inlay chat news", "inlay chat support:prod --set temperature=0"], panel=USE)(chat)


def chat(
    model: ChatModel = None,
    base: NoAdapter = False,
    settings: Sampling = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Chat with a run or a library adapter. /reset clears the conversation, Ctrl+C cuts an answer short, /exit or Ctrl+D ends.

    On a pipe every line of stdin is a prompt and every answer goes to stdout. --json prints the conversation at its end
    as a list of {"role", "content"}.
    """
    sampling = api.sampling_of(settings)
    return Output(converse(api.load(model, adapter=not base, folder=output), sampling, quiet=as_json))


def converse(loaded: Loaded, sampling: Assignments, *, quiet: bool) -> list[dict[str, str]]:
    """The messages since the last /reset, when the user has ended the conversation. `quiet` writes nothing."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not quiet
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- arrow keys and history in input()
        sys.stdout.write(f"{loaded.name} is ready. /reset clears the conversation, /exit or Ctrl+D ends.\n")
    messages: list[dict[str, str]] = []
    while (text := _next_turn(at_terminal)) is not None:
        if text == "/reset":
            messages = []
            if at_terminal:
                sys.stdout.write("(cleared)\n")
        elif text.startswith("/") and at_terminal:
            sys.stdout.write("(commands are /reset and /exit)\n")
        elif text:
            _answer(loaded, messages, text, sampling, at_terminal, quiet)
    return messages


def _next_turn(at_terminal: bool) -> str | None:
    """The next line without its ends; None at the end of the conversation."""
    try:
        with decoded():
            text = utf8(input("you: " if at_terminal else "")).strip()
    except EOFError:
        if at_terminal:
            sys.stdout.write("\n")
        return None
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        sys.stdout.write("\n")
        return None
    return None if text == "/exit" else text


def _answer(
    loaded: Loaded, messages: list[dict[str, str]], text: str, sampling: Assignments, at_terminal: bool, quiet: bool
) -> None:
    """Adds the prompt and its answer to the messages, writing the answer as it comes."""
    messages.append({"role": "user", "content": text})
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()

    if at_terminal:
        sys.stdout.write(f"{loaded.name}: ")
        sys.stdout.flush()
    try:
        answer = loaded.stream(messages, show, **sampling)
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        answer = "".join(pieces).strip()
    except DataError as error:  # the conversation fills the context
        if not at_terminal:
            raise
        messages.pop()
        sys.stdout.write(f"\n({error} /reset starts anew.)\n")
        return
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    messages.append({"role": "assistant", "content": answer})
