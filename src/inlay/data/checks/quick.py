"""The checks that `train` runs first: on all rows of an ordinary set, on an even sample of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from inlay.data.checks import CHECKS, EXPENSIVE
from inlay.data.checks.findings import Finding, by_gravity
from inlay.data.checks.row import CheckedRow
from inlay.data.types import Example
from inlay.errors import DataCheckError

MOST_ROWS: Final = 20_000
"""Rows looked at on each side; about a second for rows of 500 characters."""
MOST_CHARACTERS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class QuickCheck:
    """What was found before training."""

    findings: tuple[Finding, ...]
    seen: int
    rows: int

    def told(self) -> str:
        """One line: how much was looked at, and what was found."""
        looked = (
            f"{self.seen:,} rows" if self.seen == self.rows else f"{self.seen:,} of {self.rows:,} rows, evenly drawn"
        )
        found = ", ".join(f"{f.title}: {f.count:,}" for f in self.findings if f.severity != "note")
        return f"{looked}, without near duplicates; {found or 'nothing was found'}"

    def refuse_errors(self, file: str) -> None:
        """Raises: DataCheckError when an error is among the findings."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if not errors:
            return
        lines = [f"  {e.title}: {e.count:,}, first at {e.places[0].where}. {e.fix}" for e in errors]
        raise DataCheckError(
            f"{file}: the rows can be read, but training on them would not do what is meant:\n"
            + "\n".join(lines)
            + "\n"
            f"See all: inlay data check {file}. To train all the same: --set data.check=warn."
        )


def quick_check(train: Sequence[Example], held_out: Sequence[Example]) -> QuickCheck:
    """The findings of the cheap checks. Which rows are looked at depends on the rows only."""
    checks = [make() for name, make in CHECKS.items() if name not in EXPENSIVE]
    number = 0
    for side, examples in enumerate((train, held_out)):
        for n in _evenly(examples):
            row = CheckedRow(examples[n], number, bool(side))
            for check in checks:
                check.see(row)
            number += 1
    findings = by_gravity([finding for check in checks for finding in check.findings()])
    return QuickCheck(tuple(findings), number, len(train) + len(held_out))


def _evenly(examples: Sequence[Example]) -> range:
    """Positions of as many rows as may be looked at, equally far apart."""
    count = len(examples)
    some = [examples[n] for n in range(0, count, max(1, count // 100))]
    mean = sum(len(m.content) for e in some for m in e.messages) / max(1, len(some))
    most = max(1, min(MOST_ROWS, int(MOST_CHARACTERS / max(1, mean))))
    return range(0, count, max(1, -(-count // most)))
