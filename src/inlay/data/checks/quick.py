"""The checks that `train` runs first: on all rows of an ordinary set, on an even sample of a large one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inlay.data.checks import CHECKS, EXPENSIVE
from inlay.data.checks.findings import Finding, by_gravity
from inlay.data.checks.row import CheckedRow
from inlay.data.checks.unread import UNREAD
from inlay.data.types import Example
from inlay.errors import DataCheckError, count_shown
from inlay.typed_json import JsonObject

MOST_ROWS: Final = 20_000
"""Rows looked at on each side; about a second for rows of 500 characters."""
MOST_CHARACTERS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class QuickCheck:
    """The findings of the check before training."""

    findings: tuple[Finding, ...]
    seen: int
    rows: int

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        return {"findings": [f.to_json() for f in self.findings], "seen": self.seen, "rows": self.rows}

    @classmethod
    def from_json(cls, value: JsonObject) -> QuickCheck:
        """The value that `to_json` gave an object of."""
        return cls(tuple(Finding.from_json(f) for f in value["findings"]), value["seen"], value["rows"])

    def summary(self) -> str:
        """The number of rows checked and the findings, in a line."""
        looked = (
            count_shown(self.seen, "row")
            if self.seen == self.rows
            else f"{self.seen:,} of {self.rows:,} rows, evenly drawn"
        )
        shown = [f for f in self.findings if f.severity != "note" or f.kind == UNREAD.name]
        found = ", ".join(f"{f.title}: {f.count:,}" for f in shown)
        return f"{looked}, without near duplicates; {found or 'nothing was found'}"

    def refuse_errors(self, file: str) -> None:
        """Raises: DataCheckError when an error is among the findings."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if not errors:
            return
        lines = [f"  {e.title}: {e.count:,}, first at {e.places[0].where}. {e.fix}" for e in errors]
        raise DataCheckError(
            f"{file}: the data is readable but would not train as intended (`inlay data check {file}` lists why):\n"
            + "\n".join(lines)
            + "\nTo train all the same: --set data.check=warn."
        )


class EvenSample:
    """An even sample of rows that come one by one: all, or every second, every fourth, …, within a size."""

    def __init__(self) -> None:
        self.stride = 1
        self.seen = 0
        self.examples: list[Example] = []
        self._characters = 0

    def add(self, example: Example) -> None:
        """Takes the next row into the sample, or only counts it."""
        if self.seen % self.stride == 0:
            self.examples.append(example)
            self._characters += _size(example)
            while len(self.examples) > MOST_ROWS or (self._characters > MOST_CHARACTERS and len(self.examples) > 1):
                self.stride *= 2
                self.examples = self.examples[::2]
                self._characters = sum(map(_size, self.examples))
        self.seen += 1


def _size(example: Example) -> int:
    return sum([len(message.content) for message in example.messages])


def quick_check(train: Sequence[Example], held_out: Sequence[Example], rows: int) -> QuickCheck:
    """The findings of the cheap checks in these of all `rows`."""
    running = RunningCheck()
    for side, examples in enumerate((train, held_out)):
        for example in examples:
            running.see(example, bool(side))
    return running.found(rows)


class RunningCheck:
    """The cheap checks, row by row; training rows come before held-out ones."""

    def __init__(self) -> None:
        self._checks = [make() for name, make in CHECKS.items() if name not in EXPENSIVE]
        self._seen = 0

    def see(self, example: Example, held_out: bool) -> None:
        """Checks one row."""
        row = CheckedRow(example, self._seen, held_out)
        for check in self._checks:
            check.see(row)
        self._seen += 1

    def found(self, rows: int) -> QuickCheck:
        """The findings in the rows seen, out of `rows` in all."""
        findings = by_gravity([finding for check in self._checks for finding in check.findings()])
        return QuickCheck(tuple(findings), self._seen, rows)


def code_digest() -> str:
    """Hex digest of the code of all checks: with the same code they have the same findings."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
