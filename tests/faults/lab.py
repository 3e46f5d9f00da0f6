"""A process that has imported torch and built a run once, and forks a child for every training: a kill costs
milliseconds. One thread, so that forking is safe; it never trains itself, so that every child starts alike.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay import api
from inlay.config import load
from inlay.errors import InlayError
from inlay.runs.folder import Run
from parts import empty_cache, make_base, qa_rows, write_rows
from training_runs import Quiet, outcome

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
INTERNAL = 99


@dataclass
class Tally:
    """What a campaign tried and how each case ended."""

    what: str
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def tried(self) -> int:
        return sum(self.ends.values())

    def problem(self, text: str) -> None:
        self.ends["PROBLEM"] += 1
        self.problems.append(text)


@dataclass(frozen=True)
class Ended:
    code: int
    """Exit code of the child; minus the signal that killed it."""
    text: str


class Lab:
    """Trainings of one config in children of this process, each in a folder of its own."""

    def __init__(self, folder: Path, seed: int = 0, dropout: float = 0.1, **train: Any) -> None:
        from inlay.hardware import machine
        from inlay.training import setup
        from inlay.training.process_group import ProcessGroup

        self.folder, self.random = folder, random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        make_base(folder / "base", num_hidden_layers=1, **shape)
        write_rows(folder / "data.jsonl", qa_rows(24))
        steps = {"batch_size": 6, "micro_batch_size": 3, "max_steps": 5, "eval_steps": 2, "save_steps": 1}
        self.tree = {
            "model": {"base_model": str(folder / "base"), "device": "cpu", "dtype": "float32"},
            "adapter": {"rank": 2, "dropout": dropout, "target_modules": ["q_proj", "down_proj"]},
            "data": {"train": str(folder / "data.jsonl")},
            "train": steps | {"keep_checkpoints": 2, "learning_rate": 1e-2, "seed": seed} | train,
            "eval": {"resamples": 100},
            "track": {"trackers": []},
        }
        os.environ["INLAY_CACHE"] = empty_cache(folder / "cache")
        self.job = setup.make_single_job(load(tree=self._tree(folder / "runs" / "none")), Quiet(), ProcessGroup())
        self._number = 0
        self._record = machine.machine_record(folder, "cpu")
        self._warm()
        gc.freeze()
        began = time.monotonic()
        run = self.fresh()
        ended = self.train(run, at_event(run, 0, kill))
        assert ended.code == 0, ended.text
        self.whole, self.whole_s = outcome(Run(run)), time.monotonic() - began
        self.events = int(Path(f"{run}.events").read_text())
        """File events of an unbroken run."""

    def _warm(self) -> None:
        import torch
        from matplotlib.backends import backend_agg
        from matplotlib.figure import Figure

        import inlay.evaluation.compare
        import inlay.proof.verify
        import inlay.runs.report
        import inlay.runs.trackers
        import inlay.training.pre_flight
        import inlay.training.process
        from inlay.engine import cpu_ops

        cpu_ops.reason(torch.float32)  # or each child would wait for the compiler of its parent
        canvas = backend_agg.FigureCanvasAgg(Figure(figsize=(1, 1)))
        canvas.draw()
        assert inlay.proof.verify

    def _tree(self, run: Path) -> dict[str, Any]:
        return self.tree | {"output": {"folder": str(run.parent), "name": run.name}}

    def fresh(self) -> Path:
        """The path of a run that is not there yet."""
        self._number += 1
        return self.folder / "runs" / f"r{self._number}"

    def unbroken(self) -> Run:
        path = self.fresh()
        ended = self.train(path)
        assert ended.code == 0, ended.text
        return Run(path)

    def start(
        self, run: Path, before: Callable[[Lab], None] = lambda lab: None, reporter: Any = None, real: bool = False
    ) -> int:
        """The pid of a child that trains this run, or goes on with it; `real` builds everything anew.

        `before` is called in the child.
        """
        run.parent.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid:
            return pid
        code, said = INTERNAL, ""
        try:
            self._pretend(real)
            before(self)
            api.train(load(tree=self._tree(run)), resume=True, reporter=reporter or Quiet())
            code = 0
        except InlayError as error:
            code, said = error.exit_code, str(error)
        except BaseException:  # noqa: BLE001 -- it is the child's last word
            said = traceback.format_exc()
        finally:
            with contextlib.suppress(OSError):
                self.said(os.getpid()).write_text(said)
            os._exit(code)

    def said(self, pid: int) -> Path:
        return self.folder / f"said-{pid}.txt"

    def wait(self, pid: int) -> Ended:
        _, status = os.waitpid(pid, 0)
        path = self.said(pid)
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), text)

    def train(
        self, run: Path, before: Callable[[Lab], None] = lambda lab: None, reporter: Any = None, real: bool = False
    ) -> Ended:
        return self.wait(self.start(run, before, reporter, real))

    def _pretend(self, real: bool) -> None:
        """In the child: what was built and measured once is not built again."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from inlay.workflows import train_process

        gc.disable()  # a child is short, and collecting would copy every page it shares
        FigureCanvasAgg.print_png = lambda canvas, file: file.write(b"\x89PNG")
        if not real:
            train_process.make_single_job = lambda *_: self.job
        train_process.machine_record = lambda *_: self._record

    def ends_whole(self, run: Path, tally: Tally, case: str, end: str = "bit-identical after resume") -> bool:
        """Goes on with the run and notes whether it ends as the unbroken one, with nothing left lying about."""
        ended = self.train(run)
        if ended.code != 0:
            tally.problem(f"{case}: resume ended with {ended.code}: {ended.text[-600:]}")
            return False
        left = [p.name for p in run.rglob("*") if "staging" in p.name]
        wrong = differing(outcome(Run(run)), self.whole)
        if wrong or left:
            tally.problem(f"{case}: differs in {wrong}, left behind {left}")
            return False
        tally.ends[end] += 1
        return True


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [key for key in a if a[key] != b[key]]


