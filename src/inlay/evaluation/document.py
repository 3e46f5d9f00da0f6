"""A measurement as one JSON document, and its rows beside it: every number of a report can be computed from the two.

`evaluation.json` says what was measured and found; `evaluation.rows.jsonl` has a line for each row with every model's
answer and statistics. A total is the metric's value of the summed statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.evaluation.compare import (
    Comparison,
    Measured,
    covered,
    measure,
    measured_metrics,
    shown_question,
    text_metrics,
)
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.metrics import Metric, TextMetric
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.task_metrics import confusion, labels_of
from inlay.storage import write_file, write_json

SCHEMA = 1
DOCUMENT, ROWS = "evaluation.json", "evaluation.rows.jsonl"


def write_document(
    folder: Path,
    models: Sequence[Mapping[str, Any]],
    rows: Sequence[EvalSet],
    scores: Sequence[Score],
    comparison: Comparison | None,
    about: Mapping[str, Any],
    wanted: MetricSpecs = (),
) -> dict[str, Any]:
    """Writes both files and gives the document. `models` and `about` are put into it as they are."""
    texts = text_metrics(rows[0], wanted)
    metrics = measured_metrics(rows[0], texts)
    sides = [measure(row, scored, texts) for row, scored in zip(rows, scores, strict=True)]
    document = {
        "schema": SCHEMA,
        "kind": "eval" if comparison is None else "compare",
        **about,
        "n": len(rows[0].examples),
        "rows_file": ROWS,
        "metrics": {name: _described(metric, rows[0]) for name, metric in metrics.items()},
        "models": [
            dict(model) | _totals(side, metrics) | _labels(rows[0], side.score)
            for model, side in zip(models, sides, strict=True)
        ],
        "comparisons": [] if comparison is None else [_alone(c) for c in (comparison, *comparison.also)],
    }
    write_json(folder / DOCUMENT, document)
    write_file(folder / ROWS, "".join(_row_lines(rows, sides, metrics)))
    return document


def _described(metric: Metric, rows: EvalSet) -> dict[str, Any]:
    return {
        "description": metric.description,
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature() if isinstance(metric, TextMetric) else None,
        "n": len(covered(metric, rows)),
        "of": "answers" if metric.of_answers else "references",
    }


def _totals(side: Measured, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    values = {name: float(metric.value(side.statistics[name].sum(0))) for name, metric in metrics.items()}
    speed = side.score.speed
    return {
        "totals": values,
        "time_s": round(side.score.time_s, 3),
        "speed": None if speed is None else speed.to_json(),
    }


def _labels(rows: EvalSet, scored: Score) -> dict[str, Any]:
    """Labels and confusion where the references are labels."""
    labels = labels_of([rows.references[n] for n in rows.asked])
    pairs = [(scored.answers[n] or "", rows.references[n]) for n in rows.asked]
    return {"labels": list(labels), "confusion": confusion(labels, pairs)} if labels else {}


def _alone(comparison: Comparison) -> dict[str, Any]:
    return {key: value for key, value in comparison.to_json().items() if key != "also"}


def _row_lines(rows: Sequence[EvalSet], sides: Sequence[Measured], metrics: Mapping[str, Metric]) -> list[str]:
    first = rows[0]
    places = {name: {n: k for k, n in enumerate(covered(metric, first))} for name, metric in metrics.items()}
    lines = []
    for n, example in enumerate(first.examples):
        models = [
            {
                "answer": side.score.answers[n],
                "statistics": {m: side.statistics[m][at[n]].tolist() for m, at in places.items() if n in at},
            }
            for side in sides
        ]
        row = {"row": n, "source": str(example.source), "question": shown_question(example)}
        row |= {"reference": first.references.get(n), "models": models}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines
