"""Methods side by side: one run each in a process of its own, one table, and a way on when it was cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.cli.render.scores import methods_text
from inlay.errors import ConfigError, Interrupted, RunError
from inlay.runs.folder import Run
from inlay.runs.record import FINISHED
from inlay.workflows.compare_methods import (
    REPORT,
    RESULT,
    VARIANTS,
    ComparedMethod,
    MethodComparison,
    MethodFigures,
    _configs,
    _wait_for,
)
from program import environment
from training_runs import Inlay, Quiet, lines_of, stop_after

Tree = Callable[..., dict[str, Any]]


@pytest.fixture
def tree(config_tree: Tree, tmp_path: Path) -> dict[str, Any]:
    return config_tree(train={"max_steps": 2}, output={"folder": str(tmp_path / "results"), "name": "all"})


@pytest.mark.slow
def test_a_method_that_cannot_run_is_a_row_with_its_reason_and_what_is_finished_is_not_run_again(
    tree: dict[str, Any], monkeypatch: Any
):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    tree["adapter"] |= {"bias": "all"}  # which a Llama has not
    found = api.compare_methods(tree, ["lora", "ia3"], reporter=Quiet())
    lora, ia3 = found.methods
    assert lora.reason == "adapter.bias all: this base has no such biases. Leave it at none."
    assert ia3.reason is None
    run = Run(Path(found.folder) / "ia3")
    result = run.result.to_json()
    assert (ia3.figures.eval_loss, ia3.figures.verdict) == (result["eval_loss"], result["verdict"])
    assert ia3.figures.trainable == 2 * (16 + 16 + 48)
    assert ia3.figures.learning_rate == 3e-3
    assert ia3.figures.memory_bytes > 1e8
    assert 0 < ia3.figures.saved_bytes < 10_000
    ended = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if not path.name.startswith(".lock")}
    again = api.compare_methods(tree, ["ia3"], reporter=Quiet())
    assert again.methods == [ia3]
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if not path.name.startswith(".lock")} == ended
    assert "this base has no such biases" in methods_text(found, 80)
    assert "ia3" in (Path(found.folder) / REPORT).read_text()
    with pytest.raises(RunError, match="compared with other settings"):
        api.compare_methods(tree | {"train": tree["train"] | {"seed": 1}}, ["ia3"], reporter=Quiet())


def test_a_skipped_method_has_its_reason_and_no_figures_and_a_trained_one_has_both_in_one_object() -> None:
    figures = MethodFigures(10, 0.1, 1e-3, 5, 6, 2, 1.0, 2.0, 3.0, 2.5, -0.5, -0.6, -0.4, "better")
    trained = ComparedMethod("ia3", "all/ia3", FINISHED, None, figures)
    skipped = ComparedMethod("full", "all/full", "skipped", "does not fit", None)
    found = MethodComparison("all", [trained, skipped], ["a note"])
    rows = found.to_json()["methods"]
    assert rows[1] == {"method": "full", "run": "all/full", "status": "skipped", "reason": "does not fit"}
    assert rows[0] == {
        "method": "ia3", "run": "all/ia3", "status": "finished", "reason": None, "trainable": 10, "share": 0.1,
        "learning_rate": 1e-3, "memory_bytes": 5, "saved_bytes": 6, "steps": 2, "train_time_s": 1.0, "time_s": 2.0,
        "base_eval_loss": 3.0, "eval_loss": 2.5, "difference": -0.5, "low": -0.6, "high": -0.4, "verdict": "better",
    }  # fmt: skip
    text = methods_text(found, 80)
    assert "full: does not fit" in text
    assert "3.000 → 2.500" in text


def test_methods_differ_in_the_method_alone(tree: dict[str, Any]):
    tree["train"]["learning_rate"] = "auto"
    configs = _configs(api.as_config(tree), list(VARIANTS))
    assert len({config.model_dump_json() for config in configs.values()}) == len(VARIANTS)
    for part in ("data", "eval", "generation"):
        assert len({getattr(config, part).model_dump_json() for config in configs.values()}) == 1
    trained = [config.train.model_dump(exclude={"lora_plus_ratio"}) for config in configs.values()]
    assert all(one == trained[0] for one in trained)
    assert {name: config.adapter.rank for name, config in configs.items() if config.adapter.method == "lora"} == {
        name: 4 for name in VARIANTS if name not in ("ia3", "prompt", "full")
    }


@pytest.mark.parametrize(
    ("sections", "methods", "said"),
    [
        ({}, ["lora", "lorra"], "unknown method 'lorra'"),
        ({}, [], "name some of lora, qlora"),
        ({"adapter": {"dora": True}}, ["lora"], "adapter.dora: what differs between methods is set by --methods"),
        ({"model": {"quantization": "nf4"}}, ["lora"], "model.quantization: what differs"),
    ],
)
def test_what_means_no_comparison_of_methods_is_refused(sections: Any, methods: list[str], said: str, tree: Any):
    for name, values in sections.items():
        tree[name] = tree[name] | values
    with pytest.raises(ConfigError, match=said):
        api.compare_methods(tree, methods, reporter=Quiet())


def test_a_comparison_that_is_killed_takes_its_method_along_and_leaves_a_run_to_go_on_with(
    tree: dict[str, Any], inlay: Callable[..., Inlay], tmp_path: Path
):
    tree["train"] |= {"max_steps": 300, "eval_steps": 300, "save_steps": 300}
    config, run = tmp_path / "config.yaml", Run(tmp_path / "results" / "all" / "ia3")
    config.write_text(json.dumps(tree))
    comparing = inlay("compare-methods", str(config), "--methods", "ia3", PYTHONPATH=environment()["PYTHONPATH"])
    comparing.wait_until(lambda: lines_of(run) >= 3)
    comparing.send(signal.SIGKILL)
    assert comparing.wait()[0] == -signal.SIGKILL
    end = time.monotonic() + 60
    while run.status == "running" and time.monotonic() < end:
        time.sleep(0.02)
    assert run.status == "interrupted", "at once, not at its last step"
    _wait_for(run, Quiet())
    again = stop_after(lines_of(run))
    with pytest.raises(Interrupted):  # in this process, what the same command would start
        api.train(run.path.with_suffix(".yaml"), resume=True, reporter=again)
    assert any("going on after step" in note for note in again.notes), "from the checkpoint of its last step"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_comparison_that_was_interrupted_goes_on_where_it_was(tree: dict[str, Any], tmp_path: Path, number: int):
    tree["train"] |= {"max_steps": 60, "save_steps": 2}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "inlay", "compare-methods", str(config), "--methods", "ia3,full", "--json"]
    options: dict[str, Any] = {
        "env": environment(),
        "cwd": tmp_path,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    process = subprocess.Popen(command, text=True, **options)
    folder = tmp_path / "results" / "all"
    end = time.monotonic() + 120
    while not list((folder / "full" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted while full was trained" in json.loads(out)["error"]
        assert Run(folder / "full").status == "interrupted"
    assert Run(folder / "ia3").status == FINISHED
    done = subprocess.run(command, check=True, text=True, **options)
    assert "ia3: finished before" in done.stderr
    assert "going on after step" in done.stderr
    rows = json.loads(done.stdout)["methods"]
    assert [(row["method"], row["steps"], row["reason"]) for row in rows] == [("ia3", 60, None), ("full", 60, None)]
    assert json.loads((folder / RESULT).read_text())["methods"] == rows
