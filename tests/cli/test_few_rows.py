"""A held-out set of a single row: what can be said of it, and what is not invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parts import qa_rows, write_rows
from program import QUICK, Ended


def test_one_held_out_row_has_no_interval_and_no_p_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, inlay: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    *rows, last = qa_rows(13)
    write_rows(Path("data.jsonl"), rows)
    write_rows(Path("one.jsonl"), [last])
    settings = ["--set", "data.eval=one.jsonl", "--set", "train.max_steps=1"]
    trained = inlay("train", "data.jsonl", "--model", str(tiny_base), "--name", "one", *QUICK, *settings)
    assert trained.code == 0, trained.err
    why = "(no interval) not distinguishable; only 1 row; a verdict needs 8"
    assert why in trained.err + trained.out
    assert "1 of 1 row\n" in trained.err + trained.out  # the pre-flight's held-out rows
    run = Path("results/one")
    assert "(no interval); only 1 row; a verdict needs 8; adapter of step" in (run / "reports/report.md").read_text()
    result = json.loads((run / "run.json").read_text())["result"]
    assert (result["low"], result["high"], result["reason"]) == (None, None, "only 1 row; a verdict needs 8")

    compared = inlay("compare", "one", "--metrics", "loss")
    found = json.loads((run / "reports/compare.json").read_text())
    assert found["reason"] == "only 1 row; a verdict needs 8"
    for metric in found["metrics"].values():
        assert [metric[key] for key in ("low", "high", "standard_error", "p", "p_holm")] == [None] * 5
    table = compared.out
    assert "on 1 of 1 held-out row\n" in table
    assert "loss on 1 row\n" in compared.err
    assert " 1 rows" not in table + compared.err + trained.err
    line = next(line for line in table.splitlines() if line.startswith("loss"))
    assert "—" in line
    assert "[" not in line
    text = (run / "reports/report.md").read_text()
    assert "| — |  | — |" in text  # interval, detectable difference, p
    assert "—" in (run / "reports/report.html").read_text()


def test_data_that_cannot_be_split_is_counted_in_good_grammar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, inlay: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("data.jsonl"), qa_rows(1))
    ended = inlay("train", "data.jsonl", "--model", str(tiny_base))
    assert ended.code == 2
    assert "1 row cannot be split" in ended.err
