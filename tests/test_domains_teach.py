"""Fine-tuning the built-in base on an example task teaches what its held-out rows ask in other words."""

from __future__ import annotations

from pathlib import Path

import pytest

from inlay import api
from inlay.data import domains
from training_runs import Quiet


@pytest.mark.parametrize(
    ("name", "metric", "steps", "rows"),
    [
        ("customer_support", "rouge_l", 12, 24),
        pytest.param("financial_guidance", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("python_code", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("summaries", "rouge_l", 60, 80, marks=pytest.mark.slow),
        pytest.param("ticket_labels", "exact_match", 60, 80, marks=pytest.mark.slow),
    ],
)
def test_a_fixed_number_of_steps_improves_loss_and_answers_by_more_than_the_interval(
    name: str, metric: str, steps: int, rows: int, tmp_path: Path
) -> None:
    task = domains()[name]
    tree = {
        "model": {"base_model": "builtin:nano"},
        "data": {"train": str(task.train), "eval": str(task.heldout)},
        "train": {"max_steps": steps, "eval_steps": steps},
        "eval": {"max_rows": rows, "max_new_tokens": 40, "retention_rows": 0},
        "output": {"folder": str(tmp_path), "name": name},
    }
    run = api.train(tree, reporter=Quiet())
    comparison = api.compare(run, reporter=Quiet())
    loss, answers = comparison.metrics["loss"], comparison.metrics[metric]
    assert loss.high < 0, loss
    assert answers.low > 0, answers
