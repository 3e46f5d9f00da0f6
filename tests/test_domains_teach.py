"""Fine-tuning the built-in base on an example task teaches what its held-out rows ask in other words."""

from __future__ import annotations

from pathlib import Path

import pytest

from inlay import api
from inlay.data import example_tasks
from inlay.runs.folder import Run
from training_runs import Quiet


@pytest.mark.parametrize(
    ("name", "metric", "steps", "rows"),
    [
        pytest.param("customer_support", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("financial_guidance", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("python_code", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("summaries", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("ticket_labels", "exact_match", 60, 80, marks=pytest.mark.slow),
    ],
)
def test_a_fixed_number_of_steps_improves_loss_and_answers_by_more_than_the_interval(
    name: str, metric: str, steps: int, rows: int, tmp_path: Path
) -> None:
    run = trained(name, steps, rows, tmp_path)
    comparison = api.compare(run, reporter=Quiet())
    loss, answers = comparison.metrics["loss"], comparison.metrics[metric]
    assert loss.high < 0, loss
    assert answers.low > 0, answers


def test_a_few_steps_improve_the_loss_by_more_than_the_interval(tmp_path: Path) -> None:
    judged = trained("customer_support", 6, 24, tmp_path, batch_size=4).result.to_json()
    assert judged["verdict"] == "better", judged


def trained(name: str, steps: int, rows: int, folder: Path, **train: int) -> Run:
    task = example_tasks()[name]
    tree = {
        "model": {"base_model": "builtin:nano"},
        "data": {"train": str(task.train), "eval": str(task.heldout)},
        "train": {"max_steps": steps, "eval_steps": steps} | train,
        "eval": {"max_rows": rows, "max_new_tokens": 40, "retention_rows": 0},
        "output": {"folder": str(folder), "name": name},
    }
    return api.train(tree, reporter=Quiet())
