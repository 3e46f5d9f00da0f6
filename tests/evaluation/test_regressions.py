"""What broke: loss on what was not trained for, where the rows got worse, and the worst of them first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparisons import made
from inlay import api
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import pack
from inlay.data.example_tasks import example_tasks, find_example_task
from inlay.data.reading.read import read_examples
from inlay.data.types import Example, Message, Source
from inlay.evaluation.compare import ComparedRow, groups
from inlay.evaluation.metrics import LOSS_METRICS, METRICS
from inlay.evaluation.report import as_markdown
from inlay.evaluation.score import EvalSet, Score
from inlay.runs.reporter import PlainReporter
from inlay.workflows.compare import retention
from inlay.workflows.measure import GENERAL, retention_sets
from training_runs import train


def test_general_text_and_every_task_but_the_trained_one_are_kept_apart() -> None:
    own, heldout = find_example_task("python_code").read()
    sets = retention_sets(own[:1], 10, seed=3)
    assert set(sets) == {GENERAL, *example_tasks()} - {"python_code"}
    assert {len(kept) for kept in sets.values()} == {10}
    assert sets == retention_sets(own[:1], 10, seed=3)
    assert sets != retention_sets(own[:1], 10, seed=4)
    assert "python_code" not in retention_sets(heldout[-1:], 10, seed=3)


def test_the_general_text_is_in_no_example_task() -> None:
    folder = find_example_task("summaries").train.parents[2]
    general = [e.messages[0].content for e in read_examples(str(folder / "general.jsonl")).examples]
    assert len(set(general)) == len(general) >= 24
    tasks = "".join(
        p.read_text(encoding="utf-8") for task in example_tasks().values() for p in (task.train, task.heldout)
    )
    spoken = [sentence for text in general for sentence in text.split(". ")]
    assert [sentence for sentence in spoken if len(sentence) > 30 and sentence in tasks] == []


def scores(nll: Any, weight: Any) -> Score:
    texts, stopped = (None,) * len(nll), (False,) * len(nll)
    return Score(np.array(nll, float), np.array(weight, float), np.zeros(len(nll)), texts, stopped, (), 0.0)


def held(rows: list[tuple[int, int, str]]) -> EvalSet:
    """Rows of (prompt tokens, answer tokens, file)."""
    sources = [Source(file, n + 1) for n, (_, _, file) in enumerate(rows)]
    examples = tuple(Example((Message("user", "q"), Message("assistant", "a", 1.0)), source, ()) for source in sources)
    tokens = pack(
        (
            n,
            TokenizedSequence(
                np.zeros(p + a, dtype=np.int32), np.r_[np.zeros(p), np.ones(a)].astype(np.float32), sources[n]
            ),
        )
        for n, (p, a, _) in enumerate(rows)
    )
    asked = {n: [0] * p for n, (p, _, _) in enumerate(rows)}
    return EvalSet(examples, tokens, asked, {n: f"a{n}" for n in asked}, (), np.full(len(rows), 8.0))


def test_the_loss_of_each_set_is_compared_by_itself() -> None:
    rows = held([(1, 2, "f")] * 20)
    sets = {"one": rows.examples[:10], "two": rows.examples[10:]}
    base = scores([4.0] * 20, [2.0] * 20)
    other = scores([2.0] * 10 + [6.0] * 9 + [0.0], [2.0] * 19 + [0.0])  # the last was too long for it
    found = retention(sets, rows, base, other, resamples=200, seed=0, per_token=True)
    assert [(d.base, d.other, d.verdict, d.n) for d in found.values()] == [
        (2.0, 1.0, "better", 10),
        (2.0, 3.0, "worse", 9),
    ]
    bits = retention(sets, rows, base, other, resamples=200, seed=0, per_token=False)
    assert bits["one"].base == pytest.approx(4 / np.log(2) / 8)


def test_groups_are_the_rows_of_one_length_source_and_label() -> None:
    rows = held([(1 + n, 2 if n < 6 else 5, "a.jsonl" if n % 2 else "b.jsonl") for n in range(12)])
    rows = replace(rows, references={n: "yes" if n % 3 else "no" for n in range(12)})
    base = np.array([[2.0, 1.0]] * 12)
    adapter = np.array([[1.0 if n % 2 else 3.0, 1.0] for n in range(12)])
    right = np.array([[float(n % 3 == 0), 1.0] for n in range(12)])
    right[0] = np.nan  # not scored
    pairs = {
        "loss": (base, adapter, LOSS_METRICS["loss"]),
        "exact_match": (right * [0, 1], right, METRICS["exact_match"]),
    }
    found = groups(rows, pairs, resamples=200, seed=0)
    named = {(g.by, g.name): g for g in found}
    assert list(named) == [
        ("prompt length", "1 to 4 tokens"), ("prompt length", "5 to 8 tokens"), ("prompt length", "9 to 12 tokens"),
        ("answer length", "2 tokens"), ("answer length", "5 tokens"),
        ("source", "a.jsonl"), ("source", "b.jsonl"),
        ("label", "no"), ("label", "yes"),
    ]  # fmt: skip
    assert named["source", "a.jsonl"].differences["loss"].difference == -1
    assert named["source", "b.jsonl"].differences["loss"].difference == 1
    assert named["label", "no"].n == 4
    assert named["label", "no"].differences["exact_match"].n == 3
    assert named["label", "no"].differences["exact_match"].difference == 1
    assert sum(g.n for g in found if g.by == "prompt length") == 12


def test_the_worst_rows_come_first_with_both_answers() -> None:
    found = made()
    worst = found.worse_answers
    assert [found.gain(r) for r in worst] == sorted(found.gain(r) for r in worst)
    assert all(found.gain(r) < 0 for r in worst)
    rises = [r.adapter_loss - r.base_loss for r in found.regressions]
    assert rises == sorted(rises, reverse=True)
    assert rises[-1] > 0
    value = found.to_json()
    row: ComparedRow = worst[0]
    assert value["worst_answers"][0]["base"] == row.base_answer
    assert value["worst_answers"][0]["adapter"] == row.adapter_answer
    text = as_markdown(found, False)
    assert text.index("## Worst answers by token_f1") < text.index("## Worst regressions by loss")
    assert "| general text | " in text
    assert "| answer length: 3 to 9 tokens | 20 | loss | " in text


def test_a_comparison_measures_what_was_forgotten(config_tree: Any, tmp_path: Path) -> None:
    run = train(config_tree(eval={"retention_rows": 8, "max_rows": 8, "max_new_tokens": 1}))
    same = api.compare(run, run, "base", reporter=PlainReporter())
    (found,) = same.also
    assert set(found.retention) == {GENERAL, *example_tasks()}
    assert {d.n for d in found.retention.values()} == {8}
    assert any(d.difference != 0 for d in found.retention.values())
    assert {g.by for g in found.groups} >= {"prompt length", "answer length"}
    assert json.loads((run.reports / "compare.json").read_text())["also"][0]["retention"][GENERAL]["n"] == 8
    assert all((d.difference, d.low, d.high) == (0, 0, 0) for d in same.retention.values())
