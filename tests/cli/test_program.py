"""The program from outside: help, one JSON value, no stray line, questions on a terminal, bugs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import training_runs
from inlay import api
from inlay.cli import app
from inlay.errors import Interrupted
from inlay.runs import folder as runs
from program import QUICK, Ended, environment, program

Inlay = Callable[..., Ended]
VERBS = [
    ("train",), ("demo",), ("compare",), ("eval",), ("generate",), ("chat",), ("doctor",), ("init",),
    ("config", "show"), ("config", "explain"), ("checkpoints", "list"), ("checkpoints", "resume"), ("data", "make"),
]  # fmt: skip
SLOW_IMPORTS = ("torch", "transformers", "peft", "numpy", "pydantic", "yaml", "rich")


@pytest.mark.parametrize("verb", [(), *VERBS])
def test_help_has_no_torn_lines_and_names_json(inlay: Inlay, verb: tuple[str, ...]) -> None:
    ended = inlay(*verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "..." not in ended.out.partition("\n")[2]
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    assert "--json" in ended.out


def test_every_verb_is_in_the_help_and_the_bare_program_shows_it(inlay: Inlay) -> None:
    text = inlay().out
    assert text == inlay("--help").out
    names = {group.name for group in app.registered_groups} | {verb[0] for verb in VERBS}
    assert all(f"\n  {name} " in text for name in names)
    assert inlay("--version").out == "inlay 0.1.0\n"


def test_help_and_the_package_load_nothing_heavy() -> None:
    code = (
        "import sys, inlay; dir(inlay); inlay.InlayError\n"
        "from inlay.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([m for m in {SLOW_IMPORTS} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_public_names_are_there_and_no_others() -> None:
    import inlay

    assert set(dir(inlay)) == set(inlay.__all__)
    for name in inlay.__all__:
        assert getattr(inlay, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        inlay.trian  # noqa: B018
    assert inlay.train is api.train


def test_train_gives_one_json_value_and_says_nothing_that_is_not_ours(trained: tuple[Path, Any]) -> None:
    _, ended = trained
    value = json.loads(ended.stdout)
    assert (value["run"], value["status"], value["steps"]) == ("results/first", "finished", 3)
    assert {"train_loss", "eval_loss", "best_step", "adapter", "verdict"} <= set(value)
    assert value["adapter_step"] == value["best_step"]
    foreign = [
        line
        for line in ended.stderr.splitlines()
        if not line.startswith(("… ", "  ", "pre-flight", "proofs", "held-out loss"))
    ]
    assert foreign == []


def test_every_line_of_the_pre_flight_block_is_explained_in_the_quickstart(trained: tuple[Path, Any]) -> None:
    block = trained[1].stderr.partition("pre-flight\n")[2].partition("\n… ")[0]
    said = {line[2:18].strip() for line in block.splitlines() if line[2:3].isalpha()}
    page = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert len(said) > 10
    assert said - set(re.findall(r"^\| `([a-z ,]+)` \|", page, re.M)) == set()


WARNED = """
import warnings
from inlay.cli.quiet import quiet_libraries
quiet_libraries()
for module, category in [
    ("transformers.generation", UserWarning), ("inlay.generation.generate", FutureWarning), ("some.library", ImportWarning),
    ("inlay.workflows.measure", RuntimeWarning), ("metric_mine", DeprecationWarning),
]:
    warnings.warn_explicit(f"of {module}", category, "a.py", 1, module)
