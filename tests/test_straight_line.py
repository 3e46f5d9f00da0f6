"""From a data file to a proven adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inlay import api


def test_train_then_compare_gives_an_adapter_reports_and_a_verdict(config_tree: Callable[..., dict[str, Any]]) -> None:
    run = api.train(config_tree())
    assert run.status == "finished"
    result = run.result.to_json()
    assert result["steps"] == 4
    assert result["eval_loss"] < result["base_eval_loss"]
    assert {p.name for p in run.adapter.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "card.json"}
    comparison = api.compare(run)
    assert comparison.verdict == "better"
    assert abs(comparison.metrics["loss"].other - result["eval_loss"]) < 1e-5
    assert {p.name for p in run.reports.iterdir()} == {
        "compare.csv", "compare.json", "report.html", "report.md", "curves.png", "evaluation.json",
        "evaluation.rows.jsonl",
    }  # fmt: skip


def test_the_resolved_config_of_a_run_reads_back_as_the_config_it_ran(
    config_tree: Callable[..., dict[str, Any]],
) -> None:
    run = api.train(config_tree(train={"learning_rate": "auto"}))
    assert run.config.train.learning_rate == 2e-3
    assert "at most 2e-3" in (run.path / "config.yaml").read_text()
