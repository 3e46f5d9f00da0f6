"""Rules of thumb, as heuristics: whether the rows are enough for the model, and the way that suits them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from inlay.data.checks.lengths import LengthFacts, Model
from inlay.data.checks.row import CheckedRow
from inlay.errors import count_shown
from inlay.typed_json import JsonObject

LEAST: Final = (1e-6, 1e-5)
"""Trained tokens per parameter from which something can be expected: rules found differ by this much."""
PRETRAINING: Final = 20
"""Tokens per parameter of compute-optimal pretraining. Source: Hoffmann et al. 2022 (Chinchilla), table 3."""

_ROWS: Final = 20_000
_TERM: Final = re.compile(r"\w{4,}|\d+")
_ENOUGH_ROWS: Final = 100
_ONCE: Final = 0.35  # share of answer terms from which single facts outweigh a common form


@dataclass(frozen=True, slots=True)
class RuleOfThumb:
    """A rule of thumb, applied to the rows."""

    about: str
    text: str

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        return {"about": self.about, "says": self.text}


class Task:
    """The content of the answers in the first rows: labels, the question's own words, or facts of their own."""

    def __init__(self) -> None:
        self._rows = 0
        self._answers: Counter[int] = Counter()
        self._terms: Counter[str] = Counter()
        self._from_question = 0
        self._characters = 0

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if row.held_out or row.is_document or self._rows >= _ROWS:
            return
        self._rows += 1
        answer = row.normal[-1][1]
        self._answers[hash(answer)] += 1
        self._characters += len(answer)
        prompt = set(_TERM.findall(" ".join(text for _, text in row.normal[:-1])))
        terms = set(_TERM.findall(answer))
        self._from_question += len(terms & prompt)
        self._terms.update(terms - prompt)

    @property
    def has_answers(self) -> bool:
        """Whether there are rows that are no documents."""
        return self._rows > 0

    @property
    def are_labels(self) -> bool:
        """Whether the answers are a few short ones, as in classification."""
        few = len(self._answers) <= max(2, self._rows // 4)
        return self.has_answers and few and self._characters <= 40 * self._rows

    @property
    def from_question(self) -> float:
        """Share of the answers' terms (words of four letters, numbers) that stand in the question."""
        return self._from_question / max(1, self._from_question + self._terms.total())

    @property
    def once(self) -> float:
        """Share of the answers' terms that stand in no question and in no other answer."""
        alone = sum(1 for count in self._terms.values() if count == 1)
        return alone / max(1, self._from_question + self._terms.total())


def rules_of_thumb(task: Task, lengths: LengthFacts, model: Model | None) -> list[RuleOfThumb]:
    """The rules of thumb, applied to these rows."""
    enough = [_enough(lengths, model)] if model else []
    return [*enough, _fitting(task, lengths, model)]


def cost(lengths: LengthFacts, parameters: int | None, price: float | None) -> JsonObject:
    """{"tokens", "operations", "price"} of one epoch; None where that needs a model or a price.

    A multiplication and an addition for each parameter and token forward, the same again for the way back to the
    adapters: 4 operations. Gradients of the frozen weights are never made.
    """
    tokens = lengths.total if lengths.unit == "tokens" else None
    return {
        "tokens": tokens,
        "operations": 4 * parameters * tokens if parameters and tokens else None,
        "price": round(tokens / 1e6 * price, 4) if tokens is not None and price is not None else None,
    }


def _enough(lengths: LengthFacts, model: Model) -> RuleOfThumb:
    trained, (low, high) = lengths.total_trained, (n * model.parameters for n in LEAST)
    share = trained / model.parameters
    found = f"{trained:,} trained tokens an epoch are {share:.1e} of {model.parameters / 1e6:,.1f}M parameters"
    spread = f"rules of thumb ask for 1e-6 to 1e-5 ({low:,.0f} to {high:,.0f} tokens)"
    if trained < low:
        verdict = "too little to expect more than noise"
    elif trained < high:
        verdict = "inside the spread: form and tone may follow, little else"
    else:
        verdict = "enough to expect an effect"
    note = f"; 20 a parameter ({PRETRAINING * model.parameters:,}) is for pretraining, not for this"
    return RuleOfThumb("trained tokens", f"{found}; {spread}: {verdict}{note}")


def _fitting(task: Task, lengths: LengthFacts, model: Model | None) -> RuleOfThumb:
    rows = len(lengths.lengths)
    if model and lengths.total_trained < LEAST[0] * model.parameters:
        text = "more data: there is less to learn from than the smallest rule of thumb asks for"
    elif rows < _ENOUGH_ROWS:
        text = (
            f"more data: {count_shown(rows, 'row')} can set a tone, and a held-out fifth of them can hardly measure it"
        )
    elif not task.has_answers:
        text = "LoRA for the style of plain documents; to learn what they say takes far more text, or retrieval"
    elif task.are_labels:
        text = "LoRA: the answers are a few labels"
    elif task.once > _ONCE:
        text = (
            f"LoRA for the form and retrieval for the facts: {task.once:.0%} of the answers' terms stand in no question "
            f"and no other row, and what is seen once is not learnt reliably"
        )
    else:
        text = (
            f"LoRA: {task.from_question:.0%} of the answers' terms come from the question and {task.once:.0%} stand in one "
            "row only, so there is a common form to learn"
        )
    return RuleOfThumb("what looks right", text)
