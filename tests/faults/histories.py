"""Random histories of saving, evaluating, forgetting, damaging and restarting, held against a model in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from lab import Tally

from inlay.errors import StorageError
from inlay.methods.adapter_state import AdapterState
from inlay.storage import sweep_staging, verified
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Checkpoint, Progress

_TEN_YEARS_S = 10 * 365 * 24 * 3600


class History(RuleBasedStateMachine):
    """One run's checkpoints folder. The model: what was saved at each step, and which of it was damaged since."""

    place: ClassVar[Path]
    begun: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).begun += 1
        self.folder = Path(tempfile.mkdtemp(dir=self.place))
        self.parameter = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.AdamW([self.parameter])
        self.progress = Progress()
        self.saved: dict[int, float] = {}
        self.damaged: set[int] = set()
        self.keep = 2

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(steps=st.integers(1, 3), loss=st.one_of(st.none(), st.floats(0, 9)), keep=st.integers(1, 3))
    def train_and_save(self, steps: int, loss: float | None, keep: int) -> None:
        for _ in range(steps):
            self.parameter.grad = torch.full((2,), 0.1 + self.progress.step)
            self.optimizer.step()
            self.progress.step += 1
        progress, self.keep = self.progress, keep
        if loss is not None:
            progress.eval_loss, progress.eval_step = loss, progress.step
            if progress.best_eval_loss is None or loss < progress.best_eval_loss:
                progress.best_eval_loss, progress.best_step = loss, progress.step
        self._save()

    @rule()
    def save_again(self) -> None:
        if self.progress.step:
            self._save()

    def _save(self) -> None:
        step = self.progress.step
        adapter = AdapterState({"r": 1}, {"a": self.parameter.detach().clone()})
        checkpoints.write(self.folder, checkpoints.snapshot(adapter, self.optimizer, self.progress))
        self.saved[step] = float(self.parameter[0].detach())
        self.damaged.discard(step)
        checkpoints.prune(self.folder, self.keep, {self.progress.best_step})
        there = [c.step for c in checkpoints.listed(self.folder)]
        expected = set(sorted(self.saved)[-self.keep :]) | ({self.progress.best_step} & set(self.saved))
        assert set(there) == expected, f"kept {there}, expected {sorted(expected)}"
        self.saved = {n: value for n, value in self.saved.items() if n in expected}
        self.damaged &= expected
        verified(self.folder / f"step-{step:06d}")

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 3), name=st.sampled_from(["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]),
          at=st.integers(0, 10**6), kind=st.sampled_from(["flip", "cut", "gone"]))  # fmt: skip
    def damage(self, which: int, name: str, at: int, kind: str) -> None:
        step = sorted(self.saved)[which % len(self.saved)]
        path = self.folder / f"step-{step:06d}" / name
        if not path.exists() or (kind == "flip" and step in self.damaged):
            return  # a second flip might undo the first
        content = bytearray(path.read_bytes())
        if kind == "gone" or not content:
            path.unlink()
        else:
            content[at % len(content)] ^= 0x10
            path.write_bytes(content[: at % len(content)] if kind == "cut" else content)
        self.damaged.add(step)

    @rule(name=st.sampled_from([".staging-step-000009-1", ".staging-old-x-1", ".staging-delete-step-000001"]))
    def a_killed_writer_left_something(self, name: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "adapter.safetensors").write_bytes(b"half")

    @rule(by_s=st.sampled_from([3600, -3600, _TEN_YEARS_S, -_TEN_YEARS_S]), which=st.integers(0, 3))
    def the_clock_jumps(self, by_s: int, which: int) -> None:
        for checkpoint in checkpoints.listed(self.folder)[which:]:
            os.utime(checkpoint.path, (time.time() + by_s,) * 2)

    @rule()
    def restart(self) -> None:
        """As resume does it."""
        sweep_staging(self.folder)
        newest, faults = checkpoints.newest_valid(self.folder)
        whole = set(self.saved) - self.damaged
        assert (newest.step if newest else None) == max(whole, default=None)
        for damaged, _ in faults:
            assert damaged.step in self.damaged
        if newest is None:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.saved, self.damaged = {}, set()
            self.progress = Progress()
            return
        for damaged, _ in faults:
            checkpoints.set_aside(damaged)
            self.saved.pop(damaged.step)
            self.damaged.discard(damaged.step)
        adapter, _, _, self.progress = checkpoints.load(newest)
        assert float(adapter.tensors["a"][0]) == self.saved[newest.step]
        self.parameter.data.copy_(adapter.tensors["a"])
        best = self.progress.best_step
        if best in self.damaged:
            try:
                checkpoints.load(Checkpoint(self.folder / f"step-{best:06d}"))
            except StorageError:
                return
            raise AssertionError(f"step {best} is damaged and was loaded")


def histories(folder: Path, count: int) -> Tally:
    tally = Tally("random histories of save, evaluate, forget, damage, clock and restart")
    folder.mkdir(parents=True, exist_ok=True)
    History.place, History.begun = folder, 0
    wanted = settings(
        max_examples=count, stateful_step_count=15, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        run_state_machine_as_test(History, settings=wanted)
    except Exception as error:  # noqa: BLE001 -- hypothesis tells the shortest history that fails
        tally.problem("\n".join([str(error), *getattr(error, "__notes__", [])]))
    tally.ends["as the model says"] = History.begun - len(tally.problems)
    return tally