"""


@pytest.mark.parametrize(
    ("flags", "strict"), [([], ""), ([], "error"), (["-W", "error"], ""), (["-W", "error::FutureWarning"], "")]
)
def test_a_warning_ends_no_run_and_those_of_libraries_are_not_shown(flags: list[str], strict: str) -> None:
    ended = subprocess.run(
        [sys.executable, *flags, "-c", WARNED], env=environment(PYTHONWARNINGS=strict), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    shown = [line.rpartition("of ")[2] for line in ended.stderr.splitlines() if "Warning: " in line]
    assert shown == (["inlay.workflows.measure", "metric_mine"] if flags or strict else ["inlay.workflows.measure"])


@pytest.mark.slow  # the run that all tests share was trained so
@pytest.mark.parametrize("verb", [["compare"], ["generate", "hello"], ["eval"], ["verify"]])
def test_a_deprecation_of_a_library_ends_no_verb(verb: list[str], with_run: Path) -> None:
    ended = program(*verb, cwd=with_run, env={"PYTHONWARNINGS": "error"})
    assert (ended.returncode, "Warning" in ended.stderr) == (0, False)


def write_apart(folder: Path, stdout: Path) -> None:
    """From here on this process is in the folder, and its standard output goes into a file of its own."""
    os.chdir(folder)
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)


def test_compare_gives_one_json_value_and_says_nothing_that_is_not_ours(with_run: Path, tmp_path: Path) -> None:
    before = partial(write_apart, with_run, tmp_path / "stdout")
    code, said = training_runs.Inlay(["compare", "--json"], tmp_path, {}, before).wait()
    assert code == 0, said
    assert json.loads((tmp_path / "stdout").read_text())["verdict"]
    assert [line for line in said.splitlines() if not line.startswith(("… ", "  "))] == []


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["eval", "first"], dict),
        (["eval", "first", "--base"], dict),
        (["generate", "hello", "--set", "max_new_tokens=3"], dict),
        (["checkpoints", "list"], list),
        (["checkpoints", "resume"], dict),
        (["config", "show"], dict),
        (["config", "show", "code"], dict),
        (["config", "show", "first"], dict),
        (["config", "explain"], list),
        (["config", "explain", "adapter"], list),
        (["doctor", "--quick"], dict),
    ],
)
def test_every_verb_gives_one_json_value(with_run: Path, inlay: Inlay, arguments: list[str], kind: type) -> None:
    ended = inlay(*arguments, "--json")
    assert ended.code == 0
    assert isinstance(json.loads(ended.out), kind)
    assert inlay(*arguments).out.strip()


def test_what_a_library_prints_does_not_reach_the_json(inlay: Inlay, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(what: str | None, folder: str) -> tuple[Any, str]:
        sys.stdout.write("a library speaks")
        return [float("nan"), "é\udcff"], "text"

    monkeypatch.setattr(api, "show_config", noisy)
    ended = inlay("config", "show", "--json")
    assert json.loads(ended.out) == [None, "é\udcff"]
    assert "a library speaks" in ended.err


def test_init_writes_a_file_that_train_accepts_but_for_its_data(
    tmp_path: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(inlay("init", "--json").out) == {"path": "inlay.yaml"}
    assert "data.jsonl: no such file" in inlay("train", "inlay.yaml").err
    assert inlay("init").code == 2
    assert inlay("init", "--force", "--preset", "code").code == 0
    assert json.loads(inlay("config", "show", "inlay.yaml", "--json").out)["adapter"]["rank"] == 32


class _Stdin(io.StringIO):
    def __init__(self, text: str, terminal: bool = False) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_generate_reads_a_pipe_and_asks_for_a_prompt_on_a_terminal(
    with_run: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--set", "max_new_tokens=3", "--set", "temperature=0"]
    typed = inlay("generate", "two\nlines", *few).out
    for arguments in (["generate", "-"], ["generate"]):
        monkeypatch.setattr(sys, "stdin", _Stdin("two\nlines\n"))
        assert inlay(*arguments, *few).out == typed
    for stdin, part in [(_Stdin("", terminal=True), "no prompt"), (_Stdin(" \n"), "empty")]:
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = inlay("generate")
        assert (ended.code, part in ended.err) == (2, True)


class _Bytes(io.TextIOWrapper):
    """stdin as Python makes it in locale C: bytes that are not UTF-8 come through as surrogates."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_bytes_of_another_encoding_on_a_pipe_are_refused_in_locale_c_too(
    verb: str, with_run: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Bytes("Grüße".encode("latin-1")))
    ended = inlay(verb)
    assert (ended.code, ended.err) == (
        2, "error: stdin: not UTF-8 text (byte 2). Convert it: iconv -f latin1 -t utf-8.\n",
    )  # fmt: skip


def test_an_argument_in_utf8_is_named_as_such_where_python_reads_ascii_only() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "inlay", "data", "check", "dätä.jsonl"], capture_output=True,
        env=environment() | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    )  # fmt: skip
    assert ended.returncode == 2
    assert b"lets Python read only ASCII. Set LC_ALL=C.UTF-8" in ended.stderr


def test_chat_on_a_pipe_answers_every_line_and_forgets_on_reset(
    with_run: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--set", "max_new_tokens=3", "--set", "temperature=0"]
    monkeypatch.setattr(sys, "stdin", _Stdin("one\n\n/reset\ntwo\nthree"))
    turns = json.loads(inlay("chat", *few, "--json").out)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in turns[::2]] == ["two", "three"]
    monkeypatch.setattr(sys, "stdin", _Stdin("two\n/exit\nthree"))
    assert inlay("chat", *few).out.strip() == turns[1]["content"]


