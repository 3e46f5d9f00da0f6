"""Two scores on the same rows: every metric's difference with its interval, and one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inlay.errors import ConfigError, unknown_name
from inlay.evaluation.metrics import LOSS_METRICS, METRICS, TextMetric
from inlay.evaluation.score import HeldOut, Score, question
from inlay.evaluation.statistics import Difference, compare_scores


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One held-out example under both models."""

    source: str
    question: str
    reference: str
    base_answer: str | None
    adapter_answer: str | None
    base_loss: float
    adapter_loss: float
    scores: dict[str, tuple[float, float]]
    """Text metric to (base, adapter)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the adapter changed, by how much, and whether that is more than luck."""

    base: str
    adapter: str
    primary: str
    metrics: dict[str, Difference]
    rows: tuple[ComparedRow, ...]
    prompts: tuple[tuple[str, str, str], ...]
    """(prompt, base answer, adapter answer) of the extra prompts."""
    available: int
    """Held-out rows that there were before drawing."""
    time_s: float

    @property
    def verdict(self) -> str:
        """better, worse, or not distinguishable; by the primary metric."""
        return self.metrics[self.primary].verdict

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def regressions(self) -> list[ComparedRow]:
        """Rows that the adapter made worse by loss, worst first."""
        worse = [r for r in self.rows if r.adapter_loss > r.base_loss]
        return sorted(worse, key=lambda r: r.base_loss - r.adapter_loss)

    def to_json(self) -> dict[str, Any]:
        """The value that `compare --json` prints."""
        return {
            "verdict": self.verdict,
            "reason": self.metrics[self.primary].reason,
            "primary": self.primary,
            "n": self.n,
            "available": self.available,
            "base": self.base,
            "adapter": self.adapter,
            "metrics": {name: _difference(d) for name, d in self.metrics.items()},
            "prompts": [{"prompt": p, "base": b, "adapter": a} for p, b, a in self.prompts],
            "worst": [
                {"source": r.source, "question": r.question, "base_loss": r.base_loss, "adapter_loss": r.adapter_loss}
                for r in self.regressions[:5]
            ],
            "time_s": round(self.time_s, 3),
        }


def _difference(d: Difference) -> dict[str, Any]:
    values = {"base": d.base, "adapter": d.other, "difference": d.difference, "low": d.low, "high": d.high}
    return values | {"wins": d.wins, "ties": d.ties, "losses": d.losses, "verdict": d.verdict}


def loss_difference(
    base: tuple[np.ndarray, np.ndarray],
    adapter: tuple[np.ndarray, np.ndarray],
    resamples: int,
    seed: int,
    examples: np.ndarray | None = None,
) -> Difference:
    """Held-out loss of adapter minus base from two (nll, weight) pairs over the same sequences.

    `examples` names the example of each sequence. The sequences of one are drawn together, as `compare_pair` does;
    without it each is drawn by itself.
    """
    sides = [np.stack(side, 1).astype(np.float64) for side in (base, adapter)]
    if examples is not None:
        sides = [_per_example(side, examples) for side in sides]
    pair = (sides[0], sides[1], LOSS_METRICS["loss"])
    return compare_scores({"loss": pair}, resamples=resamples, seed=seed)["loss"]


def _per_example(statistics_NS: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Statistics summed over the sequences of each example, by its position."""
    found, places = np.unique(examples, return_inverse=True)
    summed = np.zeros((len(found), statistics_NS.shape[1]))
    np.add.at(summed, places, statistics_NS)
    return summed


def totals(rows: HeldOut, scored: Score) -> dict[str, float]:
    """Every metric of one model over all rows."""
    loss = np.array([scored.nll.sum(), scored.weight.sum()])
    found = {name: float(metric.value(loss)) for name, metric in LOSS_METRICS.items()}
    for name, metric in METRICS.items() if rows.asked else ():
        found[name] = float(metric.value(_statistics(metric, rows, scored).sum(0)))
    return found


def compare_pair(
    rows: HeldOut, base: Score, adapter: Score, *, primary: str, resamples: int, seed: int, available: int
) -> Comparison:
    """`adapter` against `base` on the same rows. Raises: ConfigError for a primary metric that was not measured."""
    chosen = primary_metric(primary, has_answers=bool(rows.asked))
    losses = {
        name: compare_scores(
            {name: (np.stack([base.nll, base.weight], 1), np.stack([adapter.nll, adapter.weight], 1), metric)},
            resamples=resamples,
            seed=seed,
        )[name]
        for name, metric in LOSS_METRICS.items()
    }
    text_pairs, text_scores = {}, {}
    for name, metric in METRICS.items() if rows.asked else ():
        a, b = _statistics(metric, rows, base), _statistics(metric, rows, adapter)
        text_pairs[name] = (a, b, metric)
        text_scores[name] = (metric.scores(a), metric.scores(b))
    texts = compare_scores(text_pairs, resamples=resamples, seed=seed) if text_pairs else {}
    metrics = losses | texts
    place = {n: k for k, n in enumerate(rows.asked)}
    compared = tuple(
        _row(rows, n, base, adapter, {m: (float(s[0][place[n]]), float(s[1][place[n]])) for m, s in text_scores.items()}
             if n in place else {})
        for n in range(len(rows.examples))
    )  # fmt: skip
    prompts = tuple(zip(rows.prompts, base.prompt_answers, adapter.prompt_answers, strict=False))
    return Comparison(
        base.name, adapter.name, chosen, metrics, compared, prompts, available, base.time_s + adapter.time_s
    )


def _statistics(metric: TextMetric, rows: HeldOut, scored: Score) -> np.ndarray:
    """(answered rows, S) statistics of a text metric."""
    return np.stack([metric.statistics(scored.answers[n] or "", rows.references[n]) for n in rows.asked])


def primary_metric(wanted: str, *, has_answers: bool = True) -> str:
    """The metric that decides the verdict. Raises: ConfigError for one that is unknown or cannot be measured."""
    if wanted == "auto":
        return "loss"
    if wanted not in LOSS_METRICS and wanted not in METRICS:
        raise ConfigError(f"eval.metric: {unknown_name('metric', wanted, [*LOSS_METRICS, *METRICS, 'auto'])}")
    if wanted in METRICS and not has_answers:
        raise ConfigError(
            f"eval.metric: {wanted} compares answers, and no held-out row has a question to answer. "
            f"Use {' or '.join(LOSS_METRICS)}."
        )
    return wanted


def _row(rows: HeldOut, n: int, base: Score, adapter: Score, scores: dict[str, tuple[float, float]]) -> ComparedRow:
    example = rows.examples[n]
    asked = example.messages if example.messages[0].role == "text" else question(example)
    weight = max(float(base.weight[n]), 1e-9)
    return ComparedRow(
        source=str(example.source),
        question=asked[-1].content if asked else "",
        reference=rows.references.get(n, ""),
        base_answer=base.answers[n],
        adapter_answer=adapter.answers[n],
        base_loss=float(base.nll[n]) / weight,
        adapter_loss=float(adapter.nll[n]) / weight,
        scores=scores,
    )
