"""Metrics as sums: each turns a row into statistics that add up over rows.

A corpus score is ``value`` of the summed statistics, so any reweighting of the rows (a bootstrap resample,
a leave-one-out, a subset) costs one weighted sum and no second look at the text.
Shape suffixes: N rows, S statistics.

Scales: exact_match, token_f1 and rouge_l are fractions in 0..1; bleu and chrf are in 0..100, as sacrebleu
prints them; loss is nats per trained token and perplexity its exponential.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score of summed statistics."""

    name: str
    higher_is_better: bool
    description: str
    size: int
    """S, the number of statistics of a row."""
    value: Callable[[Array], Array]
    """(..., S) summed statistics to (...) scores. NaN where nothing was weighed."""
    of_answers: bool = False
    """True for a metric of generated answers, False for one of the likelihood of the references."""
    row_value: Callable[[Array], Array] | None = None
    """Replaces `value` for a single row, where the corpus formula is not defined for short rows (bleu)."""

    def scores(self, statistics_NS: Array) -> Array:
        """(N,) scores of the rows, each on its own."""
        return (self.row_value or self.value)(statistics_NS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMetric(Metric):
    """A metric of (prediction, reference)."""

    of_answers: bool = True
    statistics: Callable[[str, str], Array]
    """(prediction, reference) to the (S,) statistics of the row."""
    signature: Callable[[], str]
    """Settings needed to compute the same number elsewhere; sacrebleu's own line for bleu and chrf."""
    covers: Callable[[str], bool] = lambda reference: True
    """True for the reference of a row that is scored."""


def normalise(text: str) -> str:
    """`text` without differences of case, compatibility form and white space.

    Punctuation, accents and articles stay: they are part of the answer in code, names and other languages.
    Source: Unicode 16, definition D146 (compatibility caseless match), composed at the end.
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def word_tokens(text: str) -> list[str]:
    """The words of the normalised text, punctuation removed.

    As SQuAD's scorer, except that English articles stay, so that no language is treated apart.
    """
    kept = (char for char in normalise(text) if unicodedata.category(char)[0] != "P")
    return "".join(kept).split()


def alphanumeric_tokens(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9, the tokens of the rouge_score package. Other scripts give no token."""
    return re.findall("[a-z0-9]+", text.lower())


def common_subsequence_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel: one big-integer step per token of `right`; a zero bit marks a position of `left` that adds
    one to the length.
    Source: H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(left):
        positions[token] = positions.get(token, 0) | (1 << index)
    ones = (1 << len(left)) - 1
    row = ones
    for token in right:
        matched = row & positions.get(token, 0)
        row = ((row + matched) | (row - matched)) & ones
    return len(left) - row.bit_count()


def _one(score: float) -> Array:
    """Statistics of a metric that is a plain mean over rows: the score, and one row."""
    return np.array([score, 1.0])


def _f1(overlap: int, predicted: int, expected: int) -> float:
    if not overlap:
        return 0.0
    precision, recall = overlap / predicted, overlap / expected
    return 2 * precision * recall / (precision + recall)


def exact_match_statistics(prediction: str, reference: str) -> Array:
    """(score, 1); the score is 1 where the normalised texts are equal."""
    return _one(float(normalise(prediction) == normalise(reference)))


def token_f1_statistics(prediction: str, reference: str) -> Array:
    """(score, 1); the score is the F1 of the two bags of words. Texts without a word must match exactly."""
    predicted, expected = word_tokens(prediction), word_tokens(reference)
    if not predicted and not expected:
        return exact_match_statistics(prediction, reference)
    overlap = (Counter(predicted) & Counter(expected)).total()
    return _one(_f1(overlap, len(predicted), len(expected)))


def rouge_l_statistics(prediction: str, reference: str) -> Array:
    """(score, 1); the score is ROUGE-L F1 as in rouge_score without stemming: 0 where a side has no token."""
    predicted, expected = alphanumeric_tokens(prediction), alphanumeric_tokens(reference)
    common = common_subsequence_length(predicted, expected)
    return _one(_f1(common, len(predicted), len(expected)))


def rouge_n_statistics(order: int, prediction: str, reference: str) -> Array:
    """(score, 1); the score is the F1 of the two bags of word n-grams, as in rouge_score without stemming."""
    bags = []
    for text in (prediction, reference):
        tokens = alphanumeric_tokens(text)
        bags.append(Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)))
    predicted, expected = bags
    return _one(_f1((predicted & expected).total(), predicted.total(), expected.total()))


