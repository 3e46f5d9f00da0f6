"""Everything that differs between tasks is asked of the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from inlay import api
from inlay.config import validate
from inlay.data.batches import Batch
from inlay.engine.loss import RowLosses, causal_loss
from inlay.generation.generate import Answer
from inlay.tasks.task import TASKS, task_of
from training_runs import train

Tree = Callable[..., dict[str, Any]]


def doubled(model: Any, batch: Batch) -> RowLosses:
    sum_B, weight_B, hits_B = causal_loss(model, batch)
    return RowLosses(2 * sum_B, weight_B, hits_B)


def test_a_config_trains_a_causal_language_model(config_tree: Tree) -> None:
    assert task_of(validate(config_tree())) is TASKS["causal"]


def test_the_loss_of_a_task_is_that_of_training_and_evaluation(
    config_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = train(config_tree(output={"name": "usual"}, train={"engine": "autograd"}))
    monkeypatch.setitem(TASKS, "causal", replace(TASKS["causal"], loss=doubled))
    run = train(config_tree(output={"name": "doubled"}))
    assert run.config.train.engine == "autograd"
    first, wanted = (next(line for line in one.metrics if line["step"] == 1) for one in (run, usual))
    assert first["loss"] == pytest.approx(2 * wanted["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(2 * wanted["grad_norm"], rel=1e-5)
    assert run.metrics[0]["eval_loss"] == pytest.approx(2 * usual.metrics[0]["eval_loss"], rel=1e-6)
    found = [api.evaluate(usual, metrics=["loss"])["metrics"]["loss"]]
    monkeypatch.undo()
    found.append(api.evaluate(usual, metrics=["loss"])["metrics"]["loss"])
    assert found[0] == pytest.approx(2 * found[1], rel=1e-6)


def test_the_batches_of_a_task_are_those_of_training_and_evaluation(
    config_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal, rows = TASKS["causal"], []

    def collate(*arguments: Any) -> Batch:
        batch = causal.collate(*arguments)
        rows.append(len(batch.rows))
        return replace(batch, weights=torch.where(batch.weights > 0, 3.0, 0.0))

    monkeypatch.setitem(TASKS, "causal", replace(causal, collate=collate))
    run = train(config_tree())
    seen = len(rows)
    assert run.record.result is not None
    assert seen > 4 * 2
    api.evaluate(run, metrics=["loss"])
    assert len(rows) > seen


def test_the_answers_of_a_task_are_those_of_chat_and_comparison(
    config_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(config_tree())

    def answers(model: Any, encoder: Any, prompts: Any, *_: Any, **__: Any) -> list[Answer]:
        return [Answer(f"answer to {len(prompt)} tokens", 3, True) for prompt in prompts]

    monkeypatch.setitem(TASKS, "causal", replace(TASKS["causal"], answers=answers))
    assert api.load(run).generate("What about lamps?").startswith("answer to ")
    comparison = api.compare(run)
    assert all(str(row.adapter_answer).startswith("answer to ") for row in comparison.rows)
