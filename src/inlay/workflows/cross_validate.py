"""k-fold cross-validation: one run a fold, every row scored by the adapter that never saw it, and one verdict.

The runs lie side by side in one folder and are resumed like any other, so a validation that was cut off goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters import reference
from inlay.config import Config
from inlay.data.prepare import require_folds
from inlay.errors import ConfigError, DataError
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.storage import write_json
from inlay.typed_json import JsonObject
from inlay.workflows import compare, measure, train

if TYPE_CHECKING:
    from inlay.evaluation.verdict import Difference
    from inlay.workflows.measure import EvaluationResult

RESULT = "folds.json"
_NOTES = (
    "every fold's adapter is that of its last step, so nothing was chosen on the rows that judge it.",
    "the folds share most of their training rows: the interval speaks of these rows; the spread between folds is a first "
    "sign of what other training rows would do.",
)


@dataclass(frozen=True, slots=True)
class FoldedMetric:
    """One metric over all held-out rows together, and its mean and standard deviation over the folds."""

    pooled: Difference
    mean: float
    """Of the adapter's score."""
    spread: float
    mean_difference: float
    """Of the adapter's score minus the base's."""
    spread_difference: float

    def to_json(self) -> JsonObject:
        """The entry of `metrics` in folds.json."""
        return {
            "pooled": self.pooled.to_json(), "mean": self.mean, "spread": self.spread,
            "mean_difference": self.mean_difference, "spread_difference": self.spread_difference,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fold:
    """The run of one fold against the base, on the rows that it did not train on."""

    run: str
    n: int
    """Held-out rows."""
    verdict: str
    metrics: Mapping[str, Difference]

    def to_json(self) -> JsonObject:
        """The entry of `per_fold` in folds.json."""
        metrics = {name: one.to_json() for name, one in self.metrics.items()}
        return {"run": self.run, "n": self.n, "verdict": self.verdict, "metrics": metrics}


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Every fold, every metric over all rows, and one verdict."""

    folder: str
    available: int
    """Held-out rows before `eval.max_rows` drew some of them."""
    primary: str
    """The metric that decides the verdict."""
    decided: Difference
    """Of the primary metric, over all rows."""
    metrics: Mapping[str, FoldedMetric]
    per_fold: list[Fold]
    notes: list[str]

    @property
    def rows(self) -> int:
        """Rows that were held out once."""
        return sum(fold.n for fold in self.per_fold)

    def to_json(self) -> JsonObject:
        """The JSON object of folds.json and `--json`."""
        return {
            "folds": len(self.per_fold), "folder": self.folder, "rows": self.rows, "available": self.available,
            "primary": self.primary, "verdict": self.decided.verdict, "reason": self.decided.reason,
            "metrics": {name: one.to_json() for name, one in self.metrics.items()},
            "per_fold": [fold.to_json() for fold in self.per_fold],
            "notes": self.notes,
        }  # fmt: skip


def cross_validate(config: Config, count: int, metrics: Sequence[str], reporter: Reporter) -> CrossValidation:
    """See `inlay.api.cross_validate`."""
    if count < 2:
        raise ConfigError(f"--folds {count}: at least two parts are needed, so that each can be held out once.")
    if config.data.eval is not None:
        raise ConfigError("--folds: every row is held out once, so data.eval has no place here. Leave it out.")
    require_folds(config.data, count)
    folder = Path(config.output.folder) / f"{config.output.name or runs.stem(config)}-folds-{count}"
    names = [f"fold-{part}" for part in range(1, count + 1)]
    found, request = [], measure.EvaluationRequest(metrics=metrics)
    for part, name in enumerate(names, 1):
        titled = _Titled(reporter, f"{name} of {count}")
        run = train.train(_of_part(config, folder, name, f"{part}/{count}"), True, False, titled, None)
        one = reference.reference(run, str(folder))
        found.append(measure.measure_models([one.without_adapter(), one], request, reporter))
    compared = [
        compare.compare_and_report(one, Run(folder / name).reports) for one, name in zip(found, names, strict=True)
    ]
    primary = compared[0].primary
    pooled = _pooled(found, [*metrics, primary] if metrics else ())
    if primary not in pooled:
        raise DataError(
            f"{config.data.train_name}: a fold has no held-out row that {primary} scores. Fewer folds, more such rows, or "
            "another eval.metric. Its runs are kept."
        )
    shared = [name for name in pooled if all(name in one.metrics for one in compared)]
    result = CrossValidation(
        folder=str(folder),
        available=sum(one.available for one in compared),
        primary=primary,
        decided=pooled[primary],
        metrics={name: _over_folds(pooled[name], [one.metrics[name] for one in compared]) for name in shared},
        per_fold=[
            Fold(str(folder / name), one.n, one.verdict, {metric: one.metrics[metric] for metric in shared})
            for name, one in zip(names, compared, strict=True)
        ],
        notes=list(_NOTES),
    )
    write_json(folder / RESULT, result.to_json())
    return result


class _Titled:
    """Passes everything on, with a note before the first table: what is refused before it was not begun."""

    def __init__(self, inner: Reporter, title: str) -> None:
        self._inner, self._title = inner, title
        self.stage, self.start, self.progress = inner.stage, inner.start, inner.progress
        self.note, self.end = inner.note, inner.end

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        if self._title:
            self._inner.note(self._title)
            self._title = ""
        self._inner.block(title, rows)


def _of_part(config: Config, folder: Path, name: str, part: str) -> Config:
    data = config.data.model_copy(update={"fold": part})
    output = config.output.model_copy(update={"folder": str(folder), "name": name})
    return train.without_selection(config.model_copy(update={"data": data, "output": output}))


def _pooled(found: Sequence[EvaluationResult], wanted: Sequence[str]) -> dict[str, Difference]:
    """Adapter minus base of every metric that scores rows of each fold, over the held-out rows of all folds together."""
    import numpy as np

    from inlay.evaluation.compare import Pair
    from inlay.evaluation.measured_model import row_statistics
    from inlay.evaluation.metrics import LOSS_METRICS
    from inlay.evaluation.task_metrics import metrics_for
    from inlay.evaluation.verdict import compare_scores

    references = [one.rows.references[n] for one in found for n in one.rows.prompt_ids]
    texts = metrics_for(references, wanted) if references else {}
    sides = [[row_statistics(one.rows, one.models[side].score, texts) for one in found] for side in (0, 1)]
    settings = found[0].config
    scoring = {name: m for name, m in {**LOSS_METRICS, **texts}.items() if all(name in fold for fold in sides[0])}
    groups: dict[tuple[tuple[int, ...], ...], dict[str, Pair]] = {}
    for name, metric in scoring.items():
        scored = tuple(fold[name].rows for fold in sides[0])
        pair = [np.concatenate([fold[name].values_NS for fold in side]) for side in sides]
        groups.setdefault(scored, {})[name] = (pair[0], pair[1], metric)
    result: dict[str, Difference] = {}
    for pairs in groups.values():
        result |= compare_scores(pairs, resamples=settings.eval.resamples, seed=settings.train.seed)
    return {name: result[name] for name in scoring}


def _over_folds(pooled: Difference, found: Sequence[Difference]) -> FoldedMetric:
    scores, changes = [d.other for d in found], [d.difference for d in found]
    return FoldedMetric(
        pooled=pooled,
        mean=statistics.fmean(scores),
        spread=statistics.stdev(scores),
        mean_difference=statistics.fmean(changes),
        spread_difference=statistics.stdev(changes),
    )
