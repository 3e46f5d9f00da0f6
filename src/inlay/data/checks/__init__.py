"""Checks of rows that can be read and would not train as intended.

A check sees every row once, training rows before held-out ones, and then gives its findings. To add one: a class with
`see` and `findings`, and a line in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from inlay.data.checks.answers import Answers
from inlay.data.checks.findings import SEVERITIES, Finding, Kind, Place, Severity
from inlay.data.checks.markup import Markup
from inlay.data.checks.near import NearDuplicates
from inlay.data.checks.repeats import Repeats
from inlay.data.checks.row import CheckedRow
from inlay.data.checks.secrets import Secrets
from inlay.data.checks.text import TextDamage
from inlay.data.checks.unread import Unread


class Check(Protocol):
    """One concern, looked at row by row in memory that does not hold the rows."""

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        ...


CHECKS: Final[dict[str, Callable[[], Check]]] = {
    "repeats": Repeats,
    "text": TextDamage,
    "answers": Answers,
    "markup": Markup,
    "secrets": Secrets,
    "unread": Unread,
    "near": NearDuplicates,
}

EXPENSIVE: Final = frozenset({"near"})
"""Checks that `train` leaves to `inlay data check`."""

__all__ = ["CHECKS", "EXPENSIVE", "SEVERITIES", "Check", "CheckedRow", "Finding", "Kind", "Place", "Severity"]
