"""advise as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parts import qa_rows, write_rows
from program import Ended


def test_the_adapter_of_a_run_is_measured_and_one_json_value_printed(
    with_run: Path, inlay: Callable[..., Ended]
) -> None:
    ended = inlay("advise", "--run", "first", "--set", "eval.max_rows=8", "--set", "advise.passages=1", "--cost", "1.5",
                  "--set", "eval.max_new_tokens=3", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    measured = json.loads(ended.out)["measured"]
    assert [arm["name"] for arm in measured["arms"]][:2] == ["base", "base + few-shot"]
    assert measured["rows"] == 8
    assert measured["about"][0].endswith("greedy answers of at most 3 tokens")
    assert measured["costs"]["price_per_hour"] == 1.5
    assert measured["costs"]["assumed"] == ["watts", "utilisation"]
    assert measured["recommendation"]["reasons"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["advise"], "no data and no run"),
        (["advise", "--run", "frist"], "Did you mean 'first'"),
        (["advise", "--run", "first", "--utilisation", "1.5"], "at most 1 (got 1.5)"),
        (["advise", "rows.jsonl"], "base_model"),
        (["advise", "rows.jsonl", "--quick", "--documents", "nowhere"], "no such folder"),
        (
            ["advise", "rows.jsonl", "--quick", "--set", "advise.passages=0"],
            "advise.passages: must be a whole number of at l",
        ),
        (["advise", "rows.jsonl", "--passages", "2"], "Settings are given as --set advise.passages=VALUE"),
        (["advise", "rows.jsonl", "--max-rows", "2"], "Settings are given as --set eval.max_rows=VALUE"),
        (["train", "rows.jsonl", "--set", "advise.passages=2"], "advise: settings of inlay advise, not of a run"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(
    with_run: Path, inlay: Callable[..., Ended], arguments: list[str], said: str
) -> None:
    write_rows(with_run / "rows.jsonl", qa_rows(20))
    ended = inlay(*arguments)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
