"""Checkpoints as a user handles them: kept, pinned, cleaned, tested, extended, saved on a signal, and without pickle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import parts
from inlay import api
from inlay.config import Config, load
from inlay.engine import cpu_ops
from inlay.errors import ConfigError, RunError, StorageError, TrainingError
from inlay.runs.folder import Run
from inlay.storage import write_manifest
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Saver
from training_runs import Inlay, Quiet, outcome, train

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    data = parts.write_rows(tmp_path_factory.mktemp("kept") / "data.jsonl", parts.qa_rows(40))

    def make(folder: Path, **settings: Any) -> Config:
        steps = {"batch_size": 10, "max_steps": 6, "learning_rate": 1e-2, "save_steps": 1, "eval_steps": 3}
        return load(
            tree={
                "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
                "adapter": {"rank": 4},
                "data": {"train": str(data)},
                "train": steps | {"keep_checkpoints": 6} | settings,
                "eval": {"resamples": 100, "max_new_tokens": 4, "max_rows": 4, "retention_rows": 0},
                "track": {"trackers": []},
                "output": {"folder": str(folder), "name": "run"},
            }
        )

    return make


@pytest.fixture(scope="module")
def kept(config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with the checkpoints of steps 1 to 6. Not to be changed."""
    return train(config(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def run(kept: Run, tmp_path: Path) -> Run:
    """A copy to be changed."""
    subprocess.run(["cp", "-r", str(kept.path), str(tmp_path / "run")], check=True)
    return Run(tmp_path / "run")


def steps(run: Run) -> list[int]:
    return [c.step for c in checkpoints.listed(run.checkpoints)]


# Retention


def test_retention_keeps_the_newest_the_best_the_pinned_and_every_kth(config: Make, tmp_path: Path) -> None:
    run = Run(tmp_path / "results" / "run")

    def pin_the_first(done: int) -> None:
        while done == 2 and not (run.checkpoints / "step-000001").exists():
            time.sleep(0.01)  # it is being written beside the training
        if done == 2:
            api.pin(run, 1)

    train(config(run.path.parent, keep_checkpoints=1, keep_every=2, eval_steps=6), reporter=Quiet(pin_the_first))
    assert steps(run) == [1, 2, 4, 6]


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(1, 60), min_size=1), st.integers(1, 8), st.integers(1, 60), st.none() | st.integers(1, 9),
    st.sets(st.integers(1, 60)),
)  # fmt: skip
def test_surplus_is_what_no_rule_keeps(
    tmp_path_factory: pytest.TempPathFactory, there: set[int], keep: int, best: int, every: int | None, pins: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    for step in there:
        (folder / f"step-{step:06d}").mkdir()
        os.utime(folder / f"step-{step:06d}", (1e9 - step, 1e9 - step))  # clocks say the opposite
    for step in pins:
        checkpoints.set_pinned(folder, step, True)
    gone = {c.step for c in checkpoints.surplus(folder, keep, {best, None}, every)}
    by_rule = {s for s in there if s == best or s in pins or (every and s % every == 0)} | set(sorted(there)[-keep:])
    assert gone == there - by_rule


def test_clean_says_first_and_never_takes_the_newest_whole_one_the_best_or_a_pinned_one(run: Run) -> None:
    api.pin(run, 2)
    (run.checkpoints / "step-000006" / "adapter.safetensors").write_bytes(b"damaged")
    best = next(row["step"] for row in api.checkpoints(run) if row["best"])
    assert best == 3  # as step 5 knew it
    would = [row["step"] for row in api.clean_checkpoints(run, keep=1, dry_run=True)]
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in api.clean_checkpoints(run, keep=1)] == would
    assert steps(run) == sorted({2, 5, 6, best})


def test_delete_refuses_what_the_run_needs(run: Run) -> None:
    api.pin(run, 2)
    best = next(row["step"] for row in api.checkpoints(run) if row["best"])
    for step, reason in (
        (6, "newest whole one" if best != 6 else "newest"),
        (2, "pinned"),
        (9, "no checkpoint of step 9"),
    ):
        with pytest.raises(RunError, match=reason):
            api.delete_checkpoint(run, step)
    api.pin(run, 2, keep=False)
    api.delete_checkpoint(run, 2)
    assert 2 not in steps(run)


# Any checkpoint is an adapter


