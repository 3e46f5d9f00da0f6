"""Measured models compared: the further ones against the first, their costs, and the reports on disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from inlay.adapters.reference import device_for
from inlay.evaluation.blind import FILE, preference
from inlay.evaluation.caveats import (
    Caveat,
    ChangedSettings,
    DifferentTokenizers,
    ModelCaution,
    NoAnswers,
    RowsLeftOut,
    SeedsOfOneConfig,
    SelectedCheckpoint,
    SeveralModels,
)
from inlay.evaluation.compare import Comparison, compare_models
from inlay.evaluation.costs import Bill, Costs, Prices
from inlay.evaluation.measured_model import MeasuredModel
from inlay.evaluation.metrics import LOSS_METRICS
from inlay.evaluation.report import write_document, write_reports
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.seeds import by_seed, config_and_seed, seed_levels
from inlay.evaluation.verdict import Difference, paired_bootstrap
from inlay.runs import folder as runs
from inlay.runs.guard_events import incidents
from inlay.workflows.measure import EvaluationResult, RetentionSets


def compare_and_report(found: EvaluationResult, where: Path, prices: Prices | None = None) -> Comparison:
    """The comparison, with all its reports written to the folder; with `prices` also the models' costs."""
    comparison = compare_measured(found, where)
    if prices is not None:
        costs = prices.on(device_for(found.config))
        first, *others = (bill(one, costs) for one in found.models)
        every = [replace(c, bills=(first, b)) for c, b in zip((comparison, *comparison.also), others, strict=True)]
        comparison = replace(every[0], also=tuple(every[1:]))
    _write(found, comparison, where)
    return comparison


def add_judgements(found: EvaluationResult, comparison: Comparison, where: Path) -> Comparison:
    """The comparison with the judgements of a blind session in the folder; its reports are written again."""
    every = [replace(one, preference=_preference(found, one, where)) for one in (comparison, *comparison.also)]
    comparison = replace(every[0], also=tuple(every[1:]))
    _write(found, comparison, where)
    return comparison


def compare_measured(found: EvaluationResult, where: Path) -> Comparison:
    """The second model against the first, with those of the further models in `also`.

    Judgements of these answers in a blind comparison are read from `where`, the folder of the reports.
    """
    first, *others = (_against_first(found, one, where) for one in found.models[1:])
    levels = seed_levels(
        found.models, resamples=found.config.eval.resamples, seed=found.config.train.seed,
        per_token=found.one_tokenizer,
    )  # fmt: skip
    return replace(first, also=tuple(others), seeds=levels)


def _against_first(found: EvaluationResult, other: MeasuredModel, where: Path) -> Comparison:
    primary, base = found.config.eval.metric, found.models[0]
    if not found.one_tokenizer and primary in ("auto", "loss", "perplexity"):
        primary = "bits_per_byte"
    resamples, seed = found.config.eval.resamples, found.config.train.seed
    compared = compare_models(
        base, other, primary=primary, resamples=resamples, seed=seed, available=found.available,
        per_token=found.one_tokenizer,
    )  # fmt: skip
    kept = {}
    if found.retention_rows is not None and base.retention is not None and other.retention is not None:
        kept = retention(
            found.retention_sets, found.retention_rows, base.retention, other.retention, resamples=resamples, seed=seed,
            per_token=found.one_tokenizer,
        )  # fmt: skip
    return replace(
        compared, reports=str(where), caveats=caveats(found, other), retention=kept,
        preference=_preference(found, compared, where),
    )  # fmt: skip


def _preference(found: EvaluationResult, comparison: Comparison, where: Path) -> Difference | None:
    if not (where / FILE).exists():  # nobody has judged
        return None
    return preference(comparison, where, resamples=found.config.eval.resamples, seed=found.config.train.seed)


def caveats(found: EvaluationResult, other: MeasuredModel) -> tuple[Caveat, ...]:
    """Facts that weaken the verdict on `other`: those of all models, then its own."""
    listed: list[Caveat] = [ModelCaution(one.facts.caution) for one in found.models if one.facts.caution]
    if found.changed_settings:
        listed.append(ChangedSettings(found.changed_settings))
    if found.left_out:
        listed.append(RowsLeftOut(found.left_out))
    if not found.one_tokenizer:
        listed.append(DifferentTokenizers())
    if found.answers_skipped:
        listed.append(NoAnswers())
    if (count := len(found.models) - 1) > 1:
        listed.append(SeveralModels(count))
    groups = by_seed([config_and_seed(one) for one in found.models])
    with_first = next((places for places in groups if 0 in places), [])
    if with_first:
        listed.append(SeedsOfOneConfig(tuple(found.models[n].name for n in with_first)))
    if other.facts.selected_from:
        listed.append(SelectedCheckpoint(other.facts.selected_from))
    return tuple(listed)


def bill(one: MeasuredModel, costs: Costs) -> Bill:
    """Costs to train, keep and serve a model, as far as they were measured."""
    speed = one.score.speed
    return Bill(
        one.name, costs, None if speed is None else speed.request_s, one.facts.training_s, one.facts.stored_bytes
    )


def reports_folder(found: EvaluationResult, folder: str) -> Path:
    """The folder of the reports: that of the first run among the models, else a new one under `comparisons`."""
    there = Path(folder) / "comparisons"
    lead = next(iter(found.runs.values()), None)
    return lead.reports if lead else there / runs.next_named(there, "comparison")


def _write(found: EvaluationResult, comparison: Comparison, where: Path) -> None:
    """All reports, and `evaluation.json` with its rows."""
    histories = {name: run.metrics for name, run in found.runs.items()}
    write_reports(comparison, where, histories, {name: incidents(run) for name, run in found.runs.items()})
    settings = found.config.eval
    about = {
        "data": {"source": found.data, "available": found.available},
        "settings": {
            "max_rows": settings.max_rows, "batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens,
            "metric": settings.metric, "resamples": settings.resamples, "retention_rows": settings.retention_rows,
            "seed": found.config.train.seed, "greedy": True,
        },
    }  # fmt: skip
    write_document(where, found.models, comparison, about)


def retention(
    sets: RetentionSets,
    rows: EvalSet,
    base: Score,
    adapter: Score,
    *,
    resamples: int,
    seed: int,
    per_token: bool,
) -> dict[str, Difference]:
    """Retention: by set the difference of the loss, in bits per byte where the models have different tokenizers.

    `rows` and the scores are over the rows of all sets, one after the other.
    """
    found, start = {}, 0
    for name, kept in sets.items():
        part = slice(start, start + len(kept))
        start = part.stop
        units = base.weight[part] if per_token else np.maximum(rows.trained_bytes[part], 1)
        fits = (base.weight[part] > 0) & (adapter.weight[part] > 0)  # a row may be too long for a model
        if not fits.any():
            continue
        scale = 1.0 if per_token else math.log(2)
        sides = [np.stack([side.nll[part] / scale, units], 1)[fits] for side in (base, adapter)]
        metric = LOSS_METRICS["loss" if per_token else "bits_per_byte"]
        found[name] = paired_bootstrap(sides[0], sides[1], metric, resamples=resamples, seed=seed)
    return found
