"""Tests of the Python in an answer. This runs code that a model wrote.

Each answer runs in a process of its own: isolated from this one's packages and environment, in an empty folder, with
limits on time, memory and file size (on Windows on time alone). That holds off accidents such as endless loops. It is no sandbox: the code has the
rights of the user, so answers that nobody trusts belong on a machine, or in a container, that may be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from inlay.errors import DataError
from inlay.evaluation.metrics import Array, TextMetric, ratio
from inlay.evaluation.task_metrics import python_code

TIME_S, MEMORY_BYTES, FILE_BYTES = 10, 1 << 30, 1 << 20

_ENVIRONMENT = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows starts none without

_RUNNER = """
import json, os, sys
given = json.load(sys.stdin)
seconds, memory, size = given["limits"]
if os.name != "nt":
    import resource
    for what, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size),
                        (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (limit, limit))
output = os.dup(1)
os.dup2(os.open(os.devnull, os.O_RDWR), 0)
os.dup2(0, 1)
os.dup2(0, 2)
names = {"__name__": "answer"}
exec(compile(given["code"], "answer.py", "exec"), names)
exec(compile(given["tests"], "tests.py", "exec"), names)
os.write(output, given["word"].encode())
"""
"""Prints the word when the tests have run to their end: an answer that exits early does not pass."""


@cache
def passes(code: str, tests: str) -> bool:
    """True where the tests run to their end after the code, without an exception and within the limits."""
    word = secrets.token_hex(8)
    given = json.dumps(
        {"code": code, "tests": tests, "word": word, "limits": [TIME_S, MEMORY_BYTES, FILE_BYTES]}
    ).encode()
    with tempfile.TemporaryDirectory(prefix="inlay-answer-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=folder, env=_ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(given, timeout=TIME_S)
        except subprocess.TimeoutExpired:
            printed = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                if os.name == "nt":
                    process.kill()
                else:  # and all that it started
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    return printed == word.encode()


def read_tests(path: str | Path) -> dict[str, str]:
    """The tests of a JSONL file of {"question": …, "tests": …}, by question. Raises: DataError."""
    found: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--python-tests {path}: cannot be read ({error}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            raise DataError(
                f'{path}:{number}: not a row of tests. Write {{"question": "…", "tests": "assert f(1) == 2"}}.'
            )
        found[row[0]] = row[1]
    return found


def _row(line: str) -> tuple[str, str] | None:
    """(question, tests) of a line, None where it is something else or its tests are not Python."""
    try:
        row = json.loads(line)
        question, tests = row["question"], row["tests"]
        compile(tests, "tests.py", "exec")
    except (ValueError, TypeError, KeyError, SyntaxError):
        return None
    return (question, tests) if isinstance(question, str) and isinstance(tests, str) and tests.strip() else None


def python_tests_metric(tests: Mapping[str, str]) -> TextMetric:
    """The share of answers that pass; `tests` are by the reference answer of their row."""

    def statistics(prediction: str, reference: str) -> Array:
        code = python_code(prediction)
        return np.array([float(code is not None and passes(code, tests[reference])), 1.0])

    return TextMetric(
        name="python_tests", higher_is_better=True, size=2, value=ratio, statistics=statistics,
        description="share of answers whose Python passes the tests given for their question; 0..1",
        signature=lambda: f"exec|time:{TIME_S}s|memory:{MEMORY_BYTES >> 20}MiB|fence:python",
        covers=tests.__contains__,
    )  # fmt: skip
