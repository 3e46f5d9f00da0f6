"""Text from the command line, a pipe or a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from inlay.errors import DataError, UserError


def prompt_text(prompt: str | None, stdin: TextIO) -> str:
    """The prompt that was typed; `-`, or none with a pipe behind stdin, reads it from there. Raises: UserError."""
    if prompt is None and stdin.isatty():
        raise UserError('generate: no prompt. Give one (inlay generate "…"), or pipe it in.')
    if prompt is None or prompt == "-":
        with decoded():
            prompt = utf8(stdin.read()).removesuffix("\n")
    if not prompt.strip():
        raise UserError("generate: the prompt is empty. Say what to ask.")
    return prompt


@contextlib.contextmanager
def decoded() -> Iterator[None]:
    """Raises: DataError where stdin holds bytes that are not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: not UTF-8 text (byte {error.start}). Convert it: iconv -f latin1 -t utf-8.") from None


def utf8(text: str) -> str:
    """The text, which in locale C may hold bytes that Python could not decode. Raises: UnicodeDecodeError for those."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8")
