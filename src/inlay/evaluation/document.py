"""An evaluation as one JSON document, and its rows beside it: every number of a report can be computed from the two.

`evaluation.json` has models, metrics and comparisons; `evaluation.rows.jsonl` has a line for each row with every model's
answer and statistics. A total is the metric's value of the summed statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from inlay.evaluation.comparison import Comparison
from inlay.evaluation.measured_model import MeasuredModel
from inlay.evaluation.metrics import TextMetric
from inlay.evaluation.row_statistics import RowStatistics
from inlay.evaluation.score import prompt_text
from inlay.evaluation.task_metrics import confusion, labels_of
from inlay.storage import write_file, write_json

SCHEMA = 1
DOCUMENT, ROWS = "evaluation.json", "evaluation.rows.jsonl"


def write_document(
    folder: Path, models: Sequence[MeasuredModel], comparison: Comparison | None, about: Mapping[str, object]
) -> dict[str, object]:
    """Writes both files and gives the document. `about` is put into it as it is."""
    first = models[0]
    document = {
        "schema": SCHEMA,
        "kind": "eval" if comparison is None else "compare",
        **about,
        "n": len(first.rows.examples),
        "rows_file": ROWS,
        "metrics": {name: _described(one) for name, one in first.statistics.items()},
        "models": [_model(one) for one in models],
        "comparisons": [] if comparison is None else [_alone(c) for c in (comparison, *comparison.also)],
    }
    write_json(folder / DOCUMENT, document)
    write_file(folder / ROWS, "".join(_row_lines(models)))
    return document


def _described(statistics: RowStatistics) -> dict[str, object]:
    metric = statistics.metric
    return {
        "description": metric.description,
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature() if isinstance(metric, TextMetric) else None,
        "n": len(statistics.rows),
        "of": "answers" if metric.of_answers else "references",
    }


def _model(one: MeasuredModel) -> dict[str, object]:
    """Name, totals, time and speed; labels and confusion where the references are labels."""
    speed = one.score.speed
    values: dict[str, object] = {
        "name": one.name, "kind": one.facts.kind, "base": one.facts.base,
        "totals": {name: statistics.total for name, statistics in one.statistics.items()},
        "time_s": round(one.score.time_s, 3),
        "speed": None if speed is None else speed.to_json(),
    }  # fmt: skip
    answered = one.answered
    labels = labels_of([one.rows.references[n] for n in answered])
    pairs = [(one.answer(n), one.rows.references[n]) for n in answered]
    return values | ({"labels": list(labels), "confusion": confusion(labels, pairs)} if labels else {})


def _alone(comparison: Comparison) -> dict[str, object]:
    return {key: value for key, value in comparison.to_json().items() if key != "also"}


def _row_lines(models: Sequence[MeasuredModel]) -> list[str]:
    rows = models[0].rows
    places = {name: {n: k for k, n in enumerate(one.rows)} for name, one in models[0].statistics.items()}
    lines = []
    for n, example in enumerate(rows.examples):
        row = {
            "row": n, "source": str(example.source), "question": prompt_text(example),
            "reference": rows.references.get(n),
            "models": [
                {
                    "answer": one.score.answers[n],
                    "statistics": {m: one.statistics[m].values_NS[at[n]].tolist() for m, at in places.items() if n in at},
                }
                for one in models
            ],
        }  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines
