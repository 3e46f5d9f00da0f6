"""Lengths of the rows, in the model's tokens where one is given: percentiles, and the cost of each max_length.

With a model each row goes through the encoder, which finds the rows that it refuses.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.worker_pool import Helpers
from inlay.data.types import Example
from inlay.errors import DataError
from inlay.typed_json import JsonObject

REFUSED: Final = Kind(
    "row-refused-by-the-encoder", "error", "rows that this model's tokenizer or chat template cannot take as they are",
    "Each place names the reason. Change the row, or name another template (model.chat_template).",
)  # fmt: skip
END_NOT_TRAINED: Final = Kind(
    "end-of-turn-not-trained", "warning", "rows with an answer whose end of turn is not trained",
    "The model would not learn to stop there. Use a chat template that ends each answer with a special token.",
)  # fmt: skip
OVER_CONTEXT: Final = Kind(
    "longer-than-the-context", "warning", "rows longer than the model's context",
    "They are dropped or cut (data.overlong). Shorten or divide them, or take a model with a longer context.",
)  # fmt: skip
ALTERED: Final = Kind(
    "altered-by-the-template", "note", "rows with an answer that the chat template alters",
    "The model learns it as the template writes it, which is also how it is served. `inlay data show` shows the tokens.",
)  # fmt: skip
LITTLE_TRAINED: Final = Kind(
    "little-is-trained", "note", "rows of which under 1% of the tokens are trained",
    "They cost a whole forward pass for a few tokens. Shorten the prompts where you can.",
)  # fmt: skip

PERCENTILES: Final = (0, 5, 25, 50, 75, 90, 95, 99, 100)
MAX_LENGTHS: Final = tuple(2**n for n in range(6, 18))
"""Limits that `data.max_length` might have: 64 to 131,072 tokens."""
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
    """The cost of a `data.max_length`."""

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
        """Tokens (or characters) of all sequences."""
        return int(self.lengths.sum())

    @property
    def total_trained(self) -> int:
        """Trained tokens (or characters) of all sequences."""
        return int(self.trained.sum())

    @property
    def trained_share(self) -> float:
        """Share of the tokens that is trained."""
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

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
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


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A sequence of a row, measured; or the reason why the row has none."""

    row: int
    """Position among those that were encoded with it."""
    refused: str = ""
    length: int = 0
    trained: int = 0
    end_is_trained: bool = True
    altered: tuple[str, ...] = ()
    cut: np.ndarray | None = None  # (L,) tokens in the loss behind each limit, where it is longer than the first


class LengthCheck:
    """Measures training rows; held-out ones are only encoded, to find those that cannot be."""

    def __init__(self, model: Model | None, max_length: int | None = None, processes: int = 1) -> None:
        """`max_length` is one that the user has set, to be among those accounted for. Rows are encoded by so many processes."""
        self._model = model
        self._lengths, self._trained = array("q"), array("q")
        self._limits = np.asarray(sorted({*MAX_LENGTHS, *([max_length] if max_length else [])}))
        self._cut = np.zeros(len(self._limits), np.int64)
        self._waiting: list[CheckedRow] = []
        self._begun: deque[tuple[list[CheckedRow], Callable[[], list[_Sequence]]]] = deque()
        self._helpers = Helpers(partial(_sequences, model.encoder, self._limits), processes) if model else None
        self._tally = Tally()
        self._counted: tuple[CheckedRow | None, set[Kind]] = None, set()

    def close(self) -> None:
        """Ends the processes."""
        if self._helpers:
            self._helpers.close()

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if self._model is None:
            if not row.held_out:
                self._lengths.append(sum(map(len, row.texts)))
                self._trained.append(sum(len(text) for _, text in row.trained()))
            return
        self._waiting.append(row)
        if len(self._waiting) >= _CHUNK:
            self._encode()

    def _encode(self, *, to_the_end: bool = False) -> None:
        assert self._model is not None
        assert self._helpers is not None
        if rows := self._waiting:
            self._begun.append((rows, self._helpers.begin([row.example for row in rows])))
            self._waiting = []
        while len(self._begun) > (0 if to_the_end else self._helpers.ahead):
            rows, made = self._begun.popleft()
            for sequence in made():
                self._measure(rows[sequence.row], sequence, self._model.context_length)

    def _measure(self, row: CheckedRow, found: _Sequence, context_length: int) -> None:
        if found.refused:
            self._tally.add(REFUSED, row.source, found.refused.removeprefix(f"{row.source}: "), width=400)
            return
        if not found.end_is_trained:
            self._count(END_NOT_TRAINED, row, row.answer, max(0, len(row.answer) - 40))
        if found.altered:
            self._count(ALTERED, row, f"{'; '.join(found.altered)}: {row.answer[:60]!r}")
        if found.length > context_length:
            self._count(OVER_CONTEXT, row, f"{found.length:,} tokens: {row.question[:60]}")
        if found.trained < 0.01 * found.length:
            self._count(LITTLE_TRAINED, row, f"{found.trained:,} of {found.length:,} tokens: {row.question[:60]}")
        if not row.held_out:
            self._lengths.append(found.length)
            self._trained.append(found.trained)
            if found.cut is not None:
                self._cut += found.cut

    def _count(self, kind: Kind, row: CheckedRow, text: str, at: int = 0) -> None:
        """Counts a row once, however many sequences it makes."""
        if self._counted[0] is not row:
            self._counted = row, set()
        if kind not in self._counted[1]:
            self._counted[1].add(kind)
            self._tally.add(kind, row.source, text, at)

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        if self._model:
            self._encode(to_the_end=True)
        return self._tally.findings()

    def facts(self) -> LengthFacts:
        """The lengths, once all findings are made."""
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


def _sequences(encoder: Encoder, limits: np.ndarray, examples: list[Example]) -> list[_Sequence]:
    """The sequences of the rows, measured, in order."""
    try:
        made = [(n, tokens) for n, tokens in encoder.examples(examples, beside=False)]
    except DataError as error:
        if len(examples) == 1:
            return [_Sequence(0, refused=str(error))]
        middle = len(examples) // 2
        behind = _sequences(encoder, limits, examples[middle:])
        return [
            *_sequences(encoder, limits, examples[:middle]), *(replace(one, row=middle + one.row) for one in behind)
        ]  # fmt: skip
    return [_sequence(n, tokens, encoder, limits, examples[n]) for n, tokens in made]


def _sequence(row: int, tokens: TokenizedSequence, encoder: Encoder, limits: np.ndarray, example: Example) -> _Sequence:
    positions = np.flatnonzero(tokens.weights > 0)
    length, trained = len(tokens.input_ids), len(positions)
    last_of_runs = positions[np.append(np.diff(positions) > 1, True)] if trained else positions
    if any(m.weight > 0 and m.role not in ("assistant", "text") for m in example.messages):
        last_of_runs = last_of_runs[-1:]  # the ends of other turns stop nothing
    ends = encoder.stop_ids.issuperset(tokens.input_ids[last_of_runs].tolist())
    cut = trained - np.searchsorted(positions, limits) if length > limits[0] else None
    return _Sequence(row, "", length, trained, ends, tuple(tokens.altered), cut)
