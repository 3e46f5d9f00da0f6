"""What train looks at before it trains, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.data import read_examples
from inlay.data.checks import quick
from inlay.data.checks.quick import EvenSample
from inlay.errors import DataCheckError
from parts import qa_rows, write_rows

Tree = Callable[..., dict[str, Any]]


def sample(path: Path, rows: list[dict[str, str]]) -> EvenSample:
    found = EvenSample()
    for example in read_examples(str(write_rows(path / "q.jsonl", rows))).examples:
        found.add(example)
    return found


def with_nul(path: Path) -> Path:
    rows = qa_rows(40)
    rows[7]["answer"] += "\0"
    return write_rows(path / "nul.jsonl", rows)


def test_train_refuses_rows_with_errors_before_anything_is_written(tmp_path: Path, config_tree: Tree) -> None:
    tree = config_tree(data={"train": str(with_nul(tmp_path))})
    with pytest.raises(DataCheckError) as refusal:
        api.train(tree)
    assert refusal.value.exit_code == 3
    assert f"rows with the character NUL: 1, first at {tmp_path}/nul.jsonl:8." in str(refusal.value)
    assert "--set data.check=warn" in str(refusal.value)
    assert not list((tmp_path / "results").glob("*"))


@pytest.mark.parametrize("setting", ["warn", "off"])
def test_train_goes_on_when_told_to_and_says_what_it_saw(
    tmp_path: Path, config_tree: Tree, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.train(config_tree(data={"train": str(with_nul(tmp_path)), "check": setting}, train={"max_steps": 1}))
    said = (run.path / "log.txt").read_text() + capsys.readouterr().err
    assert ("rows with the character NUL: 1" in said) == (setting == "warn")
    assert run.record.status == "finished"


def test_held_out_rows_that_stand_in_training_refuse_the_run(tmp_path: Path, config_tree: Tree) -> None:
    rows = qa_rows(40)
    train, held_out = write_rows(tmp_path / "t.jsonl", rows), write_rows(tmp_path / "h.jsonl", rows[:10])
    with pytest.raises(DataCheckError, match="held-out rows that are also training rows: 10"):
        api.train(config_tree(data={"train": str(train), "eval": str(held_out)}))


def test_a_large_set_is_sampled_evenly_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(tmp_path, qa_rows(90))
    assert (
        quick.quick_check(rows.examples, (), 90)
        .summary()
        .startswith("90 rows, without near duplicates; nothing was found")
    )
    monkeypatch.setattr(quick, "MOST_ROWS", 10)
    thinned = sample(tmp_path, qa_rows(90))
    assert [e.source.line for e in thinned.examples] == [1, 17, 33, 49, 65, 81]
    assert (
        quick.quick_check(thinned.examples, rows.examples[:5], 95).summary().startswith("11 of 95 rows, evenly drawn")
    )


def test_long_rows_are_looked_at_up_to_a_number_of_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "MOST_CHARACTERS", 10_000)
    rows = sample(tmp_path, [{"question": f"{n:05}", "answer": "a" * 995} for n in range(90)])
    assert len(rows.examples) == 6


def test_fields_without_effect_are_in_the_line_of_the_check(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = sample(tmp_path, [{"messages": turns, "rejected_response": "c"}])
    said = quick.quick_check(rows.examples, (), 1).summary()
    assert "rows with fields that have no effect, or turns that are not trained: 1" in said
    assert "nothing was found" not in said
