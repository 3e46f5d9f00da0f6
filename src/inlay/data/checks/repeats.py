"""Duplicates, questions with several answers, held-out rows that are also training rows.

Rows are compared up to case and white space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inlay.data.checks.findings import Finding, Kind, Severity, Tally
from inlay.data.checks.row import CheckedRow
from inlay.data.types import Source

DUPLICATE: Final = Kind(
    "duplicate", "warning", "duplicates of earlier rows",
    "Remove the copies: a row that is there k times counts k times.",
)  # fmt: skip
LABEL_CONFLICT: Final = Kind(
    "label-conflict", "warning", "rows with another answer to the question of an earlier row",
    "Decide which one is right: no model can learn both.",
)  # fmt: skip
SEVERAL_ANSWERS: Final = Kind(
    "several-answers", "note", "rows with another answer to the question of an earlier row",
    "Good where several answers are right; otherwise keep the best.",
)  # fmt: skip
LEAKED_ROW: Final = Kind(
    "leaked-row", "error", "held-out rows that are also training rows",
    "Remove them from one side: scores on them tell nothing about new rows.",
)  # fmt: skip
LEAKED_QUESTION: Final = Kind(
    "leaked-question", "warning", "held-out rows with the prompt of a training row",
    "Put rows with the same question on one side, as inlay data split does.",
)  # fmt: skip

_SHORT = 60  # characters of an answer that is shown beside the one it contradicts
_FEW: Final = 0.01  # the share of held-out rows up to which leaked ones are a warning


@dataclass(frozen=True, slots=True)
class _First:
    source: Source
    answer: int
    shown: str
    """The answer, where it is short."""


class Repeats:
    """Duplicates, conflicts and exact leakage; training rows must come before held-out ones."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._rows: tuple[dict[int, Source], dict[int, Source]] = ({}, {})
        self._asked: tuple[dict[int, _First], dict[int, _First]] = ({}, {})
        self._openings: dict[int, Source] = {}
        self._held_out = 0
        self._answers: set[int] = set()
        self._answered = 0
        self._answer_characters = 0

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if row.held_out:
            self._held_out += 1
            if first := self._rows[0].get(row.whole_key):
                self._tally.add(LEAKED_ROW, row.source, row.question, other=first)
            elif first := self._openings.get(row.opening_key):
                self._tally.add(LEAKED_QUESTION, row.source, row.question, other=first)
        else:
            self._openings.setdefault(row.opening_key, row.source)
        first = self._rows[row.held_out].setdefault(row.whole_key, row.source)
        if first is not row.source:
            self._tally.add(DUPLICATE, row.source, row.question, other=first)
        elif not row.is_document:
            self._compare_answer(row)

    def _compare_answer(self, row: CheckedRow) -> None:
        answer = hash(row.normal[-1])
        self._answers.add(answer)
        self._answered += 1
        self._answer_characters += len(row.answer)
        shown = row.answer if len(row.answer) <= _SHORT else ""
        first = self._asked[row.held_out].setdefault(row.prompt_key, _First(row.source, answer, shown))
        if first.answer != answer:
            differ = f"{first.shown!r} there, {shown!r} here: {row.question}" if first.shown and shown else row.question
            self._tally.add(LABEL_CONFLICT, row.source, differ, other=first.source)

    @property
    def _are_labels(self) -> bool:
        """Whether the answers are a few short ones, as in classification."""
        few = len(self._answers) <= max(2, self._answered // 4)
        return few and self._answer_characters <= 40 * self._answered

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        found = []
        for kind in self._tally.counts:
            severity: Severity | None = None
            if kind is LEAKED_ROW and self._tally.count(kind) <= _FEW * self._held_out:
                severity = "warning"
            finding = self._tally.finding(kind, severity)
            if kind is LABEL_CONFLICT and not self._are_labels:
                finding = Finding(
                    SEVERAL_ANSWERS.name, SEVERAL_ANSWERS.severity, finding.title, SEVERAL_ANSWERS.fix,
                    finding.count, finding.places,
                )  # fmt: skip
            found.append(finding)
        return found
