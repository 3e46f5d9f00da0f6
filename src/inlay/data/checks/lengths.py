"""How long the rows are, in the model's tokens where one is given: percentiles, and what a max_length would cost.

With a model each row goes through the encoder, so a row that it refuses is found here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow
from inlay.data.encode import Encoder, Tokens
from inlay.errors import DataError

REFUSED: Final = Kind(
    "row-refused-by-the-encoder", "error", "rows that this model's tokenizer or chat template cannot take as they are",
    "Each place says why. Change the row, or name another template (model.chat_template).",
)  # fmt: skip
END_NOT_TRAINED: Final = Kind(
    "end-of-turn-not-trained", "warning", "rows with an answer whose end of turn is not trained",
    "The model would not learn to stop there. Use a chat template that ends each answer with a control token.",
)  # fmt: skip
OVER_CONTEXT: Final = Kind(
    "longer-than-the-context", "warning", "rows longer than the model's context",
    "They are dropped or cut (data.overlong). Shorten or divide them, or take a model with a longer context.",
)  # fmt: skip
ALTERED: Final = Kind(
    "altered-by-the-template", "note", "rows with an answer that the chat template writes otherwise",
    "The model learns it as the template writes it, which is also how it is served. `inlay data show` shows the tokens.",
)  # fmt: skip
LITTLE_TRAINED: Final = Kind(
    "little-is-trained", "note", "rows of which under 1% of the tokens are trained",
    "They cost a whole forward pass for a few tokens. Shorten what is asked where you can.",
)  # fmt: skip

PERCENTILES: Final = (0, 5, 25, 50, 75, 90, 95, 99, 100)
MAX_LENGTHS: Final = tuple(2**n for n in range(6, 18))
"""Lengths that a row might be cut to: 64 to 131,072 tokens."""
_CHUNK: Final = 512
_BARS: Final = 40


@dataclass(frozen=True, slots=True)
class Model:
    """A base as far as the checks need it."""

    name: str
    encoder: Encoder
    context_length: int
    parameters: int


@dataclass(frozen=True, slots=True)
class MaxLength:
    """What a `data.max_length` would cost."""

    max_length: int
    longer: int
    """Sequences that are longer."""
    lost_by_drop: int
    """Tokens in the loss that go when they are dropped."""
    lost_by_cut: int
    """Tokens in the loss that go when they are cut."""


@dataclass(frozen=True)
class LengthFacts:
    """Lengths of all training sequences; of whole rows in characters where no model was given."""

    unit: str
    lengths: np.ndarray  # (N,) int64
    trained: np.ndarray  # (N,) int64, those of them that count in the loss
    max_lengths: tuple[MaxLength, ...] = ()

    @property
    def total(self) -> int:
        return int(self.lengths.sum())

    @property
    def total_trained(self) -> int:
        return int(self.trained.sum())

    @property
    def trained_share(self) -> float:
        return self.total_trained / max(1, self.total)

    def percentiles(self) -> dict[int, int]:
        """Percent to length."""
        found = np.percentile(self.lengths, PERCENTILES, method="higher") if len(self.lengths) else []
        return {p: int(value) for p, value in zip(PERCENTILES, found, strict=False)}

    def histogram(self) -> tuple[list[int], list[float]]:
        """(counts, edges) up to the 99.5th percentile; longer ones are in the last bar."""
        if not len(self.lengths):
            return [], [0.0]
        high = max(1, int(np.percentile(self.lengths, 99.5, method="higher")))
        bars = min(_BARS, high)
        counts, edges = np.histogram(np.minimum(self.lengths, high), bins=bars, range=(0, high))
        return [int(n) for n in counts], [round(float(e), 1) for e in edges]

    def to_json(self) -> dict[str, Any]:
        counts, edges = self.histogram()
        return {
            "unit": self.unit,
            "sequences": len(self.lengths),
            "total": self.total,
            "trained": self.total_trained,
            "trained_share": round(self.trained_share, 4),
            "percentiles": {str(p): value for p, value in self.percentiles().items()},
            "histogram": {"counts": counts, "edges": edges},
            "max_lengths": [
                {name: getattr(m, name) for name in ("max_length", "longer", "lost_by_drop", "lost_by_cut")}
                for m in self.max_lengths
            ],
        }


class Lengths:
    """Measures training rows; held-out ones are only encoded, to find those that cannot be."""

    def __init__(self, model: Model | None, max_length: int | None = None) -> None:
        """`max_length` is one that the user has set, to be among those accounted for."""
        self._model = model
        self._lengths, self._trained = array("q"), array("q")
        self._limits = np.asarray(sorted({*MAX_LENGTHS, *([max_length] if max_length else [])}))
        self._cut = np.zeros(len(self._limits), np.int64)
        self._waiting: list[CheckedRow] = []
        self._tally = Tally()
        self._told: tuple[CheckedRow | None, set[Kind]] = None, set()

    def see(self, row: CheckedRow) -> None:
        if self._model is None:
            if not row.held_out:
                self._lengths.append(sum(map(len, row.texts)))
                self._trained.append(sum(len(text) for _, text in row.trained()))
            return
        self._waiting.append(row)
        if len(self._waiting) >= _CHUNK:
            self._encode(self._model)

    def _encode(self, model: Model) -> None:
        waiting, self._waiting = self._waiting, []
        for row, tokens in self._encoded(model.encoder, waiting):
            self._measure(row, tokens, model)

    def _encoded(self, encoder: Encoder, rows: Sequence[CheckedRow]) -> Iterator[tuple[CheckedRow, Tokens]]:
        try:
            yield from [(rows[n], tokens) for n, tokens in encoder.examples([row.example for row in rows])]
        except DataError as error:
            if len(rows) == 1:
                told = str(error).removeprefix(f"{rows[0].source}: ")
                self._tally.add(REFUSED, rows[0].source, told, width=400)
                return
            middle = len(rows) // 2
            yield from self._encoded(encoder, rows[:middle])
            yield from self._encoded(encoder, rows[middle:])

    def _measure(self, row: CheckedRow, tokens: Tokens, model: Model) -> None:
        positions = np.flatnonzero(tokens.weights > 0)
        length, trained = len(tokens.input_ids), len(positions)
        last_of_runs = positions[np.append(np.diff(positions) > 1, True)] if trained else positions
        if any(m.weight > 0 and m.role not in ("assistant", "text") for m in row.example.messages):
            last_of_runs = last_of_runs[-1:]  # the ends of other turns stop nothing
        if not model.encoder.stop_ids.issuperset(tokens.input_ids[last_of_runs].tolist()):
            self._tell(END_NOT_TRAINED, row, row.answer, max(0, len(row.answer) - 40))
        if tokens.altered:
            self._tell(ALTERED, row, f"{'; '.join(tokens.altered)}: {row.answer[:60]!r}")
        if length > model.context_length:
            self._tell(OVER_CONTEXT, row, f"{length:,} tokens: {row.question[:60]}")
        if trained < 0.01 * length:
            self._tell(LITTLE_TRAINED, row, f"{trained:,} of {length:,} tokens: {row.question[:60]}")
        if not row.held_out:
            self._lengths.append(length)
            self._trained.append(trained)
            if length > self._limits[0]:
                self._cut += trained - np.searchsorted(positions, self._limits)

    def _tell(self, kind: Kind, row: CheckedRow, text: str, at: int = 0) -> None:
        """Counts a row once, however many sequences it makes."""
        if self._told[0] is not row:
            self._told = row, set()
        if kind not in self._told[1]:
            self._told[1].add(kind)
            self._tally.add(kind, row.source, text, at)

    def findings(self) -> list[Finding]:
        if self._model and self._waiting:
            self._encode(self._model)
        return self._tally.findings()

    def facts(self) -> LengthFacts:
        """What was measured, once all findings are made."""
        lengths, trained = np.asarray(self._lengths, np.int64), np.asarray(self._trained, np.int64)
        if self._model is None:
            return LengthFacts("characters", lengths, trained)
        longest = int(lengths.max(initial=0))
        limits = [
            MaxLength(int(limit), int((lengths > limit).sum()), int(trained[lengths > limit].sum()), int(cut))
            for limit, cut in zip(self._limits, self._cut, strict=True)
        ]
        shown = [m for m in limits if m.longer < len(lengths)]
        enough = next((n for n, m in enumerate(shown) if m.max_length >= longest), len(shown)) + 1
        return LengthFacts("tokens", lengths, trained, tuple(shown[:enough]))
