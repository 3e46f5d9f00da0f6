"""Two measured models on the same rows, compared: their rows paired, the difference of every metric, and one verdict.

`compare_models` makes a `Comparison`. `inlay.evaluation.verdict` makes each interval and decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inlay.errors import ConfigError
from inlay.evaluation import summary
from inlay.evaluation.caveats import Caveat
from inlay.evaluation.costs import Bill, bills_json
from inlay.evaluation.measured_model import MeasuredModel, by_scored_rows, clusters_of
from inlay.evaluation.metrics import BEHAVIOUR, LOSS_METRICS, Array, Metric, normalise
from inlay.evaluation.score import EvalSet, GenerationSpeed, prompt_text
from inlay.evaluation.seeds import SeedLevel
from inlay.evaluation.style_relevance import LEAST_ROWS, StyleRelevance, relevance, style
from inlay.evaluation.task_metrics import answer_metric, labels_of, primary_metric
from inlay.evaluation.verdict import Difference, compare_scores, holm, paired_bootstrap
from inlay.typed_json import JsonObject

Pair = tuple[Array, Array, Metric]
"""Statistics of the base and of the other model, a line a row, and their metric."""

_SAME_AS_LOSS = ("perplexity", "bits_per_byte")
"""Other scales of the loss: they test no further hypothesis."""

_MOST_GROUPS = 20
_RESAMPLES = 2000


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
    def adjusted_p(self) -> dict[str, float | None]:
        """Holm's p-values over the metrics; perplexity and bits_per_byte are other scales of the loss and have its p.

        None where too few rows give a p.
        """
        family = {n: d.p for n, d in self.metrics.items() if n not in _SAME_AS_LOSS or "loss" not in self.metrics}
        found = holm(family)
        return {name: found.get(name if name in family else "loss") for name in self.metrics}

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

    def to_json(self) -> JsonObject:
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


def compare_models(
    base: MeasuredModel,
    adapter: MeasuredModel,
    *,
    primary: str,
    resamples: int,
    seed: int,
    available: int,
    per_token: bool = True,
) -> Comparison:
    """`adapter` against `base`, by every metric that was measured; `primary` decides the verdict.

    Models of different tokenizers have no loss per token to compare: then `per_token` is False.
    Raises: ConfigError for a primary metric that was not measured.
    """
    rows = base.rows
    chosen = primary_metric(primary, has_answers=bool(rows.prompt_ids))
    texts = base.text_metrics
    if chosen not in texts and chosen not in LOSS_METRICS:
        raise ConfigError(f"eval.metric: {chosen} does not fit the references of these rows. Use {', '.join(texts)}.")
    losses = [name for name in LOSS_METRICS if per_token or name == "bits_per_byte"]
    behaviour = [name for name in BEHAVIOUR if name in base.statistics]
    found = differences(base, adapter, [*losses, *texts, *behaviour], resamples=resamples, seed=seed)
    answers = chosen if chosen in texts else answer_metric(texts)
    grouped = ["loss" if per_token else "bits_per_byte", *([] if answers is None else [answers])]
    pairs = {name: paired_over_all_rows(base, adapter, name) for name in grouped}
    measures = style_and_relevance(base, adapter, seed)
    similar: dict[str, Difference] = {}
    for one in measures:
        if one.separates:
            pair = {one.metric.name: (one.sides[0], one.sides[1], one.metric)}
            similar |= drawn(pair, rows, base.answered, resamples=resamples, seed=seed)
    return Comparison(
        base.name, adapter.name, chosen, {m: found[m] for m in [*losses, *texts]}, compared_rows(base, adapter),
        tuple(zip(rows.extra_prompts, base.score.extra_answers, adapter.score.extra_answers, strict=False)),
        available, base.score.time_s + adapter.score.time_s, behaviour={m: found[m] for m in behaviour} | similar,
        style_relevance=measures, speed=(base.score.speed, adapter.score.speed),
        groups=groups(rows, pairs, resamples=resamples, seed=seed),
    )  # fmt: skip


def style_and_relevance(base: MeasuredModel, adapter: MeasuredModel, seed: int) -> tuple[StyleRelevance, ...]:
    """Style, and relevance where both have embeddings; nothing where too few rows have answers."""
    answered = base.answered
    if len(answered) < LEAST_ROWS:
        return ()
    references = [base.rows.references[n] for n in answered]
    found = [style(references, [[one.answer(n) for n in answered] for one in (base, adapter)], seed)]
    before, after = base.embeddings, adapter.embeddings
    if before is not None and after is not None:
        prompts, real, *answers = (
            np.stack([part[n] for n in answered])
            for part in (before.prompts, before.references, before.answers, after.answers)
        )
        found.append(relevance(prompts, real, answers, seed))
    return tuple(found)


def compared_rows(base: MeasuredModel, adapter: MeasuredModel) -> tuple[ComparedRow, ...]:
    """Every row with the answer, the loss and the text metrics of both models."""
    rows = base.rows
    scores: list[dict[str, tuple[float, float]]] = [{} for _ in rows.examples]
    for name in base.text_metrics:
        before, after = base.statistics[name], adapter.statistics[name]
        sides = (one.metric.scores(one.values_NS).tolist() for one in (before, after))
        for n, *both in zip(before.rows, *sides, strict=True):
            scores[n][name] = (both[0], both[1])
    return tuple(
        ComparedRow(
            source=str(example.source),
            question=prompt_text(example),
            reference=rows.references.get(n, ""),
            base_answer=base.score.answers[n],
            adapter_answer=adapter.score.answers[n],
            base_loss=_mean_loss(base, base, n),
            adapter_loss=_mean_loss(adapter, base, n),
            scores=scores[n],
        )
        for n, example in enumerate(rows.examples)
    )


def _mean_loss(one: MeasuredModel, base: MeasuredModel, row: int) -> float:
    """Loss per trained token of the base's tokenizer, so that both models have the same divisor."""
    return float(one.score.nll[row]) / max(float(base.score.weight[row]), 1e-9)


