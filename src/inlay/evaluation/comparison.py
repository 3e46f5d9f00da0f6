"""A comparison as values: every metric's difference with its interval, the rows, and one verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inlay.evaluation import summary
from inlay.evaluation.caveats import Caveat
from inlay.evaluation.costs import Bill, bills_json
from inlay.evaluation.groups import Group
from inlay.evaluation.metrics import LOSS_METRICS
from inlay.evaluation.p_values import holm
from inlay.evaluation.score import GenerationSpeed
from inlay.evaluation.seeds import SeedLevel
from inlay.evaluation.style_relevance import StyleRelevance
from inlay.evaluation.task_metrics import answer_metric
from inlay.evaluation.verdict import Difference

_SAME_AS_LOSS = ("perplexity", "bits_per_byte")
"""Other scales of the loss: they test no further hypothesis."""


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

    def to_json(self) -> dict[str, object]:
        """Texts, both answers and both losses."""
        return {
            "source": self.source, "question": self.question, "reference": self.reference,
            "base": self.base_answer, "adapter": self.adapter_answer,
            "base_loss": self.base_loss, "adapter_loss": self.adapter_loss,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against another on the same rows: the difference of every metric, and the verdict by the primary one."""

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
    behaviour: dict[str, Difference] = field(default_factory=dict)
    """Shares of empty, refusing, repeating and endless answers; none without answers."""
    style_relevance: tuple[StyleRelevance, ...] = ()
    """Style and relevance of the answers; those that separate are in `behaviour` too."""
    speed: tuple[GenerationSpeed | None, GenerationSpeed | None] = (None, None)
    """Length and time of the answers of both; None where none were generated."""
    retention: dict[str, Difference] = field(default_factory=dict)
    """Loss on text that neither was trained for, by its name."""
    groups: tuple[Group, ...] = ()
    """The same by length, source and label, for the loss and the metric of the answers."""
    preference: Difference | None = None
    """Shares of the blindly judged rows whose answer a person preferred; None where nobody judged."""
    bills: tuple[Bill, ...] = ()
    """Costs of base and adapter; empty where no price was given."""
    seeds: tuple[SeedLevel, ...] = ()
    """Configs of which several seeds are among the models, each as one; on the first comparison only."""
    caveats: tuple[Caveat, ...] = ()
    """Facts that weaken the verdict, such as a checkpoint that was selected on these rows."""
    reports: str = ""
    """Folder of its reports, once they are written."""
    also: tuple[Comparison, ...] = ()
    """Further models against the same base on the same rows, in the order named."""

    @property
    def verdict(self) -> str:
        """better, worse, or not distinguishable; by the primary metric."""
        return self.metrics[self.primary].verdict

    @property
    def answer_metric(self) -> str | None:
        """The metric that measures whether the answers are right; None without answers."""
        texts = [name for name in self.metrics if name not in LOSS_METRICS]
        return self.primary if self.primary in texts else answer_metric(texts)

    @property
    def loss_metric(self) -> str:
        """loss, or bits_per_byte where the models have different tokenizers."""
        return "loss" if "loss" in self.metrics else "bits_per_byte"

    @property
    def headline(self) -> str:
        """The verdict by loss and by answers, as a sentence."""
        name = self.answer_metric
        answers = None if name is None else self.metrics[name]
        return summary.headline(self.loss_metric, self.metrics[self.loss_metric], name, answers)

    @property
    def adjusted_p(self) -> dict[str, float]:
        """Holm's p-values over the metrics; perplexity and bits_per_byte are other scales of the loss and have its p."""
        family = {n: d.p for n, d in self.metrics.items() if n not in _SAME_AS_LOSS or "loss" not in self.metrics}
        found = holm(family)
        return {name: found.get(name, found.get("loss", d.p)) for name, d in self.metrics.items()}

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def regressions(self) -> list[ComparedRow]:
        """Rows that the adapter made worse by loss, worst first."""
        worse = [r for r in self.rows if r.adapter_loss > r.base_loss]
        return sorted(worse, key=lambda r: r.base_loss - r.adapter_loss)

    @property
    def worse_answers(self) -> list[ComparedRow]:
        """Rows that the adapter answers worse, worst first; of equal ones those whose loss rose most."""
        worse = [r for r in self.rows if self.gain(r) < 0]
        return sorted(worse, key=lambda r: (self.gain(r), r.base_loss - r.adapter_loss))

    def gain(self, row: ComparedRow) -> float:
        """Improvement of the adapter's answer in `answer_metric`; 0 where that does not score the row."""
        name = self.answer_metric
        if name is None or name not in row.scores:
            return 0.0
        before, after = row.scores[name]
        return after - before if self.metrics[name].higher_is_better else before - after

    def to_json(self) -> dict[str, Any]:
        """The value that `compare --json` prints."""
        adjusted = self.adjusted_p
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "answer_metric": self.answer_metric,
            "notes": [summary.caveat_text(one) for one in self.caveats],
            "reason": self.metrics[self.primary].reason,
            "primary": self.primary,
            "n": self.n,
            "available": self.available,
            "base": self.base,
            "adapter": self.adapter,
            "metrics": {name: d.to_json() | {"p_holm": adjusted[name]} for name, d in self.metrics.items()},
            "behaviour": {name: d.to_json() for name, d in self.behaviour.items()},
            "likeness": {one.metric.name: one.to_json() for one in self.style_relevance},
            "speed": {
                side: None if one is None else one.to_json()
                for side, one in zip(("base", "adapter"), self.speed, strict=True)
            },
            "retention": {name: d.to_json() for name, d in self.retention.items()},
            "preference": None if self.preference is None else self.preference.to_json(),
            "costs": bills_json(self.bills),
            "seeds": [one.to_json() for one in self.seeds],
            "prompts": [{"prompt": p, "base": b, "adapter": a} for p, b, a in self.prompts],
            "groups": [
                {"by": g.by, "name": g.name, "n": g.n}
                | {"metrics": {name: d.to_json() for name, d in g.differences.items()}}
                for g in self.groups
            ],
            "worst": [r.to_json() for r in self.regressions[:5]],
            "worst_answers": [r.to_json() for r in self.worse_answers[:5]],
            "time_s": round(self.time_s, 3),
            "also": [one.to_json() for one in self.also],
        }
