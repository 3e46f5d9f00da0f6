"""The Python of an answer runs against its tests, apart and within limits; it passes only when they run to their end."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.errors import DataError
from inlay.evaluation import python_tests
from inlay.evaluation.python_tests import passes, python_tests_metric, read_tests
from inlay.evaluation.task_metrics import answer_metric
from inlay.runs.reporter import PlainReporter
from parts import qa_rows, write_rows

TESTS = "assert double(2) == 4\nassert double(-1) == -2"


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        ("def double(n):\n    return 2 * n", True),
        ("def double(n):\n    return n + 2", False),
        ("def double(n):\n    return 2 * n\nimport sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("def double(n):\n    return 2 * n\nprint('x' * 100000)\ninput_is_not_read = 1", True),
        ("def double(n):\n    return 2 * n\nif __name__ == '__main__':\n    input()", True),
        ("def double(n)", False),
        ("raise KeyboardInterrupt", False),
        ("import torch", False),  # the packages of this process are not there
        ("import os\nassert not os.environ.get('HOME') and not os.listdir('.')\ndouble = lambda n: 2 * n", True),
    ],
)
def test_an_answer_passes_when_its_tests_run_to_their_end(code: str, passed: bool) -> None:
    assert passes(code, TESTS) is passed


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(3)\ndouble = lambda n: 2 * n",  # would pass if it were waited for
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nwhile True: pass",
    ],
)
def test_an_answer_that_does_not_end_is_ended_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str
) -> None:
    monkeypatch.setattr(python_tests, "TIME_S", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not passes(code, TESTS)
    for _ in range(500):  # a killed process takes a moment to be gone
        if not _running_in(tmp_path):
            return
        time.sleep(0.01)
    raise AssertionError(f"still there: {_running_in(tmp_path)}")


def _running_in(folder: Path) -> set[str]:
    """Processes that work in a folder below this one."""
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found |= {str(path)} if str(path.readlink()).startswith(str(folder)) else set()
    return found


def test_memory_and_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_tests, "MEMORY_BYTES", 256 << 20)
    double = "double = lambda n: 2 * n\n"
    assert not passes(double + "x = bytearray(1 << 30)", TESTS)
    assert not passes(double + "open('big', 'wb').write(b'x' * (8 << 20))", TESTS)
    assert passes(double + "x = bytearray(1 << 20)", TESTS)


def test_the_metric_scores_the_rows_that_have_tests() -> None:
    metric = python_tests_metric({"the reference": TESTS})
    assert metric.covers("the reference")
    assert not metric.covers("another")
    fenced = "Here:\n```python\ndef double(n):\n    return 2 * n\n```\n"
    assert metric.statistics(fenced, "the reference").tolist() == [1, 1]
    assert metric.statistics("No code.", "the reference").tolist() == [0, 1]
    assert answer_metric(["loss", "token_f1", "python_tests"]) == "python_tests"


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"question": "a"}', '{"question": "a", "tests": "assert ("}', '{"question": 1, "tests": "1"}']
)
def test_a_bad_file_of_tests_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tests.jsonl"
    path.write_text(f'{{"question": "a", "tests": "assert 1"}}\n\n{line}\n')
    with pytest.raises(DataError, match=r"tests.jsonl:3: not a row of tests. Write"):
        read_tests(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_tests(tmp_path / "none.jsonl")


def test_a_comparison_runs_the_answers_only_when_asked(
    config_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rows = qa_rows(40)
    tests = tmp_path / "tests.jsonl"
    tests.write_text("".join(json.dumps({"question": r["question"], "tests": TESTS}) + "\n" for r in rows))
    answers = [r | {"answer": f"```python\ndef double(n):\n    return 2 * n + {n}\n```"} for n, r in enumerate(rows)]
    data = write_rows(tmp_path / "code.jsonl", answers)
    run = api.train(config_tree(data={"train": str(data)}, eval={"max_rows": 8}), reporter=PlainReporter())
    assert "python_tests" not in api.compare(run, reporter=PlainReporter()).metrics
    found = api.compare(run, python_tests=tests, reporter=PlainReporter())
    assert found.metrics["python_tests"].n == 8
    assert found.metrics["python_tests"].other == 0
    assert "python_parses" in found.metrics
    tests.write_text('{"question": "of nobody", "tests": "assert 1"}\n')
    with pytest.raises(DataError, match="no question of the file is among the rows"):
        api.compare(run, python_tests=tests, reporter=PlainReporter())
