"""Small real parts that every test may stand on: a tiny random base with the real tokenizer, and rows."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from parts import make_base, qa_rows, quick_tree, write_rows

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks for it when it is imported
# Triton, which bitsandbytes imports, counts aloud what the end of Python leaves of it.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))

hypothesis.settings.register_profile("suite", max_examples=50)  # `--hypothesis-profile default` draws a hundred
hypothesis.settings.load_profile("suite")

FIRST = (
    "test_faults.py", "test_process_group.py", "test_resume.py", "test_checkpoint_commands.py", "test_escape.py",
    "test_compare_methods.py", "test_program.py", "test_domains_teach.py", "test_nonfinite_recovery.py", "test_out_of_memory.py",
)  # fmt: skip
"""The longest, and those with processes that are forked, which then have one parent: `make test` cuts the list in two."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest are not begun last, which would leave the other core idle."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def session_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of these tests. What an earlier session compiled stays: its name is a digest of all that it depends on."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir()
    with contextlib.suppress(AttributeError):  # pytest keeps nothing
        (folder / "loops").symlink_to(pytestconfig.cache.mkdir("loops"))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(session_cache))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and the tokenizer of builtin:nano."""
    base = make_base(tmp_path_factory.mktemp("tiny-base"))
    gc.collect()
    gc.freeze()  # the libraries are here to stay: looking through them took half a second whenever memory was given back
    return base


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """40 question/answer rows."""
    return write_rows(tmp_path / "data.jsonl", qa_rows(40))


@pytest.fixture
def config_tree(tmp_path: Path, tiny_base: Path, data_file: Path) -> Callable[..., dict[str, Any]]:
    """A config of four quick steps on the tiny base as a nested mapping; keywords are sections merged over it."""
    return partial(quick_tree, tiny_base, data_file, tmp_path / "results")


@pytest.fixture
def inlay(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`inlay(*arguments, **environment)` starts a process."""
    from training_runs import Inlay

    started: list[Inlay] = []

    def start(*arguments: str, before: Callable[[], None] | None = None, **env: str) -> Any:
        env = {"INLAY_CACHE": os.environ["INLAY_CACHE"]} | env
        started.append(Inlay(list(arguments), tmp_path / f"process-{len(started)}", env, before))
        return started[-1]

    yield start
    for process in started:
        if process._process.is_alive():
            process._process.kill()
            process._process.join()


@pytest.fixture
def config_file(tmp_path: Path, config_tree: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    """Writes a config and returns its path; keywords are sections over `config_tree`."""

    def write(name: str = "a", **sections: dict[str, Any]) -> str:
        path = tmp_path / f"{name}.yaml"
        tree = config_tree(**sections)
        tree["output"] = tree["output"] | {"name": name}
        path.write_text(json.dumps(tree))
        return str(path)

    return write
