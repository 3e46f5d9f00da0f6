"""A metric of the user's own is a function, and a wrong one is told so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.errors import ConfigError, DataError
from inlay.evaluation.custom import from_file
from inlay.evaluation.task_metrics import metrics_for
from inlay.runs.reporter import PlainReporter

MINE = '''
from math import isclose

def length_error(prediction: str, reference: str) -> float:
    """How far the length is off. Shorter text."""
    return abs(len(prediction) - len(reference))

length_error.higher_is_better = False
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_function_is_a_metric_by_its_mean(mine: Path) -> None:
    def vowels(prediction: str, reference: str) -> int:
        return sum(letter in "aeiou" for letter in prediction)

    found = metrics_for(["a", "b"], ["token_f1", vowels, f"{mine}:length_error"])
    assert list(found) == ["token_f1", "vowels", "length_error"]
    assert found["vowels"].statistics("banana", "x").tolist() == [3, 1]
    assert found["vowels"].higher_is_better
    assert not found["length_error"].higher_is_better
    assert found["length_error"].description == "How far the length is off. Shorter text; mean"


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (None, "", "no such file"),
        ("x = 1", "", r"defines no function. Say which one to take: .*mine.py:NAME"),
        ("def a(p, r): ...\ndef b(p, r): ...", "", "defines a, b"),
        ("def ab(p, r): ...", ":ac", "unknown function 'ac'. Known: ab"),
        ("def a(p, r) ...", "", "cannot be run: SyntaxError"),
        ("1 / 0", "", "cannot be run: ZeroDivisionError"),
    ],
)
def test_a_file_that_does_not_say_what_is_meant_is_refused(
    tmp_path: Path, text: str | None, name: str, says: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        from_file(f"{path}{name}")


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda p, r: float("nan"), "metric <lambda>: gave nan for the answer 'said'"),
        (lambda p, r: p.missing, "AttributeError: .* for the answer 'said' to be 'wanted'"),
        (lambda p: 1.0, "TypeError"),
        (lambda p, r: "no number", "ValueError"),
    ],
)
def test_a_function_that_gives_no_number_is_one_clear_error(score: Any, says: str) -> None:
    (metric,) = metrics_for(["wanted"], [score]).values()
    with pytest.raises(DataError, match=says):
        metric.statistics("said", "wanted")


def test_two_metrics_of_one_name_are_refused() -> None:
    def chrf(prediction: str, reference: str) -> float:
        return 1.0

    for wanted in ([chrf], [chrf, "chrf"], ["chrf", "chrf"]):
        with pytest.raises(ConfigError, match="two metrics are called chrf"):
            metrics_for(["a"], wanted)


def test_it_is_compared_like_any_other(config_tree: Callable[..., dict[str, Any]], mine: Path) -> None:
    run = api.train(config_tree(eval={"max_rows": 8}), reporter=PlainReporter())
    found = api.compare(run, metrics=[str(mine)], reporter=PlainReporter())
    d = found.metrics["length_error"]
    assert not d.higher_is_better
    wanted = [abs(len(r.adapter_answer or "") - len(r.reference)) for r in found.rows]
    assert d.other == pytest.approx(sum(wanted) / len(wanted))
    assert "length_error" in (run.reports / "report.html").read_text()
