"""The references say which metrics apply; each sees the answer in the form in which models give it."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.data.example_tasks import example_tasks
from inlay.errors import ConfigError
from inlay.evaluation.metrics import ANSWER_FAILURES, METRICS
from inlay.evaluation.task_metrics import (
    TASK_METRICS,
    answer_metric,
    confusion,
    final_number,
    json_value,
    labels_of,
    metrics_for,
    parses,
    python_code,
)

FENCED = "Sure:\n```python\ndef f(x):\n    return x\n```\nDone."


def score(name: str, prediction: str, reference: str) -> float:
    metric = metrics_for([reference] * 3, [name])[name]
    return float(metric.scores(metric.statistics(prediction, reference)))


@pytest.mark.parametrize(
    ("references", "kinds"),
    [
        (["spam", "ham"] * 6, {"accuracy", "macro_f1"}),
        (["#### 12", "So it is 3.\n#### 3", "#### -1,200.50"], {"number_match"}),
        (["3", "1,200", "7.5%"], {"number_match"}),
        (['{"a": 1}', '```json\n[1]\n```'], {"json_valid", "json_schema", "json_match"}),
        ([FENCED, "x", FENCED], {"python_parses"}),
        (["It costs 3 dollars.", "No.", "A return takes 5 days.", "{not json}"], set()),
        ([f"Name {n}" for n in range(40)], set()),
        ([], set()),
    ],
)  # fmt: skip
def test_the_kind_of_the_references_decides_which_metrics_apply(references: list[str], kinds: set[str]) -> None:
    assert set(metrics_for(references)) == set(METRICS) | kinds


def test_the_example_tasks_get_the_metrics_of_their_kind() -> None:
    found = {}
    for name, domain in example_tasks().items():
        rows = [e for e in domain.read()[1] if e.messages[0].role != "text"]
        found[name] = metrics_for([e.messages[len(e.prompt)].content for e in rows])
    assert set(found["ticket_labels"]) - set(METRICS) == {"accuracy", "macro_f1"}
    assert set(found["python_code"]) - set(METRICS) == {"python_parses"}
    assert set(found["customer_support"]) == set(METRICS)
    assert [answer_metric(list(found[n])) for n in ("ticket_labels", "summaries")] == ["accuracy", "token_f1"]


def test_named_metrics_are_those_and_no_other_and_what_cannot_be_measured_is_refused() -> None:
    assert list(metrics_for(["a b c"], ["chrf", "bleu"])) == ["chrf", "bleu"]
    assert list(metrics_for(["2", "two", "three"], ["number_match"])) == ["number_match"]
    with pytest.raises(ConfigError, match=r"unknown metric 'json_mach'. Did you mean 'json_match'"):
        metrics_for(["a"], ["json_mach"])
    with pytest.raises(ConfigError, match="--metrics number_match: no reference answer"):
        metrics_for(["a"], ["number_match"])


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("The answer is 1,200.", "#### 1200", 1), ("3 and 4 make\n#### 7", "so\n#### 7.0", 1),
        ("#### 7 apples, not 8", "#### 7", 1), ("between 3 and 4", "3", 0), ("no idea", "3", 0),
        ("-5", "5", 0), ("$12.50", "12.5", 1), ("1e3", "1000", 1),
    ],
)  # fmt: skip
def test_numbers_are_compared_by_value(prediction: str, reference: str, right: int) -> None:
    assert score("number_match", prediction, reference) == right


@pytest.mark.parametrize(
    ("prediction", "valid", "schema", "match"),
    [
        ('{"b": [2], "a": "x"}', 1, 1, 1), ('Here:\n```json\n{"a": "x", "b": [2.0]}\n```', 1, 1, 1),
        ('{"a": "y", "b": [1, 2, 3]}', 1, 1, 0), ('{"a": "x", "b": [true]}', 1, 0, 0), ('{"a": "x"}', 1, 0, 0),
        ('{"a": "x", "b": [2]', 0, 0, 0), ("{'a': 'x'}", 0, 0, 0), ("NaN", 0, 0, 0), ("", 0, 0, 0),
    ],
)  # fmt: skip
def test_json_is_judged_as_text_as_shape_and_as_value(prediction: str, valid: int, schema: int, match: int) -> None:
    reference = '{"a": "x", "b": [2]}'
    found = [score(name, prediction, reference) for name in ("json_valid", "json_schema", "json_match")]
    assert found == [valid, schema, match]


@pytest.mark.parametrize(
    ("answer", "right"),
    [(FENCED, 1), ("def f(x):\n  return x", 1), ("```python\ndef f(:\n```", 0), ("I cannot.", 0), ("```\n1\n```", 0),
     ("```python\nx = 1", 1)],
)  # fmt: skip
def test_python_counts_when_it_parses(answer: str, right: int) -> None:
    assert score("python_parses", answer, FENCED) == right


def test_macro_f1_and_the_confusion_count_every_label_alike() -> None:
    references = ["a"] * 8 + ["b"] * 4
    predictions = ["A "] * 8 + ["a", "b", "neither", "b."]
    metrics = metrics_for(references)
    rows = list(zip(predictions, references, strict=True))
    sums = {m: sum(metrics[m].statistics(*row) for row in rows) for m in ("accuracy", "macro_f1")}
    assert float(metrics["accuracy"].value(sums["accuracy"])) == pytest.approx(9 / 12)
    # F1 of a: 2*8 / (9 + 8); of b: 2*1 / (1 + 4)
    assert float(metrics["macro_f1"].value(sums["macro_f1"])) == pytest.approx((16 / 17 + 2 / 5) / 2)
    assert confusion(labels_of(references), rows) == [[8, 0, 0], [1, 1, 2]]


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_answer_breaks_a_metric(prediction: str, reference: str) -> None:
    for metric in (TASK_METRICS | ANSWER_FAILURES).values():
        metric.covers(reference)
        assert 0 <= metric.scores(metric.statistics(prediction, reference)) <= 1
    assert final_number(prediction) is None or isinstance(final_number(prediction), Decimal)
    parses(python_code(prediction))
    json_value(prediction)


@pytest.mark.parametrize(
    ("answer", "empty", "refusal", "repetition"),
    [("  \n", 1, 0, 0), ("I'm sorry, but I cannot help with that.", 0, 1, 0), ("As an AI, I like tea.", 0, 1, 0),
     ("You cannot return it after a week.", 0, 0, 0), ("a b c d " * 3, 0, 0, 5 / 9), ("a b c d e f", 0, 0, 0)],
)  # fmt: skip
def test_what_an_answer_should_not_become_is_counted(
    answer: str, empty: float, refusal: float, repetition: float
) -> None:
    found = [float(m.scores(m.statistics(answer, "You can return it."))) for m in ANSWER_FAILURES.values()]
    assert found == pytest.approx([empty, refusal, repetition])
    if refusal:  # a reference that declines wants just that
        metric = ANSWER_FAILURES["refusal"]
        assert np.array_equal(metric.statistics(answer, answer), [0, 1])


def test_metrics_of_the_loss_may_be_named_and_leave_out_the_others() -> None:
    assert metrics_for(["a", "b"], ["loss"]) == {}
    assert set(metrics_for(["a", "b"], ["bits_per_byte", "chrf", "token_accuracy"])) == {"chrf"}
