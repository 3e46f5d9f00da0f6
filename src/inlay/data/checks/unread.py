"""Fields of rows that have no effect."""

from __future__ import annotations

from typing import Final

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow
from inlay.data.reading.row_fields import NOTES, cost

UNREAD: Final = Kind(
    "unread", "note", "rows with fields that have no effect, or turns that are not trained",
    "Leave it if the answers do not depend on it; otherwise write it into a turn.",
)  # fmt: skip


class Unread:
    """Fields that the format leaves out, notes such as `id` aside, and greetings."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if names := [name for name in row.example.unread if name not in NOTES]:
            self._tally.add(UNREAD, row.source, "; ".join(f"{name}: {cost(name)}" for name in names))

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        return self._tally.findings()