def paired_rows(base: MeasuredModel, other: MeasuredModel, metric: str) -> Pair:
    """The statistics of both models for the rows that the metric scores."""
    before, after = base.statistics[metric], other.statistics[metric]
    assert before.rows == after.rows, f"{metric}: {base.name} and {other.name} have different rows"
    return before.values_NS, after.values_NS, before.metric


def paired_over_all_rows(base: MeasuredModel, other: MeasuredModel, metric: str) -> Pair:
    """The same over all rows, NaN where a row is not scored."""
    sides = []
    for one in (base, other):
        found = one.statistics[metric].over_all_rows(len(one.rows.examples))
        found[one.score.weight == 0] = np.nan
        sides.append(found)
    return sides[0], sides[1], base.statistics[metric].metric


def differences(
    base: MeasuredModel, other: MeasuredModel, metrics: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """By metric `other` minus `base`; metrics of the same rows are drawn together."""
    found: dict[str, Difference] = {}
    for names in by_scored_rows(base.statistics, metrics):
        pairs = {name: paired_rows(base, other, name) for name in names}
        found |= drawn(pairs, base.rows, base.statistics[names[0]].rows, resamples=resamples, seed=seed)
    return found


def drawn(
    pairs: Mapping[str, Pair], rows: EvalSet, places: Sequence[int], *, resamples: int, seed: int
) -> dict[str, Difference]:
    """The differences of pairs over the rows at `places`; files are drawn where the rows come from enough of them."""
    clusters = clusters_of(rows)
    picked = None if clusters is None else [clusters[n] for n in places]
    return compare_scores(pairs, resamples=resamples, seed=seed, clusters=picked)


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the rows, compared by themselves."""

    by: str
    """The common property: prompt length, answer length, source or label."""
    name: str
    n: int
    differences: dict[str, Difference]


def groups(rows: EvalSet, pairs: Mapping[str, Pair], *, resamples: int, seed: int) -> tuple[Group, ...]:
    """Every group of at least two rows. Groupings with one group, or too many, are left out."""
    found: list[Group] = []
    for by, names in _groupings(rows):
        members: defaultdict[str, list[int]] = defaultdict(list)
        for n, name in enumerate(names):
            if name is not None:
                members[name].append(n)
        if not 2 <= len(members) <= _MOST_GROUPS:
            continue
        for name in sorted(members, key=_place):
            compared = _compared(members[name], pairs, min(resamples, _RESAMPLES), seed)
            if compared:
                found.append(Group(by, name, len(members[name]), compared))
    return tuple(found)


def _compared(members: Sequence[int], pairs: Mapping[str, Pair], resamples: int, seed: int) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for name, (base, adapter, metric) in pairs.items():
        scored = [n for n in members if np.isfinite(base[n]).all()]
        if len(scored) >= 2:
            found[name] = paired_bootstrap(base[scored], adapter[scored], metric, resamples=resamples, seed=seed)
    return found


def _groupings(rows: EvalSet) -> Iterable[tuple[str, list[str | None]]]:
    """(property, group of each row)."""
    count = len(rows.examples)
    lengths = [len(rows.prompt_ids[n]) if n in rows.prompt_ids else None for n in range(count)]
    trained = np.zeros(count, dtype=int)
    for i, n in enumerate(rows.tokens.examples):
        trained[n] += int((rows.tokens.row(i).weights > 0).sum())
    yield "prompt length", _thirds(lengths)
    yield "answer length", _thirds([int(size) or None for size in trained])
    yield "source", [Path(example.source.file).name for example in rows.examples]
    labels = labels_of([rows.references[n] for n in rows.prompt_ids])
    if labels:
        yield "label", [normalise(rows.references[n]) if n in rows.prompt_ids else None for n in range(count)]


def _thirds(sizes: Sequence[int | None]) -> list[str | None]:
    """Third of the sizes that each is in, named by the tokens it spans."""
    known = sorted(size for size in sizes if size is not None)
    if not known:
        return [None] * len(sizes)
    limits = sorted({known[len(known) * k // 3 - 1] for k in (1, 2, 3)})
    names: dict[int, str] = {}
    for place, limit in enumerate(limits):
        inside = [s for s in known if s <= limit and (place == 0 or s > limits[place - 1])]
        names |= dict.fromkeys(inside, f"{inside[0]} to {limit} tokens" if inside[0] < limit else f"{limit} tokens")
    return [None if size is None else names[size] for size in sizes]


def _place(name: str) -> tuple[int, str]:
    """Lengths from short to long, other names by the alphabet."""
    first = name.split(" ", 1)[0]
    return (int(first), "") if name.endswith(" tokens") and first.isdigit() else (0, name)
