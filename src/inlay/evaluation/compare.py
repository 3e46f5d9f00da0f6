"""Two scores on the same rows: every metric's difference with its interval, and one verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.data.types import Example
from inlay.errors import ConfigError, unknown_name
from inlay.evaluation.answer_failures import BEHAVIOUR, STOPPED
from inlay.evaluation.costs import Bill, bills_json
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.groups import Group, groups
from inlay.evaluation.metrics import LOSS_METRICS, METRICS, Array, Metric, TextMetric
from inlay.evaluation.score import EvalSet, Score, Speed, question
from inlay.evaluation.statistics import MIN_ROWS, Difference, compare_scores, holm
from inlay.evaluation.style_relevance import LEAST_ROWS, Likeness, relevance, style
from inlay.evaluation.task_metrics import KINDS, LABEL_METRICS, answer_metric, metrics_for

if TYPE_CHECKING:
    from inlay.evaluation.seeds import SeedLevel

_SAME_AS_LOSS = ("perplexity", "bits_per_byte")
"""Other scales of the loss: no further question is asked by them."""


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
    behaviour: dict[str, Difference] = field(default_factory=dict)
    """Empty, refusing, repeating and endless answers; empty for documents."""
    likeness: tuple[Likeness, ...] = ()
    """Style and relevance of the answers; those that separate are in `behaviour` too."""
    speed: tuple[Speed | None, Speed | None] = (None, None)
    """How long the answers of both were and how long they took."""
    retention: dict[str, Difference] = field(default_factory=dict)
    """Loss on text that was not trained for, by its name."""
    groups: tuple[Group, ...] = ()
    """The same by length, source and label, for the loss and the metric of the answers."""
    preference: Difference | None = None
    """Shares of the blindly judged rows whose answer a person preferred; None where nobody judged."""
    bills: tuple[Bill, ...] = ()
    """What base and adapter cost; empty where no price was given."""
    seeds: tuple[SeedLevel, ...] = ()
    """Configs of which several seeds are among the models, each as one; on the first comparison only."""
    notes: tuple[str, ...] = ()
    """What weakens the verdict, such as that the model was chosen as the best of several on these rows."""
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
        """The metric that says whether the answers are right; None where nothing was answered."""
        texts = [name for name in self.metrics if name not in LOSS_METRICS]
        return self.primary if self.primary in texts else answer_metric(texts)

    @property
    def headline(self) -> str:
        """The verdict by held-out loss and by the answers, both: a model may predict better and answer no better."""
        name = "loss" if "loss" in self.metrics else "bits_per_byte"
        loss, answers = self.metrics[name], self.answer_metric
        said = [_said(f"held-out {name}", loss)]
        if answers is None:
            return "; ".join([*said, "no answers to judge"])
        found = self.metrics[answers]
        said.append(_said(f"answers by {answers}", found))
        if loss.verdict == found.verdict:
            return "; ".join(said)
        if loss.verdict == "better":
            answers_are = "worse" if found.verdict == "worse" else "no better as far as these rows show"
            said.append(f"so it predicts the references better, and its answers are {answers_are}")
        return "; ".join(said)

    @property
    def preferred(self) -> str:
        """What people said, in a line; empty where nobody judged."""
        if (d := self.preference) is None:
            return ""
        return (
            f"judged blindly: {self.adapter} preferred on {d.wins} of {d.n} rows, {self.base} on {d.losses}, "
            f"{d.ties} alike: {d.verdict} ({d.difference:+.4g} [{d.low:+.4g}, {d.high:+.4g}])"
        )

    @property
    def adjusted_p(self) -> dict[str, float]:
        """Holm's p-values over the metrics; perplexity and bits_per_byte ask what loss asks and have that of loss."""
        family = {n: d.p for n, d in self.metrics.items() if n not in _SAME_AS_LOSS or "loss" not in self.metrics}
        found = holm(family)
        return {name: found.get(name, found.get("loss", d.p)) for name, d in self.metrics.items()}

    @property
    def n(self) -> int:
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
        """By how much the adapter's answer is better in `answer_metric`; 0 where that does not score the row."""
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
            "notes": list(self.notes),
            "reason": self.metrics[self.primary].reason,
            "primary": self.primary,
            "n": self.n,
            "available": self.available,
            "base": self.base,
            "adapter": self.adapter,
            "metrics": {name: difference_json(d) | {"p_holm": adjusted[name]} for name, d in self.metrics.items()},
            "behaviour": {name: difference_json(d) for name, d in self.behaviour.items()},
            "likeness": {one.metric.name: one.to_json() for one in self.likeness},
            "speed": {
                side: None if one is None else one.to_json()
                for side, one in zip(("base", "adapter"), self.speed, strict=True)
            },
            "retention": {name: difference_json(d) for name, d in self.retention.items()},
            "preference": None if self.preference is None else difference_json(self.preference),
            "costs": bills_json(self.bills),
            "seeds": [one.to_json() for one in self.seeds],
            "prompts": [{"prompt": p, "base": b, "adapter": a} for p, b, a in self.prompts],
            "groups": [
                {"by": g.by, "name": g.name, "n": g.n}
                | {"metrics": {name: difference_json(d) for name, d in g.differences.items()}}
                for g in self.groups
            ],
            "worst": [row_json(r) for r in self.regressions[:5]],
            "worst_answers": [row_json(r) for r in self.worse_answers[:5]],
            "time_s": round(self.time_s, 3),
            "also": [one.to_json() for one in self.also],
        }


