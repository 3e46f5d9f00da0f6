"""Runs on the tiny base, in this process and in others, and what two equal runs have in common."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from inlay import api
from inlay.config import Config
from inlay.runs.folder import Run
from inlay.training.checkpoint import Progress, Saver
from inlay.training.job import AdapterJob
from inlay.training.optimizer import make_optimizer

TIMED = {"time_s", "train_time_s", "tokens_per_s", "memory_bytes", "run", "adapter", "metrics_seal"}
"""Figures that depend on the clock or on the folder."""
Tree = Callable[..., dict[str, Any]]


class Quiet:
    """A reporter that keeps the notes and calls back after every step."""

    def __init__(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self._after_step = after_step

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def start(self, total: int, done: int, unit: str) -> None: ...

    def progress(self, done: int, values: dict[str, Any]) -> None:
        self._after_step(done)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None: ...


def stop_after(step: int) -> Quiet:
    """A reporter that sends this process a real SIGINT after that step."""
    return Quiet(lambda done: os.kill(os.getpid(), signal.SIGINT) if done == step else None)


def train(tree: dict[str, Any] | Config, **options: Any) -> Run:
    return api.train(tree, reporter=options.pop("reporter", Quiet()), **options)


def outcome(run: Run) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it was interrupted."""
    result = run.result.to_json()
    last = run.checkpoints / f"step-{result['steps']:06d}"
    state = json.loads((last / "state.json").read_text())
    kept = {"adapter": run.adapter / "adapter_model.safetensors", "last": last / "adapter.safetensors"}
    kept |= {"optimizer": last / "optimizer.safetensors"}
    return {
        "files": {name: path.read_bytes() for name, path in kept.items()},
        "optimizer": state["optimizer"],
        "progress": untimed(state["progress"]),
        "result": untimed(result),
        "metrics": [untimed(line) for line in run.metrics],
        "best": (run.checkpoints / f"step-{result['best_step']:06d}" / "adapter.safetensors").read_bytes(),
    }


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMED}


class Forked:
    """A real process that makes a call; its parent has imported torch once for all of them."""

    def __init__(self, call: Callable[[], None], folder: Path, env: dict[str, str] | None = None) -> None:
        """`call` must be a function of a module, or a partial of one."""
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / "output.txt"
        self._process = _CONTEXT.Process(target=_run, args=(call, str(self._output), env or {}))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60) -> tuple[int, str]:
        """(exit code, everything it printed); minus the signal when one killed it."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {timeout_s} s:\n{self._output.read_text()}")
        return self._process.exitcode, self._output.read_text()

    def wait_until(self, true: Callable[[], bool], timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while not true():
            if self._process.exitcode is not None or time.monotonic() > end:
                raise AssertionError(f"it never happened:\n{self._output.read_text()}")
            time.sleep(0.01)

    def printed(self, text: str) -> bool:
        return self._output.exists() and text in self._output.read_text()


class Inlay(Forked):
    """A real process that runs the command line."""

    def __init__(
        self, arguments: list[str], folder: Path, env: dict[str, str], before: Callable[[], None] | None = None
    ) -> None:
        """`before` is called in the process first; it must be a function of a module, or a partial of one."""
        super().__init__(partial(_inlay, arguments, before), folder, env)


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(  # by name: the fork server does not know the folder of the tests
    [
        "torch", "transformers.models.llama.modeling_llama", "peft", "bitsandbytes", "matplotlib.figure",
        "matplotlib.backends.backend_agg", "inlay.cli", "inlay.api.training", "inlay.api.evaluation", "inlay.training.setup", "inlay.runs.report",
        "inlay.evaluation.compare", "inlay.cli.render.comparison", "inlay.serving.lifetime",
    ]
)  # fmt: skip


def _run(call: Callable[[], None], output: str, env: dict[str, str]) -> None:
    """The call, with everything that it prints in a file."""
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    call()


def _inlay(arguments: list[str], before: Callable[[], None] | None) -> None:
    """`inlay ARGUMENTS`. Ends the process."""
    from inlay.cli import main

    sys.argv = ["inlay", *arguments]
    if before:
        before()
    main()


def at_start(job: AdapterJob, run: Run) -> AdapterJob:
    """The job at step 0 in a run folder; its adapter is the one on the model."""
    made = replace(
        job, optimizer=make_optimizer(job.config.train, job.parameters), progress=Progress(), saver=Saver(),
        out_of_memory_events=[],
    )  # fmt: skip
    made.run = run
    return made


def lines_of(run: Run) -> int:
    return len(run.metrics) if (run.path / "metrics.jsonl").exists() else 0
