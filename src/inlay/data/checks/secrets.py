"""Keys, tokens and personal data in the rows. Excerpts mask them."""

from __future__ import annotations

from typing import Final

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.patterns import PATTERNS, Pattern, matches
from inlay.data.checks.row import CheckedRow

_KEY: Final = (
    "Remove it from the rows and withdraw it where it was issued: the adapter would carry it to everyone who has the "
    "file. If it is made up, write it so that nobody takes it for real, with EXAMPLE in it."
)
_PERSONAL: Final = "If it is a real person's, replace it (name@example.com); if it belongs to the task, leave it."


def kind_of(pattern: Pattern) -> Kind:
    """The kind of finding for a pattern."""
    name = pattern.name.replace(" ", "-").replace("(", "").replace(")", "").lower()
    is_key = pattern.kind == "key"
    title = f"rows with what looks like {'an' if pattern.name[0] in 'AEe' else 'a'} {pattern.name}"
    return Kind(name, "error" if is_key else "warning", title, _KEY if is_key else _PERSONAL)


KINDS: Final = {pattern: kind_of(pattern) for pattern in PATTERNS}


class Secrets:
    """A row counts once for each kind."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        found: dict[Pattern, int] = {}
        for pattern, at, _ in matches(row.text):
            found.setdefault(pattern, at)
        for pattern, at in found.items():
            self._tally.add(KINDS[pattern], row.source, row.text, at)

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        return self._tally.findings()
