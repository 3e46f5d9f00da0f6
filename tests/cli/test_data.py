"""inlay data: what it prints, writes and ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from parts import qa_rows, write_rows
from program import Ended

Inlay = Callable[..., Ended]


def test_data_check_of_a_clean_file_ends_with_0_and_says_what_is_in_it(inlay: Inlay, data_file: Path) -> None:
    ended = inlay("data", "check", str(data_file))
    assert ended.code == 0
    assert "question_answer" in ended.out
    assert ended.out.endswith("40 rows: nothing was found\n")


def test_data_check_ends_with_3_on_an_error_and_lists_it_with_place_and_fix(inlay: Inlay, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*qa_rows(9), {"question": "What?", "answer": "a\0"}])
    ended = inlay("data", "check", str(path))
    assert ended.code == 3
    assert "error: rows with the character NUL: 1" in ended.out
    assert f"{path}:10" in ended.out
    assert "fix: " in ended.out
    assert "Traceback" not in ended.err
    value = json.loads(inlay("data", "check", str(path), "--json").out)
    assert value["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert value["findings"][0]["places"] == [{"file": str(path), "line": 10, "shown": "a�"}]


def test_data_check_takes_a_config_and_its_columns(inlay: Inlay, tmp_path: Path) -> None:
    rows = [{"ask": row["question"], "reply": row["answer"]} for row in qa_rows(9)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    columns = {"question": "ask", "answer": "reply"}
    config = tmp_path / "a.yaml"
    config.write_text(json.dumps({"model": {"base_model": "-"}, "data": {"train": str(path), "columns": columns}}))
    assert inlay("data", "check", str(config)).code == 0
    sets = ("--set", "data.columns.question=ask", "--set", "data.columns.answer=reply")
    assert inlay("data", "check", str(path), *sets).code == 0
    assert inlay("data", "check", str(path)).code == 3


def test_data_check_of_a_file_that_is_not_there_is_wrong_input(inlay: Inlay, tmp_path: Path) -> None:
    assert inlay("data", "check", str(tmp_path / "none.jsonl")).code == 2
