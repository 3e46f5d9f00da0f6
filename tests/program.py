"""The real program in a process of its own, and what its tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICK = [
    "--set", "train.max_steps=3", "--set", "train.eval_steps=1", "--set", "eval.max_new_tokens=4",
    "--set", "eval.resamples=200", "--set", "eval.retention_rows=0", "--set", "model.device=cpu", "--set", "model.dtype=float32",
    "--set", "track.trackers=[]", "--set", "adapter.rank=4",
]  # fmt: skip


def environment(**over: str) -> dict[str, str]:
    source = Path(__file__).parents[1] / "src"
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | over


def program(*arguments: str, cwd: Path, prefix: list[str] = [], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: B006
    """The finished process of `inlay ARGUMENTS`."""
    env = environment(**options.pop("env", {}))
    command = [*prefix, sys.executable, "-m", "inlay", *arguments]
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False, **options
    )


@dataclass
class Ended:
    code: int
    out: str
    err: str


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below with its time of change; a lock carries no content."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if not p.name.startswith(".lock")
    }
