"""The real program in a process of its own, or in this one, and one finished run that all tests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inlay.cli import main
from parts import qa_rows, write_rows
from program import QUICK, Ended, program


@pytest.fixture
def inlay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`inlay ARGUMENTS` in this process."""
    for name in ("TRANSFORMERS_VERBOSITY", "TORCH_CPP_LOG_LEVEL", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "false" if name.startswith("TOK") else "ERROR"))

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, session_cache: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with `results/first` in it, and the process of `inlay train … --json` that made it.

    PYTHONWARNINGS=error stands in its environment, where a deprecation of a library must not end a run.
    """
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "data.jsonl", qa_rows(60))
    ended = program(
        "train", "data.jsonl", "--model", str(tiny_base), "--name", "first", *QUICK, "--json",
        cwd=folder, env={"INLAY_CACHE": str(session_cache), "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder, ended


@pytest.fixture
def with_run(trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is the one with the finished run `first`."""
    monkeypatch.chdir(trained[0])
    return trained[0]


@pytest.fixture
def unfinished(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """A folder of its own with `results/first` as if it had been interrupted at its last checkpoint."""
    shutil.copytree(trained[0], tmp_path / "w", symlinks=True)
    run = tmp_path / "w" / "results" / "first"
    shutil.rmtree(run / "adapter")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted", "result": None}))
    return tmp_path / "w"


@pytest.fixture
def ordinary_user() -> Iterator[tuple[list[str], Path]]:
    """(what to put before a command so that it runs as an ordinary user, a folder that this user can read)."""
    folder = Path(tempfile.mkdtemp(prefix="inlay-user-", dir="/tmp"))
    folder.chmod(0o755)
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root without setpriv: nobody here for whom permissions count")
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    yield prefix, folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)