def ratio(statistics: Array) -> Array:
    """First statistic over the second; NaN where the second is 0."""
    total, weight = statistics[..., 0], statistics[..., 1]
    return np.asarray(np.divide(total, weight, out=np.full(np.shape(total), np.nan), where=weight != 0))


def perplexity_value(statistics: Array) -> Array:
    """exp(loss). Held at exp(700) above 700 nats, so that a difference of two stays finite."""
    return np.asarray(np.exp(np.minimum(ratio(statistics), 700.0)))


BLEU_ORDER = 4


@cache
def _bleu() -> Any:
    """sacrebleu's BLEU with its defaults; imported late, because the command line reads METRICS at start."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="13a", smooth_method="exp", effective_order=True)


def bleu_statistics(prediction: str, reference: str) -> Array:
    """(prediction length, reference length, matched 1..4-grams, predicted 1..4-grams) in 13a tokens."""
    score = _bleu().sentence_score(prediction, [reference])
    return np.array([score.sys_len, score.ref_len, *score.counts, *score.totals], dtype=np.float64)


def bleu_value(statistics: Array, effective_order: bool = False) -> Array:
    """BLEU in 0..100 with exponential smoothing.

    `effective_order` leaves out n-grams longer than the prediction; without it a corpus of predictions
    shorter than 4 tokens scores 0. Source: sacrebleu 2.6, BLEU.compute_bleu.
    """
    predicted, expected = statistics[..., 0], statistics[..., 1]
    matched, total = statistics[..., 2 : 2 + BLEU_ORDER], statistics[..., 2 + BLEU_ORDER :]
    present = total > 0
    missed = present & (matched == 0)
    halvings = np.cumsum(missed, axis=-1)
    hits = np.where(missed, 0.5**halvings, matched)
    precision = np.divide(hits, total, out=np.ones_like(hits), where=present)
    orders = present.sum(axis=-1)
    scored = matched.any(axis=-1) & (effective_order | (orders == BLEU_ORDER))
    logs = np.log(precision).sum(axis=-1) / np.maximum(orders, 1)
    shortfall = 1 - np.divide(expected, predicted, out=np.ones_like(expected), where=predicted > 0)
    return np.asarray(np.where(scored, 100 * np.exp(logs + np.minimum(shortfall, 0)), 0.0))


CHRF_ORDER = 6
CHRF_BETA = 2


def _bleu_signature() -> str:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize="13a", smooth_method="exp")
    scorer.corpus_score([""], [[""]])
    return str(scorer.get_signature())


def _chrf_signature() -> str:
    from sacrebleu.metrics import CHRF

    scorer = CHRF(char_order=CHRF_ORDER, beta=CHRF_BETA)
    scorer.corpus_score([""], [[""]])
    return str(scorer.get_signature())


def chrf_statistics(prediction: str, reference: str) -> Array:
    """(predicted, expected, matched) counts for each of the 1..6-grams of characters, white space removed."""
    left, right = "".join(prediction.split()), "".join(reference.split())
    counts: list[int] = []
    for n in range(1, CHRF_ORDER + 1):
        predicted = Counter(left[i : i + n] for i in range(len(left) - n + 1))
        expected = Counter(right[i : i + n] for i in range(len(right) - n + 1))
        # sacrebleu leaves an order out for the row when its reference is too short to have it.
        total = predicted.total() if expected else 0
        counts += [total, expected.total(), (predicted & expected).total()]
    return np.array(counts, dtype=np.float64)


def chrf_value(statistics: Array) -> Array:
    """chrF2 in 0..100: F-beta of the mean precision and recall over the orders that both sides have.

    Source: sacrebleu 2.6, CHRF._compute_f_score with eps_smoothing off.
    """
    predicted, expected, matched = (statistics[..., start::3] for start in range(3))
    present = (predicted > 0) & (expected > 0)
    orders = np.maximum(present.sum(axis=-1), 1)
    zeros = np.zeros_like(matched)
    precision = np.divide(matched, predicted, out=zeros.copy(), where=present).sum(axis=-1) / orders
    recall = np.divide(matched, expected, out=zeros, where=present).sum(axis=-1) / orders
    weight = CHRF_BETA**2
    denominator = weight * precision + recall
    product = 100 * (1 + weight) * precision * recall
    return np.asarray(np.divide(product, denominator, out=np.zeros_like(product), where=denominator > 0))


METRICS: dict[str, TextMetric] = {
    "exact_match": TextMetric(
        name="exact_match",
        higher_is_better=True,
        description="share of rows equal to the reference up to case, white space and Unicode form; 0..1",
        size=2,
        value=ratio,
        statistics=exact_match_statistics,
        signature=lambda: "norm:nfkc+casefold+space|punctuation:kept",
    ),
    "token_f1": TextMetric(
        name="token_f1",
        higher_is_better=True,
        description="mean F1 of the words shared with the reference, order ignored; 0..1",
        size=2,
        value=ratio,
        statistics=token_f1_statistics,
        signature=lambda: "norm:nfkc+casefold+space|punctuation:removed|articles:kept",
    ),
    "rouge_1": TextMetric(
        name="rouge_1",
        higher_is_better=True,
        description="mean F1 of the a-z, 0-9 words shared with the reference (rouge1); 0..1",
        size=2,
        value=ratio,
        statistics=partial(rouge_n_statistics, 1),
        signature=lambda: "rouge1-f1|tok:[a-z0-9]+|case:lc|stemmer:no",
    ),
    "rouge_2": TextMetric(
        name="rouge_2",
        higher_is_better=True,
        description="mean F1 of the pairs of such words (rouge2); 0..1",
        size=2,
        value=ratio,
        statistics=partial(rouge_n_statistics, 2),
        signature=lambda: "rouge2-f1|tok:[a-z0-9]+|case:lc|stemmer:no",
    ),
    "rouge_l": TextMetric(
        name="rouge_l",
        higher_is_better=True,
        description="mean F1 of the longest common subsequence of a-z, 0-9 words (rougeL); 0..1",
        size=2,
        value=ratio,
        statistics=rouge_l_statistics,
        signature=lambda: "rougeL-f1|tok:[a-z0-9]+|case:lc|stemmer:no",
    ),
    "bleu": TextMetric(
        name="bleu",
        higher_is_better=True,
        description="corpus BLEU of sacrebleu; 0..100",
        size=2 + 2 * BLEU_ORDER,
        value=bleu_value,
        row_value=partial(bleu_value, effective_order=True),
        statistics=bleu_statistics,
        signature=_bleu_signature,
    ),
    "chrf": TextMetric(
        name="chrf",
        higher_is_better=True,
        description="corpus chrF2 of sacrebleu, characters of any script; 0..100",
        size=3 * CHRF_ORDER,
        value=chrf_value,
        statistics=chrf_statistics,
        signature=_chrf_signature,
    ),
}
"""Metrics of generated text. To add one: a statistics function, a value function, an entry here."""

LOSS_METRICS: dict[str, Metric] = {
    "loss": Metric(
        name="loss",
        higher_is_better=False,
        description="negative log likelihood of the reference, nats per trained token",
        size=2,
        value=ratio,
    ),
    "perplexity": Metric(
        name="perplexity",
        higher_is_better=False,
        description="exp(loss)",
        size=2,
        value=perplexity_value,
    ),
    "bits_per_byte": Metric(
        name="bits_per_byte",
        higher_is_better=False,
        description="loss in bits per UTF-8 byte of the trained text, end of turn included; one scale for all tokenizers",
        size=2,
        value=ratio,
    ),
    "token_accuracy": Metric(
        name="token_accuracy",
        higher_is_better=True,
        description="share of the trained tokens that the model would have chosen itself, given what stands before; 0..1",
        size=2,
        value=ratio,
    ),
}
"""Metrics of model-scored references; a row's statistics are (summed weighted loss, summed weights), for bits_per_byte
(bits, bytes), for token_accuracy (weight of the hits, summed weights)."""


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

BEHAVIOUR: Mapping[str, Metric] = {**ANSWER_FAILURES, STOPPED.name: STOPPED}
"""Metrics of how the answers behave; they have no part in the verdict."""
