"""Near duplicates: among the rows of a file, and across training and held-out rows.

Rows with other numbers in them are other rows, however alike: sums, dates, and forms that were filled in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import numpy as np

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.minhash import SIZE, near_pairs, signatures
from inlay.data.checks.row import CheckedRow
from inlay.data.splits import as_keys, by_key, prompt_key
from inlay.data.types import Source

SIMILARITY: Final = 0.8
"""From which two rows count as nearly the same."""
MOST_ROWS: Final = 500_000
"""Signatures that are held at once: 480 bytes each."""

NEAR: Final = Kind(
    "near-duplicate", "warning", "rows nearly the same as an earlier one",
    "Look at the pairs. Keep one of each where the difference does not matter.",
)  # fmt: skip
NEAR_LEAKED: Final = Kind(
    "near-leaked-row", "warning", "held-out rows nearly the same as a training row",
    "Put near duplicates on one side; what is measured on them is too good.",
)  # fmt: skip
TOO_MANY: Final = Kind(
    "near-not-searched", "note", f"rows not searched for near duplicates, being after the first {MOST_ROWS:,}",
    "Check the file in parts.",
)  # fmt: skip

_NUMBER: Final = re.compile(r"\d+")
_DIGITS_ALONE: Final = bytes(b if chr(b).isdigit() and b < 128 else ord(" ") for b in range(256))
_BUFFER: Final = 1 << 22  # characters


class NearDuplicates:
    """Compares all rows by MinHash; exact copies are left to `Repeats`.

    Without held-out rows of their own, those that `train` would hold out are taken for the leakage.
    """

    def __init__(self, eval_fraction: float = 0.2) -> None:
        self._eval_fraction = eval_fraction
        self._signatures = np.empty((MOST_ROWS, SIZE), np.uint32)  # resident as far as it is written
        self._signed = 0
        self._waiting: list[str] = []
        self._characters = 0
        self._seen: set[int] = set()
        self._sources: list[Source] = []
        self._shown: list[str] = []
        self._numbers: list[int] = []
        self._held_out: list[bool] = []
        self._prompts = bytearray()
        self._pairs: tuple[np.ndarray, np.ndarray] | None = None
        self._tally = Tally()

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if row.whole_key in self._seen:
            return
        if len(self._sources) >= MOST_ROWS:
            self._tally.add(TOO_MANY, row.source)
            return
        self._seen.add(row.whole_key)
        text = "\n".join(text for _, text in row.normal)
        self._sources.append(row.source)
        self._shown.append(row.question[:100])
        self._numbers.append(hash(tuple(numbers_in(text))))
        self._held_out.append(row.held_out)
        self._prompts += prompt_key(row.example)
        self._waiting.append(text)
        self._characters += len(text)
        if self._characters > _BUFFER:
            self._sign()

    def _sign(self) -> None:
        made = signatures(self._waiting)
        self._signatures[self._signed : self._signed + len(made)] = made
        self._signed += len(made)
        self._waiting, self._characters = [], 0

    def search(
        self, reached: Callable[[float, int], None] = lambda _share, _rows: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of the rows seen and their similarities, searched once; `reached` gets the share done and the rows."""
        if self._pairs is None:
            self._sign()
            made = self._signatures[: self._signed]
            self._pairs = near_pairs(made, SIMILARITY, lambda share: reached(share, len(made)))
        return self._pairs

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        pairs, similar = self.search()
        held_out = self._held_out
        if not any(held_out) and len(self._sources) > 1:
            would_be = by_key(as_keys([bytes(self._prompts)]), self._eval_fraction)[1]
            held_out = np.isin(np.arange(len(self._sources)), would_be).tolist()
        best: dict[Kind, dict[int, tuple[float, int]]] = {NEAR: {}, NEAR_LEAKED: {}}
        for (i, j), s in zip(pairs.tolist(), similar.tolist(), strict=True):
            if self._numbers[i] != self._numbers[j]:
                continue
            if held_out[i] != held_out[j]:
                i, j = (j, i) if held_out[i] else (i, j)
                kind = NEAR_LEAKED
            else:
                kind = NEAR
            best[kind][j] = max(best[kind].get(j, (0.0, i)), (s, i))
        for kind, found in best.items():
            for j, (s, i) in sorted(found.items(), key=lambda item: (-item[1][0], item[0])):
                shown = f"{s:.0%} alike: {self._shown[j]}"
                self._tally.add(kind, self._sources[j], shown, other=self._sources[i], other_text=self._shown[i])
        return self._tally.findings()


def numbers_in(text: str) -> list[bytes]:
    """The numbers in the text, in order."""
    if text.isascii():
        return text.encode().translate(_DIGITS_ALONE).split()  # ten times as fast as the pattern
    return [number.encode() for number in _NUMBER.findall(text)]
