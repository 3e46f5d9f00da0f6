"""The rule of thumb: an arm suggested by the rows alone, before any model is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from inlay.data.types import Example
from inlay.evaluation.metrics import token_f1_statistics, word_tokens
from inlay.evaluation.score import prompt_and_reference
from inlay.evaluation.task_metrics import labels_of
from inlay.workflows.advise.passages import Index

FEW: Final = 50
"""With fewer training rows, examples in the prompt are tried first."""
MANY: Final = 200
"""From this number on, a fine-tuned model usually learns both form and content."""
FOUND: Final = 0.6
"""Share of the answers' own words in the retrieved passages from which these are taken to hold the answers."""


@dataclass(frozen=True, slots=True)
class RuleOfThumb:
    """A suggestion with its reasons, from the rows alone."""

    suggestion: str
    reasons: tuple[str, ...]
    facts: dict[str, float | int]

    def to_json(self) -> dict[str, object]:
        """Suggestion, reasons and facts."""
        return {
            "kind": "rule of thumb", "suggestion": self.suggestion, "reasons": list(self.reasons), "facts": self.facts,
        }  # fmt: skip


def rule_of_thumb(
    train: int, heldout: Sequence[Example], index: Index, passages: int, *, documents: bool
) -> RuleOfThumb:
    """The suggestion from `train` training rows, the held-out rows and the index."""
    pairs = [prompt_and_reference(e) for e in heldout]
    facts = _facts(train, pairs, index, passages)
    reasons: list[str] = []
    labels = labels_of([answer for _, answer in pairs])
    found, own = facts["answer_words_retrieved"], facts["answer_words_not_in_question"]
    if labels:
        per_label = train / len(labels)
        reasons.append(f"the answers are {len(labels)} labels with {per_label:.0f} training rows each")
        holds = False
    else:
        holds = found >= FOUND and own >= 0.3
        reasons.append(
            f"{own:.0%} of an answer's words are not in its question, and {found:.0%} of those stand in the {passages} "
            f"nearest {'passages of the documents' if documents else 'training rows'}"
        )
    reasons.append(
        f"{train:,} training rows ({'few' if train < FEW else 'enough to start' if train < MANY else 'plenty'})"
    )
    if train < FEW:
        suggestion = "base + retrieval" if holds else "base + few-shot"
    elif labels:
        suggestion = "adapter"
    elif holds and documents:
        suggestion = "adapter + retrieval" if train >= MANY else "base + retrieval"
    else:
        suggestion = "adapter"
        if holds:
            reasons.append("the training rows themselves hold the answers, and an adapter learns them")
    if documents and not holds:
        reasons.append("the documents do not hold the answers, so retrieving from them can help little")
    return RuleOfThumb(suggestion, tuple(reasons), facts)


def _facts(train: int, pairs: Sequence[tuple[str, str]], index: Index, passages: int) -> dict[str, float | int]:
    found, own, copied = [], [], []
    for prompt, answer in pairs:
        nearest = index.nearest(prompt, passages)
        words = set(word_tokens(answer))
        own.append(len(words - set(word_tokens(prompt))) / len(words) if words else 0.0)
        if (share := index.coverage(nearest, answer, prompt)) is not None:
            found.append(share)
        if nearest and (turns := index.passages[nearest[0]].turns):
            copied.append(float(token_f1_statistics(turns[-1].content, answer)[0]))
    facts: dict[str, float | int] = {
        "train_rows": train,
        "heldout_rows": len(pairs),
        "answer_words": float(np.median([len(word_tokens(answer)) for _, answer in pairs])),
        "answer_words_not_in_question": float(np.mean(own)),
        "answer_words_retrieved": float(np.mean(found)) if found else 0.0,
        "passages": len(index.passages),
        "passages_left_out": len(index.left_out),
    }
    if copied:  # token F1 of answering with the answer of the nearest training row
        facts["copying_token_f1"] = float(np.mean(copied))
    return facts