def _said(what: str, d: Difference) -> str:
    return f"{what}: {d.verdict} ({d.difference:+.4g} [{d.low:+.4g}, {d.high:+.4g}])"


def row_json(r: ComparedRow) -> dict[str, Any]:
    """A row with both answers as JSON."""
    values: dict[str, Any] = {"source": r.source, "question": r.question, "reference": r.reference}
    values |= {"base": r.base_answer, "adapter": r.adapter_answer}
    return values | {"base_loss": r.base_loss, "adapter_loss": r.adapter_loss}


def difference_json(d: Difference) -> dict[str, Any]:
    """A difference as JSON; `mde` is null where no two rows differ."""
    values: dict[str, Any] = {"base": d.base, "adapter": d.other, "difference": d.difference}
    values |= {"low": d.low, "high": d.high, "level": d.level}
    values |= {"wins": d.wins, "ties": d.ties, "losses": d.losses, "n": d.n, "clusters": d.clusters, "seeds": d.seeds}
    values |= {"standard_error": d.standard_error, "mde": d.mde, "p": d.p, "test": d.test}
    return values | {"verdict": d.verdict, "reason": d.reason}


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


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's answers as statistics: what every number of a report is computed from."""

    score: Score
    statistics: dict[str, Array]
    """(rows, S) by metric: over all rows for the loss, else over `covered` rows."""


def text_metrics(rows: EvalSet, wanted: MetricSpecs = ()) -> dict[str, TextMetric]:
    """The metrics of these rows' references; none where nothing is asked. Raises: ConfigError as `metrics_for`."""
    return metrics_for([rows.references[n] for n in rows.asked], wanted) if rows.asked else {}


def covered(metric: Metric, rows: EvalSet) -> list[int]:
    """The rows that the metric scores."""
    if not metric.of_answers:
        return list(range(len(rows.examples)))
    return [n for n in rows.asked if not isinstance(metric, TextMetric) or metric.covers(rows.references[n])]


def measured_metrics(rows: EvalSet, texts: Mapping[str, TextMetric]) -> dict[str, Metric]:
    """All that `measure` gives statistics of."""
    behaviour: dict[str, Metric] = {**BEHAVIOUR, STOPPED.name: STOPPED} if rows.asked else {}
    return {**LOSS_METRICS, **texts, **behaviour}


