"""Every answer of a guard is listed with its step and what was done, and marked in the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inlay.runs import report
from inlay.runs.folder import Run
from inlay.runs.guard_events import as_markdown, incidents
from inlay.runs.record import FAILED, EscapeOutcome, OutOfMemoryEvent, Plateau
from parts import run_record, run_result

FLAT: dict[str, Any] = {"diagnosis": "stalled", "reason": "held-out loss +0.0"}
LINES: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 3.0, "learning_rate": 0.1, "grad_norm": 50.0, "spike": 12.5},
    {"step": 2, "epoch": 0.2, "event": "skipped", "error": "step 2: loss is nan on rows a.jsonl:3."},
    {"step": 2, "event": "rollback", "failed_step": 4, "error": "step 4: loss is inf | nan", "learning_rate_factor": 0.5,
     "batches_passed": [3, 4]},
    {"step": 5, "loss": 2.9, "learning_rate": 0.1, "grad_norm": 1.0, "eval_loss": 2.9, "done": "noted", **FLAT},
    {"step": 6, "loss": 2.9, "learning_rate": 0.1, "grad_norm": 1.0, "eval_loss": 2.9, "done": "noted", **FLAT},
    {"step": 7, "loss": 2.9, "learning_rate": 0.1, "grad_norm": 1.0, "eval_loss": 2.8},
    {"step": 8, "loss": 2.9, "learning_rate": 0.1, "grad_norm": 1.0, "eval_loss": 2.9, "done": "noted", **FLAT},
    {"step": 9, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0, "eval_loss": 3.9, "diagnosis": "overfitting",
     "reason": "it rose", "done": "the run was stopped"},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    made.path.mkdir()
    for line in LINES:
        made.log_metrics(line)
    result = run_result(
        plateau=Plateau(step=5, back_to=4, kind="stalled", reason=""),
        escape=EscapeOutcome(tried=False, reason="the run stopped early"),
    )
    made.write_record(run_record(
        status=FAILED, error="the disk went away", result=result,
        out_of_memory=(OutOfMemoryEvent("training", 3, 4, "CUDA out of memory"),),
    ))  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("error", "step"),
    [
        ("step 12: loss is nan on rows a.jsonl:3.", 12),
        ("after step 1 2 of 14 matrices B have not moved", 1),
        ("before step 1: the base's own held-out loss is nan.", 1),
        ("results/a: 1 of 9 proofs failed", 9),  # no step is at fault: the last one that was logged
    ],
)
def test_a_failure_without_a_recorded_step_is_shown_at_the_step_that_its_message_names(
    run: Run, error: str, step: int
) -> None:
    run.write_record(run_record(status=FAILED, error=error))
    assert [one.step for one in incidents(run) if one.kind == "failed"] == [step]


def test_each_kind_is_listed_by_its_step_with_what_was_done(run: Run) -> None:
    assert [(one.step, one.kind) for one in incidents(run)] == [
        (1, "spike"), (2, "skipped"), (3, "out of memory"), (4, "rollback"), (5, "plateau"), (5, "escape"),
        (8, "plateau"), (9, "overfitting"), (9, "failed"),
    ]  # fmt: skip
    text = "\n".join(as_markdown(incidents(run)))
    assert "| 1 | spike | gradient norm 50, 12.5 deviations above the last ones | clipped" in text
    assert "| 4 | rollback | step 4: loss is inf \\| nan | back to step 2, past the batches 3 to 4, 0.5 of the" in text
    assert (
        "| 3 | out of memory | in training: CUDA out of memory | the same rows again, 4 at a time from there on |"
        in text
    )
    assert "| 9 | overfitting | overfitting: it rose | the run was stopped |" in text
    assert as_markdown([]) == ["No guard had anything to answer."]


def test_the_curves_have_a_mark_at_every_step_where_a_guard_answered(run: Run) -> None:
    loss = report.curves(run).axes[0]
    marks = [line for line in loss.lines if line.get_linestyle() == "--"]
    assert sorted(float(line.get_xdata()[0]) for line in marks) == sorted(float(one.step) for one in incidents(run))
    named = {text.get_text() for text in loss.get_legend().get_texts()}
    assert named == {"training loss", "held-out loss", *(one.kind for one in incidents(run))}
