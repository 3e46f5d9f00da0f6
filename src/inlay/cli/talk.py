"""A prompt from the command line or a pipe, and the dialogue of `inlay chat`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from inlay.errors import DataError, UserError

if TYPE_CHECKING:
    from inlay.api import Loaded


def prompt_text(prompt: str | None, stdin: TextIO) -> str:
    """The prompt that was typed; `-`, or none with a pipe behind stdin, reads it from there. Raises: UserError."""
    if prompt is None and stdin.isatty():
        raise UserError('generate: no prompt. Give one (inlay generate "…"), or pipe it in.')
    if prompt is None or prompt == "-":
        with _as_text():
            prompt = _whole(stdin.read()).removesuffix("\n")
    if not prompt.strip():
        raise UserError("generate: the prompt is empty. Say what to ask.")
    return prompt


@contextlib.contextmanager
def _as_text() -> Iterator[None]:
    """Raises: DataError where stdin holds bytes that are not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: not UTF-8 text (byte {error.start}). Convert it: iconv -f latin1 -t utf-8.") from None


def _whole(text: str) -> str:
    """The text, which in locale C may hold bytes that Python could not decode. Raises: UnicodeDecodeError for those."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8")


def talk(loaded: Loaded, sampling: dict[str, Any], *, quiet: bool) -> list[dict[str, str]]:
    """The dialogue that was held since the last /reset. `quiet` writes nothing."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not quiet
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- arrow keys and history in input()
        sys.stdout.write(f"{loaded.run.name} listens. /reset forgets the dialogue, /exit or Ctrl+D ends.\n")
    dialogue: list[dict[str, str]] = []
    while (typed := _next_turn(at_terminal)) is not None:
        if typed == "/reset":
            dialogue = []
            if at_terminal:
                sys.stdout.write("(forgotten)\n")
        elif typed.startswith("/") and at_terminal:
            sys.stdout.write("(commands are /reset and /exit)\n")
        elif typed:
            _answer(loaded, dialogue, typed, sampling, at_terminal, quiet)
    return dialogue


def _next_turn(at_terminal: bool) -> str | None:
    """The next line without its ends; None when the dialogue is over."""
    try:
        with _as_text():
            typed = _whole(input("you: " if at_terminal else "")).strip()
    except EOFError:
        if at_terminal:
            sys.stdout.write("\n")
        return None
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        sys.stdout.write("\n")
        return None
    return None if typed == "/exit" else typed


def _answer(
    loaded: Loaded, dialogue: list[dict[str, str]], typed: str, sampling: dict[str, Any], at_terminal: bool, quiet: bool
) -> None:
    """Adds the turn and its answer to the dialogue, writing the answer as it comes."""
    dialogue.append({"role": "user", "content": typed})
    pieces: list[str] = []

    def hear(text: str) -> None:
        pieces.append(text)
        if not quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    if at_terminal:
        sys.stdout.write(f"{loaded.run.name}: ")
        sys.stdout.flush()
    try:
        answer = loaded.stream(dialogue, hear, **sampling)
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        answer = "".join(pieces).strip()
    except DataError as error:  # the dialogue fills the context
        if not at_terminal:
            raise
        dialogue.pop()
        sys.stdout.write(f"\n({error} /reset starts anew.)\n")
        return
    if not quiet:
        sys.stdout.write("\n")
        sys.stdout.flush()
    dialogue.append({"role": "assistant", "content": answer})
