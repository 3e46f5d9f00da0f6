"""What people see stays readable in 80 columns."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.cli.render import progress
from inlay.cli.render.comparison import comparisons_text
from inlay.config import load
from inlay.runs.folder import Run
from inlay.runs.reporter import PlainReporter, figure_shown
from inlay.workflows.resume import select_run
from parts import run_record


@pytest.mark.parametrize("columns", [80, 120])
def test_a_comparison_fits_the_terminal(with_run: Path, columns: int) -> None:
    text = comparisons_text(api.compare("first", reporter=PlainReporter()), columns)
    table, _, _ = text.partition("* decides")
    lines = text.splitlines()[1:]  # the first and the reports name paths
    assert [line for line in lines if len(line) > columns and not line.startswith("reports: ")] == []
    assert ("wins/ties/losses" in table) == (columns == 120)
    assert all(name in table for name in ("loss*", "perplexity", "exact_match", "rouge_l", "chrf"))


@pytest.mark.parametrize("value", [0, 1e-9, 0.0005, -0.01725, 0.5, -9.999, 72.345, -394.6, 4072.3, 123456.7, -5e7])
def test_a_figure_takes_at_most_seven_characters(value: float) -> None:
    assert len(figure_shown(value, "+")) <= 7
    assert float(figure_shown(value)) == pytest.approx(value, rel=0.1, abs=1e-4)


def test_the_line_of_the_bar_holds_as_many_figures_as_fit() -> None:
    values = {"loss": 1.5, "lr": 2e-4, "tok/s": 12345.0}
    assert progress._fitting(values, 100) == "loss 1.500  lr 2.00e-04  tok/s 12,345"
    assert progress._fitting(values, 25) == "loss 1.500  lr 2.00e-04"
    assert progress._fitting(values, 3) == ""


@pytest.mark.parametrize(("answer", "name"), [(True, "data-m-1"), (False, "data-m-2")])
def test_an_unnamed_run_that_is_unfinished_is_asked_about(tmp_path: Path, answer: bool, name: str) -> None:
    tree: dict[str, Any] = {"model": {"base_model": "m"}, "data": {"train": "data.jsonl"}}
    config = load(tree=tree | {"output": {"folder": str(tmp_path)}})
    (tmp_path / "data-m-1" / "checkpoints" / "step-1").mkdir(parents=True)
    Run(tmp_path / "data-m-1").write_record(run_record(status="interrupted"))
    asked: list[str] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return answer

    with contextlib.ExitStack() as held:
        claim = select_run(config, False, False, confirm, PlainReporter(), held)
    assert (claim.run.name, claim.resumes, len(asked)) == (name, answer, 1)
