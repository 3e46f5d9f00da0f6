"""run.json is one typed record: it is read as it was written, and a damaged one is named by its key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import RunError, TrainingError
from inlay.runs.folder import Run
from inlay.runs.guard_events import incidents
from inlay.runs.record import FAILED, FINISHED, Diagnosis, OutOfMemoryEvent, RunRecord
from parts import run_record, run_result
from training_runs import Tree, train


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_record_is_read_as_it_was_written(run: Run) -> None:
    record = run_record(
        status=FINISHED, result=run_result(diagnosis=Diagnosis("stalled", "flat")), profile={"data": 0.5},
        out_of_memory=(OutOfMemoryEvent("training", 3, 4, "short"),),
    )  # fmt: skip
    run.write_record(record)
    assert run.record == record
    assert run.result.diagnosis == Diagnosis("stalled", "flat")


def test_a_finished_run_has_the_keys_that_scripts_rely_on(config_tree: Tree) -> None:
    tree = json.loads((train(config_tree()).path / "run.json").read_text())
    assert list(tree) == [
        "status", "started_at", "seed", "versions", "device", "dtype", "quantization", "heldout_available", "max_length",
        "eval_batch_size", "trainable_parameters", "total_parameters", "settings_hash", "data_hash", "base_digest",
        "tokenizer_hash", "chat_template_hash", "base_fingerprint", "base_commit", "error", "machine", "result",
    ]  # fmt: skip
    assert list(tree["result"]) == [
        "run", "status", "steps", "adapter_step", "best_step", "train_loss", "eval_loss", "base_eval_loss", "difference",
        "low", "high", "verdict", "reason", "stopped_early", "diagnosis", "plateau", "skipped_steps", "trained_batches", "rollbacks",
        "gradient_spikes", "out_of_memory", "tokens_seen", "trained_tokens_seen", "train_time_s", "time_s", "adapter",
        "opens_in",
    ]  # fmt: skip


def test_a_key_of_a_newer_version_stays_when_the_record_is_written_again(run: Run) -> None:
    newer = run_record().to_json() | {"served": {"requests": 3}}
    run.path.mkdir()
    (run.path / "run.json").write_text(json.dumps(newer))
    run.write_record(replace(run.record, status=FINISHED))
    assert json.loads((run.path / "run.json").read_text()) == newer | {"status": "finished"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": "0"}, r"seed: must be int \(got '0'\)"),
        ({"status": "done"}, "status: must be"),
        ({"result": {"steps": 3}}, "result.run: missing"),
        ({"dtype": None}, "dtype: must be str"),
    ],
)
def test_a_damaged_record_is_named_by_its_key(run: Run, change: dict[str, Any], named: str) -> None:
    run.path.mkdir()
    (run.path / "run.json").write_text(json.dumps(run_record().to_json() | change))
    with pytest.raises(RunError, match=rf"run.json: cannot be read \({named}"):
        _ = run.record


def test_a_folder_without_a_record_is_empty_and_has_no_result(run: Run) -> None:
    assert (run.is_recorded, run.status) == (False, "empty")
    with pytest.raises(RunError, match=r"run.json: cannot be read"):
        _ = run.record
    run.write_record(run_record())
    with pytest.raises(RunError, match=r"has no result yet \(status running\)"):
        _ = run.result


def test_the_step_that_failed_is_recorded_and_not_read_out_of_a_message(
    config_tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from inlay.training import guards

    def refuse(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss of step 99 is of no concern here.", step=2)

    monkeypatch.setattr(guards, "require_finite_update", refuse)
    with pytest.raises(TrainingError, match="step 99"):
        train(config_tree(output={"name": "a"}))
    run = Run(tmp_path / "results" / "a")
    assert (run.record.status, run.record.failed_step) == (FAILED, 2)
    assert [one.step for one in incidents(run) if one.kind == "failed"] == [2]


def test_a_failure_without_a_step_is_listed_at_the_last_logged_one(run: Run) -> None:
    run.path.mkdir()
    run.log_metrics({"step": 7, "loss": 1.0})
    run.write_record(run_record(status=FAILED, error="the disk went away"))
    assert [(one.step, one.kind) for one in incidents(run)] == [(7, "failed")]


def test_something_that_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="must be RunRecord"):
        RunRecord.from_json([1])