def test_a_checkpoint_is_shown_compared_asked_and_trained_from(run: Run, config: Make, tmp_path: Path) -> None:
    shown = api.checkpoint(run, 3)
    assert shown["eval_loss"] is not None
    assert shown["inputs"]["base_digest"] == run.record.base_digest
    comparison = api.compare(f"{run.path}@3", reporter=Quiet())
    assert abs(comparison.metrics["loss"].other - shown["eval_loss"]) < 1e-5
    assert (run.reports / "report.md").exists()
    assert isinstance(api.load(f"{run.path}@3").generate("Hello", max_new_tokens=2), str)
    later = config(tmp_path / "more", max_steps=1)
    later = later.model_copy(update={"adapter": later.adapter.model_copy(update={"start_from": f"{run.path}@3"})})
    assert train(later).status == "finished"
    with pytest.raises(RunError, match=r"no checkpoint of step 7\. There are 1, 2, 3"):
        api.load(f"{run.path}@7")


def test_a_run_is_usable_from_another_folder_and_may_be_moved_with_its_data(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    parts.write_rows(tmp_path / "a" / "data.jsonl", parts.qa_rows(20))
    monkeypatch.chdir(tmp_path / "a")
    here = config(Path("results"), max_steps=2)
    here = here.model_copy(update={"data": here.data.model_copy(update={"train": "data.jsonl"})})
    train(here)
    monkeypatch.chdir(tmp_path)
    extended = api.resume("a/results/run", extend="3", reporter=Quiet())
    assert extended.result.steps == 3


# Longer, and on a signal


def test_an_extended_run_is_the_longer_run_where_the_rate_does_not_depend_on_the_length(
    config: Make, tmp_path: Path
) -> None:
    constant = {"schedule": "constant", "warmup_steps": 2}
    longer = train(config(tmp_path / "whole", **constant, max_steps=9))
    short = config(tmp_path / "extended", **constant, max_steps=6)
    train(short)
    for _ in range(2):  # a supervisor repeats the command
        run = train(short, extend="9")
    assert outcome(run) == outcome(longer)
    assert run.config.train.max_steps == 9


def test_only_a_run_with_a_checkpoint_is_extended_and_never_backwards(config: Make, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to extend"):
        train(config(tmp_path / "none"), extend="12")
    short = config(tmp_path, max_steps=2)
    train(short)
    with pytest.raises(RunError, match="is at step 2 already, past 1"):
        train(short, extend="1")
    with pytest.raises(ConfigError, match="not a length"):
        train(short, extend="-1")


def test_sigusr1_saves_now_and_training_goes_on(config: Make, tmp_path: Path) -> None:
    reporter = Quiet(lambda done: os.kill(os.getpid(), signal.SIGUSR1) if done == 2 else None)
    run = train(config(tmp_path, save_steps=100, eval_steps=100, max_steps=5), reporter=reporter)
    assert {2, 3} & set(steps(run))  # at the end of the step in which it came
    assert any("as asked" in note for note in reporter.notes)
    assert run.result.steps == 5


def test_going_on_says_step_epoch_learning_rate_and_rows(config: Make, tmp_path: Path) -> None:
    short = config(tmp_path, max_steps=2)
    train(short)
    reporter = Quiet()
    train(short, extend="3", reporter=reporter)
    assert any(
        "after step 2 of 3 (epoch 0." in note and "learning rate 0.0" in note and "20 rows seen" in note
        for note in reporter.notes
    )


# Where a checkpoint comes from, and how it is written


def test_a_checkpoint_of_another_run_is_moved_aside_with_the_reason(run: Run, config: Make, tmp_path: Path) -> None:
    other = config(tmp_path / "other", max_steps=7)
    data = parts.write_rows(tmp_path / "other.jsonl", parts.qa_rows(30))
    other = other.model_copy(update={"data": other.data.model_copy(update={"train": str(data)})})
    strange = train(other)
    subprocess.run(["cp", "-r", str(strange.checkpoints / "step-000007"), str(run.checkpoints)], check=True)
    reporter = Quiet()
    resumed = api.resume(run, extend="7", reporter=reporter)
    assert any("is of another run (data_hash differ)" in note for note in reporter.notes)
    assert (run.checkpoints / "step-000007.damaged-1").exists()
    assert resumed.result.steps == 7


def test_a_checkpoint_says_with_which_versions_it_was_computed_and_going_on_with_others_is_noted(run: Run) -> None:
    newest = checkpoints.listed(run.checkpoints)[-1]
    about = {key: value for key, value in newest.about.items() if key not in ("files", "sha256")}
    assert about["versions"]["torch"] == torch.__version__
    assert set(about["versions"]) >= {"transformers", "peft", "inlay"}
    about["versions"]["torch"] = "2.0.0"
    write_manifest(newest.path, about)
    reporter = Quiet()
    api.resume(run, extend="7", reporter=reporter)
    assert any(f"(torch 2.0.0 then, {torch.__version__} now)" in note for note in reporter.notes)
    again = Quiet()
    api.resume(run, extend="8", reporter=again)  # from a checkpoint of today's versions
    assert not any("versions" in note for note in again.notes)


def test_going_on_without_the_fused_loops_that_a_checkpoint_was_computed_with_is_noted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = "none" if cpu_ops.reason(torch.float32) else "compiled"
    now = {"none": "compiled", "compiled": "none"}[then]
    monkeypatch.setattr(cpu_ops, "reason", lambda _: "no compiler" if now == "none" else None)
    monkeypatch.setattr(cpu_ops, "takes", lambda *_: False)
    reporter = Quiet()
    api.resume(run, extend="7", reporter=reporter)
    assert any(f"fused loops {then} then, {now} now" in note for note in reporter.notes)


def test_a_value_that_is_not_finite_never_reaches_the_disk(kept: Run) -> None:
    import torch

    adapter, _, _, progress = checkpoints.load(checkpoints.listed(kept.checkpoints)[-1])
    next(iter(adapter.tensors.values())).view(-1)[0] = float("nan")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(TrainingError, match="is not finite: nothing was written"):
        checkpoints.snapshot(adapter, optimizer, progress)


def test_a_save_that_fails_beside_the_training_is_raised_at_the_next_and_at_the_end() -> None:
    def refused() -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="full"), Saver() as saver:
        saver.save(refused)
    done = threading.Event()
    with Saver() as saver:
        saver.save(refused)
        with pytest.raises(StorageError, match="full"):
            saver.save(done.set)
    assert not done.is_set()


def without_pickle() -> None:
    """In a process of its own: an audit hook cannot be taken away."""
    import pickle

    def forbid(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("pickle") or event == "marshal.load":
            raise RuntimeError(f"{event} {arguments}")

    def forbidden(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("pickle")

    torch.load = torch.save = forbidden
    sys.addaudithook(forbid)
    for name in ("dump", "dumps", "load", "loads"):
        setattr(pickle, name, forbidden)


def test_training_and_resuming_never_touch_pickle(inlay: Callable[..., Inlay], config_file: Callable[..., str]) -> None:
    source = config_file("run", train={"max_steps": 2, "batch_size": 4})
    for arguments in (["train", source], ["train", source, "--extend", "3"]):
        code, output = inlay(*arguments, before=without_pickle).wait()
        assert code == 0, output
    assert "going on after step 2 of 3" in output


def test_a_damaged_best_checkpoint_ends_with_a_way_out_that_works(config: Make, tmp_path: Path) -> None:
    run = train(config(tmp_path, learning_rate=0.3, schedule="constant", warmup_ratio=0.0, eval_steps=1, max_steps=2))
    record = run.record
    best = record.result.best_step
    assert best < record.result.steps  # the rate is far too high
    run.write_record(replace(record, status="interrupted"))
    (run.checkpoints / f"step-{best:06d}" / "adapter.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"It was the best step, now step-\d+.damaged-1.*set train.export to last"):
        api.resume(run)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("export: best", "export: last"))
    assert api.resume(run).result.adapter_step == record.result.steps


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step": "4"}, r"progress\.step: must be int"),
        ({"plateau": {"step": 4, "kind": "stalled", "reason": "flat"}}, r"progress\.plateau\.back_to: missing"),
        ({"rollbacks": [{"step": 1}]}, r"progress\.rollbacks\[0\]\.failed_step: missing"),
        ({"pace": 3}, "progress has unknown keys: pace"),
    ],
)
def test_a_damaged_state_is_named_by_its_key(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        checkpoints.Progress.from_json({"step": 4} | change)