def at_event(run: Path, number: int, action: Callable[[set[tuple[int, int, int]]], None]) -> Callable[[Any], None]:
    """Arms a child: the action comes just before the file event of that number in the run's folder (from 1).

    Events: opening to write, rename, make, remove, truncate, fsync. The action is given (inode, size, change time) of
    every file that was fsynced. With number 0 the events are counted into `<run>.events`.
    """
    inside, count, synced = str(run), 0, set()

    def event() -> None:
        nonlocal count
        count += 1
        if number == 0:
            with contextlib.suppress(OSError):
                descriptor = real_open(f"{inside}.events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(descriptor, str(count).encode())
                os.close(descriptor)
        elif count == number:
            action(synced)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and str(path).startswith(inside + "/"):
                event()
        elif name in _CHANGING and str(arguments[0]).startswith((inside + "/", "<")):
            event()

    def fsync(handle: Any) -> None:
        event()
        real_fsync(handle)
        about = os.fstat(handle if isinstance(handle, int) else handle.fileno())
        synced.add((about.st_ino, about.st_size, about.st_mtime_ns))

    real_open, real_fsync = os.open, os.fsync

    def arm(lab: Any) -> None:
        os.fsync = fsync
        sys.addaudithook(hook)

    return arm


def kill(synced: set[tuple[int, int, int]]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_power(run: Path) -> Callable[[set[tuple[int, int, int]]], None]:
    """Cuts every new file that no fsync has reached to half its length, then kills."""

    def act(synced: set[tuple[int, int, int]]) -> None:
        for path in run.rglob("*"):
            about = path.stat()
            known = (about.st_ino, about.st_size, about.st_mtime_ns) in synced
            if path.is_file() and not known and path.name not in ("log.txt", "metrics.jsonl"):
                os.truncate(path, about.st_size // 2)
        kill(synced)

    return act


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory where there is one: what is tested is the order of writes, not the disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="inlay-faults-", dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o755)  # an ordinary user is among those who train here
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
