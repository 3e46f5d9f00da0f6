"""The exception types. Each carries the exit code that the command line ends with.

Message form: ``where: what is wrong (got X). What is allowed or nearest. What to do.``
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

ONLY_ASCII: Final = "this environment lets Python read only ASCII. Set LC_ALL=C.UTF-8, unset PYTHONUTF8."
"""What is wrong where a name is not ASCII and the system's encoding is."""


class InlayError(Exception):
    """A mistake or failure that we can explain in one line. Never shown as a traceback."""

    exit_code = 1


class UserError(InlayError):
    """The user's input is at fault."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, out of range, or cannot take effect."""


class DataError(UserError):
    """A data file or a row of it cannot be used as it is."""


class DataCheckError(InlayError):
    """The data is readable but would not train as intended."""

    exit_code = 3


class ModelError(UserError):
    """The base model cannot be found, read, or used for this task."""


class AdapterError(UserError):
    """The adapter cannot be built on, or does not belong to, this base."""


class RunError(UserError):
    """A run folder is missing, finished, or in use."""


class TrainingError(InlayError):
    """Training began and cannot go on; `step` is the one at fault, where there is one."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class StorageError(InlayError):
    """The disk refused: full, read-only, or not ours."""


class Interrupted(InlayError):
    """A signal stopped the run; a resumable checkpoint is on the disk. Exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The allowed name closest to `name`, or None when nothing is close. One in other letter case is the closest."""
    names = list(allowed)
    close = [other for other in names if other.casefold() == name.casefold()]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return close[0] if close else None


def nearest_of(name: str, allowed: Iterable[str]) -> str:
    """` Did you mean A, B or C?` with the at most three allowed names closest to `name`; empty when none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=3)
    return f" Did you mean {' or '.join([', '.join(close[:-1])] * bool(close[:-1]) + close[-1:])}?" if close else ""


def unknown_name(kind: str, got: str, allowed: Iterable[str]) -> str:
    """One line for a name that is not in a closed set: the name, the nearest, and the set where it is short."""
    names = sorted(allowed)
    guess = nearest(got, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    known = f" Known: {', '.join(names)}." if len(names) <= 20 or not guess else ""
    return f"unknown {kind} {got!r}.{hint}{known}"


def count_shown(count: int, noun: str, plural: str = "") -> str:
    """`1 row`, `1,234 rows`; `plural` where it is not the noun with an s, as in `1 row is`, `2 rows are`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