def sit_down(folder: Path, terminal: str) -> None:
    """From here on this process is in the folder, and reads from and writes to the terminal."""
    os.chdir(folder)
    file = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(file, number)
    # those of the process that forked this one know another file
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115


def at_terminal(folder: Path, answer: bytes, *arguments: str) -> tuple[int, str]:
    """Exit code and screen of the program on a pseudo-terminal, where its first question is answered."""
    import fcntl
    import pty
    import struct
    import termios

    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    before = partial(sit_down, folder, os.ttyname(its))
    process = training_runs.Inlay([*arguments], folder / ".process", {"TERM": "xterm"}, before)
    screen, asked = b"", False
    while True:
        try:
            piece = os.read(own, 4096)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not piece:
            break
        if not screen:  # it has the terminal now
            os.close(its)
        screen += piece
        if not asked and b"[Y/n]" in screen:
            asked = True
            os.write(own, answer)
    os.close(own)
    assert asked, screen.decode()
    return process.wait()[0], screen.decode()


def test_on_a_terminal_yes_goes_on_from_the_checkpoints(unfinished: Path, tiny_base: Path) -> None:
    code, screen = at_terminal(
        unfinished, b"y\n", "train", "data.jsonl", "--model", str(tiny_base), "--name", "first", *QUICK
    )
    assert code == 0, screen
    assert "going on after step 3 of 3" in screen
    assert [p.name for p in (unfinished / "results").iterdir()] == ["first"]


@pytest.mark.slow  # its other half, yes, is in the suite
def test_on_a_terminal_no_moves_the_old_run_aside_and_starts_anew(unfinished: Path, tiny_base: Path) -> None:
    code, screen = at_terminal(
        unfinished, b"n\n", "train", "data.jsonl", "--model", str(tiny_base), "--name", "first", *QUICK,
        "--set", "train.max_steps=1",
    )  # fmt: skip
    assert code == 0, screen
    assert {p.name for p in (unfinished / "results").iterdir()} == {"first", "first.old-1"}
    assert "1/1" in screen


def test_without_a_terminal_an_unfinished_run_asks_for_a_decision(
    unfinished: Path, tiny_base: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unfinished)
    ended = inlay("train", "data.jsonl", "--model", str(tiny_base), "--name", "first", *QUICK)
    assert ended.code == 2
    assert "Give --resume to go on, or --fresh" in ended.err


def test_a_bug_leaves_its_traceback_in_the_log_and_one_line_on_the_screen(
    unfinished: Path, tiny_base: Path, inlay: Inlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.chdir(unfinished)
    monkeypatch.setattr("inlay.workflows.train_process.TrainingLoop.run", broken)
    train = ["train", "data.jsonl", "--model", str(tiny_base), "--name", "buggy", *QUICK]
    ended = inlay(*train, "--json")
    line = "internal error: ZeroDivisionError: a bug (traceback in results/buggy/log.txt)"
    assert (ended.code, ended.err.splitlines()[-1]) == (1, line)
    assert json.loads(ended.out) == {"error": line, "exit_code": 1}
    assert "Traceback" not in ended.err
    assert 'raise ZeroDivisionError("a bug' in (unfinished / "results/buggy/log.txt").read_text()
    assert runs.find("buggy").status == "failed"
    monkeypatch.setenv("INLAY_DEBUG", "1")
    assert "Traceback" in inlay(*train, "--fresh").err


def test_a_bug_without_a_run_leaves_its_traceback_in_a_file(inlay: Inlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "explain_config", lambda setting: 1 // 0)
    ended = inlay("config", "explain")
    place = Path(ended.err.partition("(traceback in ")[2].rstrip(")\n"))
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "ZeroDivisionError" in place.read_text()
    place.unlink()


def test_a_signal_keeps_its_exit_code_and_says_how_to_go_on(inlay: Inlay, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        error = Interrupted("interrupted at step 3 of 9; checkpoint of step 2 saved.", 15)
        error.add_note("Go on with: inlay checkpoints resume results/x")
        raise error

    monkeypatch.setattr(api, "resume", stopped)
    ended = inlay("checkpoints", "resume", "--json")
    assert (ended.code, json.loads(ended.out)["exit_code"]) == (143, 143)
    assert ended.err.startswith("interrupted at step 3")
    assert "Go on with" in ended.err