def measure(rows: EvalSet, scored: Score, texts: Mapping[str, TextMetric]) -> Measured:
    """The statistics of every one of `measured_metrics`."""
    found: dict[str, Array] = {}
    for name, metric in measured_metrics(rows, texts).items():
        places = covered(metric, rows)
        if isinstance(metric, TextMetric):
            answers = [(scored.answers[n] or "", rows.references[n]) for n in places]
            found[name] = np.stack([metric.statistics(*pair) for pair in answers])
        elif metric is STOPPED:
            found[name] = np.array([[float(scored.stopped[n]), 1.0] for n in places])
        else:
            found[name] = np.stack(_of_references(name, rows, scored), 1)
    return Measured(scored, found)


def _of_references(name: str, rows: EvalSet, scored: Score) -> tuple[Array, Array]:
    """The two statistics of one of LOSS_METRICS, (N,) each."""
    if name == "bits_per_byte":
        return scored.nll / math.log(2), np.maximum(rows.trained_bytes, 1)
    return scored.hits if name == "token_accuracy" else scored.nll, scored.weight


def totals(rows: EvalSet, scored: Score, wanted: MetricSpecs = ()) -> dict[str, float]:
    """Every metric of one model over all rows."""
    metrics = text_metrics(rows, wanted)
    found = measure(rows, scored, metrics).statistics
    return {name: float(metric.value(found[name].sum(0))) for name, metric in (LOSS_METRICS | metrics).items()}


def clusters_of(rows: EvalSet) -> list[str] | None:
    """The source file of each row where there are enough files to draw files, else None: rows are drawn."""
    files = [e.source.file for e in rows.examples]
    return files if MIN_ROWS <= len(set(files)) < len(files) else None


def compare_pair(
    rows: EvalSet,
    base: Score,
    adapter: Score,
    *,
    primary: str,
    resamples: int,
    seed: int,
    available: int,
    wanted: MetricSpecs = (),
    per_token: bool = True,
    meaning: Meaning | None = None,
) -> Comparison:
    """`adapter` against `base` on the same rows, by the metrics `wanted` or those that the references call for.

    Models of different tokenizers have no loss per token to compare: then `per_token` is False. Without `meaning`
    relevance is not measured.

    Raises: ConfigError for a primary metric that was not measured.
    """
    chosen = primary_metric(primary, has_answers=bool(rows.asked))
    texts = text_metrics(rows, [*wanted, *([chosen] if wanted and chosen not in LOSS_METRICS else [])])
    if chosen not in texts and chosen not in LOSS_METRICS:
        raise ConfigError(f"eval.metric: {chosen} does not fit the references of these rows. Use {', '.join(texts)}.")
    sides = measure(rows, base, texts), measure(rows, adapter, texts)
    losses = {m: v for m, v in LOSS_METRICS.items() if per_token or m == "bits_per_byte"}
    behaviour = [name for name in measured_metrics(rows, {}) if name not in LOSS_METRICS]
    everything = {m: v for m, v in measured_metrics(rows, texts).items() if m in losses or m not in LOSS_METRICS}
    clusters = clusters_of(rows)
    found: dict[str, Difference] = {}
    for names in same_rows(everything, rows):
        metric_pairs = {m: (sides[0].statistics[m], sides[1].statistics[m], everything[m]) for m in names}
        places = covered(everything[names[0]], rows)
        drawn = None if clusters is None else [clusters[n] for n in places]
        found |= compare_scores(metric_pairs, resamples=resamples, seed=seed, clusters=drawn)
    likeness = likenesses(rows, (base, adapter), meaning, seed)
    for one in likeness:
        if one.separates:
            drawn = None if clusters is None else [clusters[n] for n in rows.asked]
            pair = {one.metric.name: (one.sides[0], one.sides[1], one.metric)}
            found |= compare_scores(pair, resamples=resamples, seed=seed, clusters=drawn)
            behaviour.append(one.metric.name)
    scores: dict[int, dict[str, tuple[float, float]]] = {n: {} for n in range(len(rows.examples))}
    for name, metric in texts.items():
        a, b = (metric.scores(side.statistics[name]) for side in sides)
        for k, n in enumerate(covered(metric, rows)):
            scores[n][name] = (float(a[k]), float(b[k]))
    compared = tuple(_row(rows, n, base, adapter, scores[n]) for n in scores)
    prompts = tuple(zip(rows.prompts, base.prompt_answers, adapter.prompt_answers, strict=False))
    made = Comparison(
        base.name, adapter.name, chosen, {m: found[m] for m in [*losses, *texts]}, compared, prompts, available,
        base.time_s + adapter.time_s, behaviour={m: found[m] for m in behaviour},
        likeness=likeness, speed=(base.speed, adapter.speed),
    )  # fmt: skip
    named = [name for name in ("loss" if per_token else "bits_per_byte", made.answer_metric) if name is not None]
    pairs = {}
    for name in named:
        before, after = (_over_all_rows(name, everything[name], side, rows) for side in sides)
        pairs[name] = (before, after, everything[name])
    return replace(made, groups=groups(rows, pairs, resamples=resamples, seed=seed))


