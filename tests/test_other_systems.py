"""What only POSIX or Linux has is used where it is there, and nothing breaks where it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from parts import qa_rows, write_rows
from program import QUICK, environment

HIDDEN = """
import asyncio, os, signal, subprocess, sys
import numpy, peft, psutil, torch, transformers  # they ask for the system by its name
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}
for name in MODULES:
    sys.modules[name] = None
for name in ("sched_getaffinity", "fork", "forkpty", "killpg", "getuid", "geteuid", "getpgid", "setsid", "pread", "pwrite",
             "mkfifo", "getloadavg", "chown", "nice"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGPIPE", "SIGALRM", "SIGCHLD"):
    delattr(signal, name)
"""
IMPORTS = """
import importlib, pkgutil, warnings
warnings.simplefilter("ignore")
import inlay
names = [found.name for found in pkgutil.walk_packages(inlay.__path__, "inlay.") if not found.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert len(names) > 100
"""
RUN = """
from inlay.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = line.split("|")
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, None), (line, ended.code)
"""


def without_posix(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code],
        input=given,
        text=True,
        capture_output=True,
        check=False,
        env=environment(),
    )


def test_every_module_can_be_imported_and_a_run_trained_without_what_only_posix_has(
    tmp_path: Path, tiny_base: Path
) -> None:
    data = write_rows(tmp_path / "a.jsonl", qa_rows(40))
    train = "|".join(
        ["inlay", "train", str(data), "--model", str(tiny_base), "--output", f"{tmp_path}/results", *QUICK]
    )
    train += "|--name|a"
    verbs = (
        "inlay|--help",
        f"inlay|data|check|{data}",
        train,
        f"inlay|checkpoints|list|{tmp_path}/results/a",
    )
    done = without_posix(IMPORTS + RUN, "\n".join(verbs))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "results" / "a" / "adapter" / "adapter_model.safetensors").is_file()
