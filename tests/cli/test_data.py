"""inlay data: what it prints, writes and ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.data import read_examples
from inlay.data.splits import by_content
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
    assert value["findings"][0]["places"] == [{"file": str(path), "line": 10, "shown": "What? a�"}]


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


def test_data_check_with_a_model_counts_its_tokens_and_writes_a_page(
    inlay: Inlay, tmp_path: Path, data_file: Path, tiny_base: Path
) -> None:
    page = tmp_path / "report.html"
    ended = inlay("data", "check", str(data_file), "--model", str(tiny_base), "--html", str(page))
    assert ended.code == 0
    assert "lengths in tokens of" in ended.out
    assert all(part in page.read_text() for part in ("Nothing was found", "What a max_length would cost", "<svg"))


@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 4])
def test_data_stats_of_a_file_without_a_usable_row_says_why(
    inlay: Inlay, tmp_path: Path, tiny_base: Path, content: bytes
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for model in ([], ["--model", str(tiny_base)]):
        ended = inlay("data", "stats", str(tmp_path / "a.jsonl"), *model)
        assert (ended.code, ended.err) == (3, "")
        assert "a.jsonl:1: " in ended.out


def test_data_stats_tells_tokens_and_cost(inlay: Inlay, data_file: Path, tiny_base: Path) -> None:
    ended = inlay("data", "stats", str(data_file), "--model", str(tiny_base), "--price", "3", "--json")
    value = json.loads(ended.out)
    assert value["lengths"]["sequences"] == 40
    assert value["cost"]["tokens"] == value["lengths"]["total"]
    assert value["cost"]["price"] > 0
    assert "an epoch: " in inlay("data", "stats", str(data_file), "--model", str(tiny_base)).out


def test_data_split_writes_the_two_parts_that_train_would_make(inlay: Inlay, tmp_path: Path) -> None:
    rows = qa_rows(40) + [row | {"answer": "Another one."} for row in qa_rows(9)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    value = json.loads(inlay("data", "split", str(path), "--to", str(tmp_path), "--json").out)
    train, held_out = by_content(read_examples(str(path)).examples, 0.2)
    for part, numbers in (("train", train), ("heldout", held_out)):
        assert value[part]["rows"] == len(numbers)
        written = [json.loads(line) for line in Path(value[part]["path"]).read_text().splitlines()]
        assert written == [rows[n] for n in numbers]
    again = inlay("data", "split", str(path), "--to", str(tmp_path))
    assert (again.code, "is already there" in again.err) == (2, True)


def test_data_show_prints_the_row_and_its_tokens(inlay: Inlay, data_file: Path, tiny_base: Path) -> None:
    ended = inlay("data", "show", str(data_file), "--model", str(tiny_base), "--row", "7")
    assert ended.code == 0
    assert f"{data_file}:7: format question_answer, " in ended.out
    assert "⟦" in ended.out
    assert "  token\n" in ended.out
    value = json.loads(inlay("data", "show", str(data_file), "--model", str(tiny_base), "--row", "7", "--json").out)
    assert value["line"] == 7
    assert {"text", "id", "label", "weight"} == set(value["sequences"][0]["tokens"][0])
    assert inlay("data", "show", str(data_file), "--model", str(tiny_base), "--row", "99").code == 2
    assert inlay("data", "show", str(data_file)).code == 2
