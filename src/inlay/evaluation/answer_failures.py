"""Failures of answers: empty, refusing, repeating themselves. They have no part in the verdict."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from inlay.evaluation.metrics import Array, Metric, TextMetric, normalise, ratio

_DECLINES = re.compile(
    r"\b(?:i(?:'m| am)? (?:sorry,? (?:but )?)?(?:i )?(?:cannot|can't|can not|am (?:not able|unable)|won't|will not|not able to)"
    r"|(?:i'm|i am) (?:unable|not able)|as an ai\b|i (?:do not|don't) have (?:access|the ability))"
)


def is_empty(prediction: str) -> float:
    """1 for an answer without a visible character."""
    return float(not prediction.strip())


def is_refusal(prediction: str, reference: str) -> float:
    """1 for an answer that begins by declining (English) where the reference does not. A word list, not a judge."""
    start, wanted = (normalise(text)[:200].replace("’", "'") for text in (prediction, reference))
    return float(bool(_DECLINES.search(start)) and not _DECLINES.search(wanted))


def repetition(prediction: str) -> float:
    """Share of the runs of four words that occurred before in the answer."""
    words = normalise(prediction).split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _trait(name: str, description: str, score: Callable[[str, str], float]) -> TextMetric:
    def statistics(prediction: str, reference: str) -> Array:
        return np.array([score(prediction, reference), 1.0])

    return TextMetric(
        name=name, higher_is_better=False, description=description, size=2, value=ratio,
        statistics=statistics, signature=lambda: name,
    )  # fmt: skip


ANSWER_FAILURES: dict[str, TextMetric] = {
    "empty": _trait("empty", "share of answers without a visible character; 0..1", lambda p, r: is_empty(p)),
    "refusal": _trait("refusal", "share of answers that decline where the reference does not; 0..1", is_refusal),
    "repetition": _trait(
        "repetition", "share of the runs of four words that came before in the answer, mean; 0..1",
        lambda p, r: repetition(p),
    ),
}  # fmt: skip
"""Measured beside METRICS. To add one: a function and a line here."""

STOPPED = Metric(
    name="stopped", higher_is_better=True, of_answers=True, size=2, value=ratio,
    description="share of answers that the model ended by itself, before max_new_tokens; 0..1",
)  # fmt: skip