@dataclass(frozen=True, slots=True)
class Meaning:
    """Questions, references and both models' answers as hidden states of one base: by row, (depths, width)."""

    questions: Mapping[int, Array]
    references: Mapping[int, Array]
    answers: tuple[Mapping[int, Array], Mapping[int, Array]]


def likenesses(rows: EvalSet, sides: tuple[Score, Score], meaning: Meaning | None, seed: int) -> tuple[Likeness, ...]:
    """Style and, with `meaning`, relevance; nothing where too few rows are asked to tell whether they separate."""
    if len(rows.asked) < LEAST_ROWS:
        return ()
    answers = [[one.answers[n] or "" for n in rows.asked] for one in sides]
    found = [style([rows.references[n] for n in rows.asked], answers, seed)]
    if meaning is not None:
        questions, references, *said = (
            np.stack([part[n] for n in rows.asked])
            for part in (meaning.questions, meaning.references, *meaning.answers)
        )
        found.append(relevance(questions, references, said, seed))
    return tuple(found)


def _over_all_rows(name: str, metric: Metric, side: Measured, rows: EvalSet) -> Array:
    """(N, S) statistics with NaN where a row is not scored."""
    found = np.full((len(rows.examples), metric.size), np.nan)
    found[covered(metric, rows)] = side.statistics[name]
    found[side.score.weight == 0] = np.nan
    return found


def same_rows(metrics: Mapping[str, Metric], rows: EvalSet) -> list[list[str]]:
    """The metrics in groups that score the same rows: each group is drawn together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, metric in metrics.items():
        groups.setdefault(tuple(covered(metric, rows)), []).append(name)
    return list(groups.values())


def primary_metric(wanted: str, *, has_answers: bool = True) -> str:
    """The metric that decides the verdict. Raises: ConfigError for one that is unknown or cannot be measured."""
    if wanted == "auto":
        return "loss"
    texts = [*METRICS, *LABEL_METRICS, *KINDS]
    if wanted not in LOSS_METRICS and wanted not in texts:
        raise ConfigError(f"eval.metric: {unknown_name('metric', wanted, [*LOSS_METRICS, *texts, 'auto'])}")
    if wanted in texts and not has_answers:
        raise ConfigError(
            f"eval.metric: {wanted} compares answers, and no held-out row has a question to answer. "
            f"Use {' or '.join(LOSS_METRICS)}."
        )
    return wanted


def shown_question(example: Example) -> str:
    """The turn that is answered; the text of a plain document."""
    asked = example.messages if example.messages[0].role == "text" else question(example)
    return asked[-1].content if asked else ""


def _row(rows: EvalSet, n: int, base: Score, adapter: Score, scores: dict[str, tuple[float, float]]) -> ComparedRow:
    example = rows.examples[n]
    weight = max(float(base.weight[n]), 1e-9)
    return ComparedRow(
        source=str(example.source),
        question=shown_question(example),
        reference=rows.references.get(n, ""),
        base_answer=base.answers[n],
        adapter_answer=adapter.answers[n],
        base_loss=float(base.nll[n]) / weight,
        adapter_loss=float(adapter.nll[n]) / weight,
        scores=scores,
    )
