"""A run that was stopped and resumed ends as the one that never stopped, bit for bit."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from inlay.config import Config, load
from inlay.errors import Interrupted, RunError
from inlay.hardware import probe
from inlay.runs.folder import Run
from inlay.tasks.task import Task
from training_runs import Quiet, lines_of, outcome, stop_after, train

STEPS = 7
# 4 steps an epoch, the last with 2 rows; evaluations after 3, 6 and 7
SECTIONS: dict[str, Any] = {
    "adapter": {"dropout": 0.2},
    "train": {"batch_size": 10, "max_steps": STEPS, "eval_steps": 3, "save_steps": 2, "keep_checkpoints": 2},
}


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """`config(folder, train={…})`: the config of a short run with dropout."""
    import parts

    data = parts.write_rows(tmp_path_factory.mktemp("resume") / "data.jsonl", parts.qa_rows(40))

    def make(folder: Path, optimizer: str = "adamw", rank: int = 4) -> Config:
        return load(
            tree={
                "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
                "adapter": {"rank": rank, "dropout": 0.2},
                "data": {"train": str(data)},
                "train": SECTIONS["train"] | {"micro_batch_size": 4, "learning_rate": 1e-2, "optimizer": optimizer},
                "eval": {"resamples": 100},
                "track": {"trackers": []},
                "output": {"folder": str(folder), "name": "run"},
            }
        )

    return make


@pytest.fixture(scope="module")
def unbroken(config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(config(tmp_path_factory.mktemp("unbroken")))


def stopped(config: Config, step: int, *, resume: bool) -> None:
    with pytest.raises(Interrupted) as caught:
        train(config, resume=resume, reporter=stop_after(step))
    assert caught.value.exit_code == 130


@settings(
    max_examples=1, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(stops=st.lists(st.integers(1, STEPS), min_size=1, max_size=3, unique=True).map(sorted))
@example(stops=[1, 4, 7])  # in both epochs, before, at and behind a checkpoint that was due
@example(stops=[3])  # where an evaluation is due
def test_a_run_stopped_anywhere_any_number_of_times_ends_as_if_it_had_not_been(
    config: Callable[..., Config], unbroken: Run, tmp_path: Path, stops: list[int]
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    for number, step in enumerate(stops):
        stopped(config(tmp_path), step, resume=number > 0)
    assert outcome(train(config(tmp_path), resume=True)) == outcome(unbroken)


def test_a_resumed_run_multiplies_as_it_did_before_however_fast_this_machine_now_is(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "quickest_fp32", lambda: ("medium", "seen to be faster"))
    stopped(config(tmp_path), 2, resume=False)
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(probe, "quickest_fp32", lambda: ("highest", "seen to be faster"))
    run = train(config(tmp_path), resume=True)
    assert torch.get_float32_matmul_precision() == run.config.model.matmul_precision == "medium"
    torch.set_float32_matmul_precision("highest")


def test_8_bit_optimizer_state_survives_a_stop_in_mid_epoch(config: Callable[..., Config], tmp_path: Path) -> None:
    # matrices below 4096 numbers keep 32-bit state: rank 128 on 32 inputs has 8-bit state
    whole = train(config(tmp_path / "a", "adamw_8bit", 128))
    stopped(config(tmp_path / "b", "adamw_8bit", 128), 2, resume=False)
    resumed = train(config(tmp_path / "b", "adamw_8bit", 128), resume=True)
    assert outcome(resumed) == outcome(whole)
    assert b"U8" in outcome(whole)["files"]["optimizer"][:20_000]


def test_a_stop_during_an_evaluation_is_resumed_before_that_evaluation(
    config: Callable[..., Config], unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def scored(task: Any, model: Any, tokens: Any, shares: Any, *rest: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:  # the base's is the first, that of step 3 the second
            shares = [rows for rows in shares if signal.raise_signal(signal.SIGINT) is None]
        return real(task, model, tokens, shares, *rest)

    real = Task.score_rows
    monkeypatch.setattr(Task, "score_rows", scored)
    with pytest.raises(Interrupted, match="after step 3"):
        train(config(tmp_path))
    run = Run(tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [0, 1, 2]
    assert outcome(train(config(tmp_path), resume=True)) == outcome(unbroken)


def test_a_stop_after_the_last_step_is_resumed_with_the_export(
    config: Callable[..., Config], unbroken: Run, tmp_path: Path
) -> None:
    class StopAtExport(Quiet):
        def stage(self, text: str) -> None:
            if text.startswith("saving the adapter"):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"after the last step.*--resume"):
        train(config(tmp_path), reporter=StopAtExport())
    run = Run(tmp_path / "run")
    assert run.status == "interrupted"
    assert outcome(train(config(tmp_path), resume=True)) == outcome(unbroken)


@pytest.mark.parametrize("damage", ["bytes", "missing", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_moved_aside_and_made_again(
    config: Callable[..., Config], unbroken: Run, tmp_path: Path, damage: str
) -> None:
    stopped(config(tmp_path), 5, resume=False)
    run = Run(tmp_path / "run")
    newest = run.checkpoints / "step-000005"
    if damage == "bytes":
        content = bytearray((newest / "optimizer.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "optimizer.safetensors").write_bytes(content)
    elif damage == "missing":
        (newest / "adapter.safetensors").unlink()
    else:
        (newest / "manifest.json").write_text("{")
    reporter = Quiet()
    train(config(tmp_path), resume=True, reporter=reporter)
    assert any("passed over a damaged checkpoint, now step-000005.damaged-1" in note for note in reporter.notes)
    assert any("going on after step 4" in note for note in reporter.notes)
    assert (run.checkpoints / "step-000005.damaged-1").is_dir()
    assert outcome(run) == outcome(unbroken)


def test_a_checkpoint_that_is_damaged_while_the_run_goes_on_is_written_anew(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    from inlay.methods.adapter_state import AdapterState
    from inlay.storage import verified
    from inlay.training import checkpoint as checkpoints

    stopped(config(tmp_path), 2, resume=False)
    run = Run(tmp_path / "run")
    folder = run.checkpoints / "step-000002"
    adapter, _, _, progress = checkpoints.load(checkpoints.Checkpoint(folder))
    (folder / "adapter.safetensors").write_bytes(b"")
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2))
    kept = AdapterState(adapter.settings, adapter.tensors)
    checkpoints.write(run.checkpoints, checkpoints.snapshot(kept, torch.optim.SGD([parameter]), progress))
    verified(folder)
    assert (run.checkpoints / "step-000002.damaged-1" / "adapter.safetensors").read_bytes() == b""


def test_without_any_whole_checkpoint_nothing_is_touched(config: Callable[..., Config], tmp_path: Path) -> None:
    stopped(config(tmp_path), 1, resume=False)
    run = Run(tmp_path / "run")
    for path in run.checkpoints.glob("*/state.json"):
        path.unlink()
    before = sorted(p.name for p in run.checkpoints.iterdir())
    with pytest.raises(RunError, match=r"no checkpoint can be read.*--fresh.*\n.*state.json: missing"):
        train(config(tmp_path), resume=True)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_real_process_with_a_checkpoint_and_the_way_on(
    inlay: Callable[..., Any], config_file: Callable[..., str], tmp_path: Path, number: int, code: int
) -> None:
    sections = SECTIONS | {"train": SECTIONS["train"] | {"max_steps": 12, "eval_steps": 6, "save_steps": 6}}
    source, run = config_file("a", **sections), Run(tmp_path / "results" / "a")
    process = inlay("train", source)
    process.wait_until(lambda: lines_of(run) >= 3)
    process.send(number)
    exit_code, output = process.wait()
    assert exit_code == code, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("interrupted after step")
    command = output.strip().rpartition("or with: ")[2].split()
    assert command[:3] == ["inlay", "checkpoints", "resume"]
    assert run.status == "interrupted"
    exit_code, output = inlay(*command[1:]).wait()
    assert exit_code == 0, output
    whole = config_file("whole", **sections)
    assert outcome(run) == outcome(train(load(Path(whole))))


def test_a_killed_process_is_resumed_bit_for_bit(
    inlay: Callable[..., Any], config_file: Callable[..., str], tmp_path: Path
) -> None:
    sections = SECTIONS | {"train": SECTIONS["train"] | {"max_steps": 14, "eval_steps": 5, "save_steps": 3}}
    source, run = config_file("a", **sections), Run(tmp_path / "results" / "a")
    for at in (5, 10):
        process = inlay("train", source, "--resume")
        process.wait_until(lambda at=at: lines_of(run) >= at)
        process.send(signal.SIGKILL)
        assert process.wait()[0] == -signal.SIGKILL
    exit_code, output = inlay("train", source, "--resume").wait()
    assert exit_code == 0, output
    assert "going on after step" in output
    assert not list(run.path.rglob("*staging*"))
    assert outcome(run) == outcome(train(load(Path(config_file("whole", **sections)))))


def test_a_second_ctrl_c_waits_for_nothing(config: Callable[..., Config], tmp_path: Path) -> None:
    def twice(step: int) -> None:
        if step == 2:
            listening = signal.getsignal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            until = time.monotonic() + 10  # two signals before the first is handled would count as one
            while signal.getsignal(signal.SIGINT) is listening and time.monotonic() < until:
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(Interrupted, match="stopped at once") as caught:
            train(config(tmp_path), reporter=Quiet(twice))
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 130
    assert Run(tmp_path / "run").status == "interrupted"


def test_ctrl_c_before_training_begins_leaves_nothing(
    inlay: Callable[..., Any], config_file: Callable[..., str], tmp_path: Path
) -> None:
    for number, stage in enumerate(("reading", "loading")):
        process = inlay("train", config_file(f"r{number}"))
        process.wait_until(lambda p=process, s=stage: p.printed(f"… {s}"))
        process.send(signal.SIGINT)
        exit_code, output = process.wait()
        assert (exit_code, "Traceback" in output) == (130, False), output
        assert not (tmp_path / "results").exists() or "Go on" in output or "Nothing was trained yet" in output
