"""Metrics that a kind of answer calls for: labels, numbers, JSON, Python. Which of them apply is read off the references.

Each covers the rows whose reference is of its kind; a row of another kind is not scored by it.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import numpy as np

from inlay.errors import ConfigError, unknown_name
from inlay.evaluation.custom import MetricSpecs, custom_metric, from_file, is_file
from inlay.evaluation.metrics import LOSS_METRICS, METRICS, Array, TextMetric, normalise, ratio

_MOST_LABELS, _ROWS_PER_LABEL, _LONGEST_LABEL = 50, 3, 40
_SHARE = 0.5
"""A metric is taken by itself where at least this share of the references is of its kind."""

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|-?\.\d+")
_MISSING = object()


# --- labels --------------------------------------------------------------------------------------------------


def labels_of(references: Sequence[str]) -> tuple[str, ...]:
    """The classes, normalised and sorted, when the references are labels: short, and each on average three times."""
    found = Counter(map(normalise, references))
    most = min(_MOST_LABELS, len(references) // _ROWS_PER_LABEL)
    short = all(0 < len(label) <= _LONGEST_LABEL and len(label.split()) <= 5 for label in found)
    return tuple(sorted(found)) if short and 2 <= len(found) <= most else ()


def confusion(labels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Counts of (prediction, reference): a line for each true label, a column for each predicted one and, last, for
    an answer that is no label."""
    place = {label: n for n, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for prediction, reference in pairs:
        counts[place[normalise(reference)], place.get(normalise(prediction), len(labels))] += 1
    return [[int(n) for n in line] for line in counts]


def _label_statistics(labels: tuple[str, ...], prediction: str, reference: str) -> Array:
    """(3L,) right, predicted and expected, each by label."""
    counts = np.zeros((3, len(labels)))
    place = {label: n for n, label in enumerate(labels)}
    predicted, expected = place.get(normalise(prediction)), place[normalise(reference)]
    counts[2, expected] = 1
    if predicted is not None:
        counts[1, predicted] = 1
        counts[0, predicted] = predicted == expected
    return counts.ravel()


def _macro_f1(statistics: Array) -> Array:
    """Mean F1 over the labels that occur in the references or the predictions."""
    right, predicted, expected = np.split(statistics, 3, axis=-1)
    present = (predicted + expected) > 0
    f1 = np.divide(2 * right, predicted + expected, out=np.zeros_like(right), where=present)
    return np.asarray(f1.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def _accuracy(statistics: Array) -> Array:
    right, _, expected = np.split(statistics, 3, axis=-1)
    return np.asarray(right.sum(axis=-1) / np.maximum(expected.sum(axis=-1), 1))


def _label_metrics(labels: tuple[str, ...]) -> dict[str, TextMetric]:
    def right(prediction: str, reference: str) -> Array:
        return _one(normalise(prediction) == normalise(reference))

    return {
        "accuracy": _share("accuracy", f"share of rows with the right one of {len(labels)} labels; 0..1",
                           right, "norm:nfkc+casefold+space"),
        "macro_f1": TextMetric(
            name="macro_f1",
            higher_is_better=True,
            description=f"mean over {len(labels)} labels of the F1 of each; 0..1",
            size=3 * len(labels),
            value=_macro_f1,
            row_value=_accuracy,
            statistics=partial(_label_statistics, labels),
            signature=lambda: "macro-f1|labels:references|zero-division:0",
        ),
    }  # fmt: skip


# --- numbers, JSON, Python -----------------------------------------------------------------------------------


def final_number(text: str) -> Decimal | None:
    """The number after the last `####` (GSM8K), else the last number in the text; thousands commas are dropped."""
    _, mark, after = text.rpartition("####")
    found = _NUMBER.findall(after if mark else text)
    picked = found[0] if mark and found else found[-1] if found else None
    try:
        return None if picked is None else Decimal(picked.replace(",", ""))
    except InvalidOperation:
        return None


def is_numeric(reference: str) -> bool:
    """True for a reference that is a number, or ends in `#### number`."""
    if "####" in reference:
        return final_number(reference) is not None
    return _NUMBER.fullmatch(reference.strip().lstrip("$€£").rstrip("%.")) is not None


def fenced(text: str, *languages: str) -> str | None:
    """The code blocks of one of the languages, joined; None when there is none."""
    blocks = [body for name, body in _FENCE.findall(text) if name.lower() in languages]
    return "\n".join(blocks) if blocks else None


def json_value(text: str) -> Any:
    """The JSON value that the text, or its ```json block, is; a marker that equals nothing when it is none."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    block = fenced(text, "json", "")
    try:
        return json.loads(text if block is None else block, parse_constant=refuse)
    except (ValueError, RecursionError):
        return _MISSING


def json_shape(value: Any) -> Any:
    """The value with each leaf replaced by its type: keys, nesting and kinds, not lengths of lists."""
    if isinstance(value, dict):
        return {key: json_shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        shapes = [json_shape(inner) for inner in value]
        return ["list", *sorted({json.dumps(s, sort_keys=True) for s in shapes})]
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, (int, float)) else "null" if value is None else "string"


def _same_json(left: Any, right: Any) -> bool:
    # 1 and 1.0 are one JSON number, 1 and true are not
    return bool(left == right) and bool(json_shape(left) == json_shape(right))


def python_code(text: str) -> str | None:
    """The Python in a text: its ```python blocks, or all of the text where it reads as a program."""
    block = fenced(text, "python", "py", "python3")
    if block is None and "```" not in text and re.search(r"^\s*(def|class|import|from|return|print)\b", text, re.M):
        return text
    return block


def parses(code: str | None) -> bool:
    """True for Python with at least one statement."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence" is the answer's matter
            return code is not None and bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _one(score: bool | float) -> Array:
    return np.array([float(score), 1.0])


def _share(name: str, description: str, statistics: Callable[[str, str], Array], signature: str,
           covers: Callable[[str], bool] = lambda reference: True) -> TextMetric:  # fmt: skip
    return TextMetric(
        name=name, higher_is_better=True, description=description, size=2, value=ratio,
        statistics=statistics, signature=lambda: signature, covers=covers,
    )  # fmt: skip


def _is_json(reference: str) -> bool:
    return isinstance(json_value(reference), (dict, list))


def _is_python(reference: str) -> bool:
    return parses(python_code(reference))


def _number_match(prediction: str, reference: str) -> Array:
    found = final_number(prediction)
    return _one(found is not None and found == final_number(reference))


TASK_METRICS: dict[str, TextMetric] = {
    "number_match": _share(
        "number_match", "share of rows whose final number is the reference's; 0..1",
        _number_match, "after:####|else:last|commas:dropped|exact-decimal", is_numeric,
    ),
    "json_valid": _share(
        "json_valid", "share of answers that are one JSON value; 0..1",
        lambda p, r: _one(json_value(p) is not _MISSING), "rfc8259|fence:json", _is_json,
    ),
    "json_schema": _share(
        "json_schema", "share of answers with the reference's keys, nesting and types; 0..1",
        lambda p, r: _one(json_value(p) is not _MISSING and json_shape(json_value(p)) == json_shape(json_value(r))),
        "keys+types:all|list-length:free", _is_json,
    ),
    "json_match": _share(
        "json_match", "share of answers that are the same JSON value as the reference; 0..1",
        lambda p, r: _one(_same_json(json_value(p), json_value(r))), "value-equal|key-order:free", _is_json,
    ),
    "python_parses": _share(
        "python_parses", "share of answers whose Python parses; 0..1",
        lambda p, r: _one(parses(python_code(p))), "ast.parse|fence:python", _is_python,
    ),
}  # fmt: skip
"""Metrics for one kind of reference. To add one: a line here with the rows that it covers."""

_ANSWERS_BY = ("python_tests", "accuracy", "number_match", "json_match", "token_f1")
LABEL_METRICS = ("accuracy", "macro_f1")
_KNOWN = (*LOSS_METRICS, *METRICS, *LABEL_METRICS, *TASK_METRICS)


def metrics_for(references: Sequence[str], wanted: MetricSpecs = ()) -> dict[str, TextMetric]:
    """The text metrics of these references: those for any text, and those for the kinds found among them.

    `wanted` names them instead, or is functions; a complete TextMetric in it comes on top. Metrics of the loss, which are
    measured always, may stand among them. Raises: ConfigError for an unknown name, or one that no reference allows.
    """
    labels = labels_of(references)
    chosen = dict(METRICS) | (_label_metrics(labels) if labels else {})
    extra = {one.name: one for one in wanted if isinstance(one, TextMetric)}
    if len(extra) == len(wanted):
        kinds = {k: m for k, m in TASK_METRICS.items() if sum(map(m.covers, references)) > _SHARE * len(references)}
        return chosen | kinds | extra
    possible = chosen | {k: m for k, m in TASK_METRICS.items() if any(map(m.covers, references))}
    found: dict[str, TextMetric] = {}
    for one in resolved(wanted):
        if isinstance(one, TextMetric) or one in LOSS_METRICS:
            continue
        metric = _named(one, possible) if isinstance(one, str) else custom_metric(one)
        if metric.name in found or (metric.name in _KNOWN and metric is not possible.get(metric.name)):
            raise ConfigError(f"--metrics: two metrics are called {metric.name}. Name yours otherwise.")
        found[metric.name] = metric
    return found | extra


def resolved(wanted: MetricSpecs) -> MetricSpecs:
    """The same with the functions of files in place of their names. Raises: ConfigError for what means nothing."""
    found = [from_file(one) if isinstance(one, str) and is_file(one) else one for one in wanted]
    for name in found:
        if isinstance(name, str) and name not in _KNOWN:
            raise ConfigError(f"--metrics: {unknown_name('metric', name, _KNOWN)}")
    return found


def _named(name: str, possible: Mapping[str, TextMetric]) -> TextMetric:
    if name not in possible:
        raise ConfigError(f"--metrics {name}: no reference answer of these rows is of the kind that it compares.")
    return possible[name]


def answer_metric(metrics: Sequence[str]) -> str | None:
    """The one of the metrics that measures whether the answers are right; None without any."""
    return next((name for name in (*_ANSWERS_BY, *metrics) if name in metrics), None)


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
