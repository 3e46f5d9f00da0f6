"""The commands that a verb prints last mean, when pasted into a shell, what they were printed for."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.adapters.reference import reference
from inlay.cli.render.run import after_demo, after_training
from inlay.runs.folder import Run
from program import Ended


def printed(run: Run) -> list[list[str]]:
    """The words of every command on the run, as a shell splits them."""
    texts = [after_training(run), after_demo(run)]
    lines = [line.strip().removeprefix("Next: ") for text in texts for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("inlay ")]
    return [words for words in commands if words[1] != "train"]


@pytest.mark.parametrize("name", ["first", "my run", "it's $HOME", "a@3", "base", "run;ls"])
@pytest.mark.parametrize("beside", ["nothing", "adapter_config.json", "config.json", "run.json"])
def test_the_run_of_a_printed_command_is_found_whatever_its_name_and_what_lies_here(
    with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, beside: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(with_run / "results/first", Path("results") / name)
    if beside != "nothing":
        Path(name).mkdir()
        (Path(name) / beside).write_text("{}")
    run = Run(Path("results") / name)
    commands = printed(run)
    assert [words[1] for words in commands] == ["compare", "generate", "adapters", "chat", "generate", "adapters"]
    for words in commands:
        found = reference(words[3] if words[1] == "adapters" else words[-1], "results")
        assert (found.kind, found.run.path if found.run else None) == ("run", run.path)
    if name == "first" and beside in ("nothing", "run.json"):
        assert commands[0][-1] == ("first" if beside == "nothing" else "results/first")


def test_the_printed_commands_of_data_split_take_any_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inlay: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = inlay("data", "make", "customer_support", "--to", "my data")
    assert made.code == 0, made.err
    words = shlex.split(made.out.splitlines()[-1].removeprefix("Next: "))
    assert words[:2] == ["inlay", "train"]
    assert Path(words[2]).is_file()
    assert Path(words[4].removeprefix("data.eval=")).is_file()
