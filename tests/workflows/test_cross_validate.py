"""Cross-validation: every row is held out once, and judged by the adapter that never saw it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay import api
from inlay.config import load
from inlay.data.splits import by_fold
from inlay.errors import ConfigError, DataCheckError, DataError, Interrupted
from inlay.evaluation.score import read_held_out
from inlay.runs.folder import Run
from parts import qa_rows, write_rows
from training_runs import Quiet, stop_after


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 7))
def test_the_parts_are_all_rows_once_and_no_prompt_stands_in_two(prompts: list[int], parts: int) -> None:
    keys = np.array([[p, 7 * p] for p in prompts], np.uint64)
    held = [by_fold(keys, part, parts)[1] for part in range(1, parts + 1)]
    assert sorted(np.concatenate(held).tolist()) == list(range(len(prompts)))
    where = {(prompts[n], part) for part, rows in enumerate(held) for n in rows}
    assert len(where) == len(set(prompts))
    for part, rows in enumerate(held, 1):
        assert sorted([*by_fold(keys, part, parts)[0], *rows]) == list(range(len(prompts)))
    largest = max(Counter(prompts).values())
    assert all(abs(len(rows) - len(prompts) / parts) <= largest + 1 for rows in held)


@pytest.fixture
def tree(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_rows(tmp_path / "data.jsonl", qa_rows(24))
    return {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 2},
        "data": {"train": str(data), "max_length": 128},
        "train": {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-2},
        "eval": {"resamples": 200, "max_new_tokens": 4, "prompts": [], "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(tmp_path / "results"), "name": "all"},
    }


def test_every_row_is_judged_once_and_a_validation_cut_off_goes_on(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        api.cross_validate(tree, 3, reporter=stop_after(1))
    reporter = Quiet()
    found = api.cross_validate(tree, 3, reporter=reporter)
    assert "fold-2 of 3" in reporter.notes
    folder = tmp_path / "results" / "all-folds-3"
    runs = [Run(folder / f"fold-{part}") for part in (1, 2, 3)]
    asked = [example.messages[0].content for run in runs for example in read_held_out(run.heldout)]
    assert sorted(asked) == sorted({*asked})
    assert found.rows == len(asked) == 24
    for run, fold in zip(runs, found.per_fold, strict=True):
        assert run.result.adapter_step == 2
        assert fold.n == len(read_held_out(run.heldout))
    again = api.compare(runs[1], reporter=Quiet()).metrics["loss"]
    assert found.per_fold[1].metrics["loss"].difference == again.difference
    loss = found.metrics["loss"]
    changes = [fold.metrics["loss"].difference for fold in found.per_fold]
    assert loss.mean_difference == pytest.approx(np.mean(changes))
    assert loss.spread_difference == pytest.approx(np.std(changes, ddof=1))
    assert min(changes) <= loss.pooled.difference <= max(changes)
    assert loss.pooled.n == 24
    assert json.loads((folder / "folds.json").read_text()) == found.to_json()
    trained = [(run.path / "metrics.jsonl").stat().st_mtime_ns for run in runs]
    assert api.cross_validate(tree, 3, reporter=Quiet()) == found
    assert [(run.path / "metrics.jsonl").stat().st_mtime_ns for run in runs] == trained  # nothing was trained again


def test_what_cannot_be_cross_validated_is_one_line(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least two parts"):
        api.cross_validate(tree, 1, reporter=Quiet())
    tree["data"]["eval"] = tree["data"]["train"]
    with pytest.raises(ConfigError, match=r"data\.eval has no place"):
        api.cross_validate(tree, 3, reporter=Quiet())
    for fold, said in (("3/2", "none of two or more parts"), ("1/1", "none of two"), ("2", "fold")):
        with pytest.raises(ConfigError, match=said):
            load(tree={**tree, "data": {"train": "a.jsonl", "fold": fold}})


def test_a_fold_without_prompts_and_a_metric_that_was_not_named_are_pooled_all_the_same(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", qa_rows(3))
    texts = write_rows(
        tmp_path / "texts.jsonl", [{"text": f"Parcel {n} is on its way to shop {n}."} for n in range(24)]
    )
    tree["data"] = {"train": [{"path": str(prompts)}, {"path": str(texts)}], "max_length": 128}
    assert set(api.cross_validate(tree, 4, reporter=Quiet()).metrics) >= {"loss", "perplexity"}


def test_the_metric_that_decides_is_pooled_where_others_are_named(tree: dict[str, Any]) -> None:
    tree["eval"] |= {"metric": "token_f1"}
    found = api.cross_validate(tree, 2, metrics=["loss"], reporter=Quiet())
    assert (found.primary, found.decided) == ("token_f1", found.metrics["token_f1"].pooled)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (
            {"train": "two.jsonl"},
            "2 rows cannot be split .*data.fold 2/3.* make fewer folds",
        ),  # the second fold lacks rows
        ({"train": "data.jsonl", "max_length": 8}, "training rows are longer than 8 tokens"),
    ],
)
def test_data_that_is_refused_is_refused_before_a_fold_is_announced(
    tree: dict[str, Any], tmp_path: Path, data: dict[str, Any], error: str
) -> None:
    write_rows(tmp_path / "two.jsonl", qa_rows(2))
    reporter = Quiet()
    with pytest.raises((DataError, DataCheckError), match=error):
        api.cross_validate(
            tree | {"data": tree["data"] | data | {"train": str(tmp_path / data["train"])}}, 3, reporter=reporter
        )
    assert not [note for note in reporter.notes if "fold-" in note]
    assert not (tmp_path / "results" / "all-folds-3" / "fold-1").exists()
