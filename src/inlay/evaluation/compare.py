"""Two measured models on the same rows, compared; and the loss of two trainings."""

from __future__ import annotations

import numpy as np

from inlay.errors import ConfigError, unknown_name
from inlay.evaluation.bootstrap import compare_scores
from inlay.evaluation.comparison import ComparedRow, Comparison
from inlay.evaluation.groups import groups
from inlay.evaluation.measured_model import MeasuredModel
from inlay.evaluation.metrics import LOSS_METRICS, METRICS
from inlay.evaluation.row_pairs import differences, drawn, paired_over_all_rows
from inlay.evaluation.row_statistics import BEHAVIOUR
from inlay.evaluation.score import prompt_text
from inlay.evaluation.style_relevance import LEAST_ROWS, StyleRelevance, relevance, style
from inlay.evaluation.task_metrics import LABEL_METRICS, TASK_METRICS, answer_metric
from inlay.evaluation.verdict import Difference


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


def primary_metric(wanted: str, *, has_answers: bool = True) -> str:
    """The metric that decides the verdict. Raises: ConfigError for one that is unknown or cannot be measured."""
    if wanted == "auto":
        return "loss"
    texts = [*METRICS, *LABEL_METRICS, *TASK_METRICS]
    if wanted not in LOSS_METRICS and wanted not in texts:
        raise ConfigError(f"eval.metric: {unknown_name('metric', wanted, [*LOSS_METRICS, *texts, 'auto'])}")
    if wanted in texts and not has_answers:
        raise ConfigError(
            f"eval.metric: {wanted} compares answers, and no held-out row has a question to answer. "
            f"Use {' or '.join(LOSS_METRICS)}."
        )
    return wanted


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


def loss_difference(
    base: tuple[np.ndarray, np.ndarray],
    adapter: tuple[np.ndarray, np.ndarray],
    resamples: int,
    seed: int,
    examples: np.ndarray | None = None,
) -> Difference:
    """Held-out loss of adapter minus base from two (nll, weight) pairs over the same sequences.

    `examples` names the example of each sequence. The sequences of one are drawn together, as `compare_models` does;
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
