"""Bad input: one error block, the right exit code, no traceback, and nothing changed on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.cli.render.outcome import finish
from inlay.runs.folder import Run
from inlay.storage import LOCK, OWNER
from parts import NANO, qa_rows, run_record, write_rows
from program import Ended, environment, listing, program

Inlay = Callable[..., Ended]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good data, several bad inputs, and model folders that are none."""
    folder = tmp_path / "place"
    folder.mkdir()
    write_rows(folder / "data.jsonl", qa_rows(40))
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n\n")
    write_rows(folder / "fields.jsonl", [{"foo": "a", "bar": "b"}])
    (folder / "latin.jsonl").write_bytes('{"question": "né?", "answer": "é"}\n'.encode("latin-1"))
    (folder / "folder.jsonl").mkdir()
    (folder / "rows.yml").write_text("- {question: a, answer: b}\n")
    (folder / "bad.yaml").write_text(
        "model: {base_model: builtin:nano, bace: 1}\ndata: {train: x}\nadapter: {rank: 0}\n"
    )
    (folder / "weightless").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder / "weightless")
    (folder / "nothing").mkdir()
    (folder / "results" / "begun").mkdir(parents=True)
    Run(folder / "results" / "begun").write_record(run_record(status="interrupted"))
    for name in (LOCK, OWNER):
        (folder / "results" / "begun" / name).touch()
    (folder / "file").touch()
    monkeypatch.chdir(folder)
    return folder


GOOD = ["train", "data.jsonl", "--model", "builtin:nano"]
BAD = {
    "unknown verb": (["trian"], "Did you mean 'train'"),
    "unknown option": (["train", "--modle", "x"], "Did you mean --model"),
    "option that is a setting": (["train", "d", "--epochs", "3"], "Settings are given as --set train.epochs=VALUE;"),
    "option of another trainer": (["train", "d", "--lr", "1"], "given as --set train.learning_rate=VALUE; what it means"),
    "option without counterpart": (["train", "d", "--packing"], "packing has no counterpart here: rows are never packed"),
    "option of two sections": (["generate", "a", "--seed", "3"], "given as --set generation.seed=VALUE;"),
    "price without a model": (["data", "stats", "data.jsonl", "--price", "3"], "Name one with --model"),
    "endless price": (["data", "stats", "data.jsonl", "--model", "builtin:nano", "--price", "inf"], "0 or more (got inf)"),
    "page without a name": (["data", "check", "data.jsonl", "--html", ""], "--html '': names no file"),
    "page in a folder's place": (["data", "check", "data.jsonl", "--html", "nothing"], "names no file"),
    "empty name of data": (["plan", "", "--model", "builtin:nano"], "the name of the data is empty"),
    "empty name of a model": (["plan", "data.jsonl", "--model", ""], "model.base_model: must be text (got '')"),
    "no amount": (["plan", "data.jsonl", "--model", "builtin:nano", "--memory", "foo"], "--memory: not an amount (got 'foo')"),
    "huge amount": (["plan", "data.jsonl", "--model", "builtin:nano", "--memory", f"{10**30}TB"], "below 1e18 bytes"),
    "huge rank": (["plan", "data.jsonl", "--model", "builtin:nano", "--set", "adapter.rank=99999999"], "from 1 to 65536"),
    "no data": (["train"], "Missing argument 'DATA|CONFIG'"),
    "too many": (["train", "a", "b"], "unexpected extra argument"),
    "group without verb": (["checkpoints"], "See: inlay checkpoints --help"),
    "option without value": (["train", "data.jsonl", "--name"], "'--name' requires an argument"),
    "no model": (["train", "data.jsonl"], "model.base_model: missing; say which model"),
    "missing file": (["train", "dat.jsonl", "--model", "builtin:nano"], "Did you mean 'data.jsonl'"),
    "missing folder": (["train", "no/d.jsonl", "--model", "builtin:nano"], "does not exist"),
    "empty file": (["train", "empty.jsonl", "--model", "builtin:nano"], "no rows"),
    "blank file": (["train", "blank.jsonl", "--model", "builtin:nano"], "blank.jsonl"),
    "wrong fields": (["train", "fields.jsonl", "--model", "builtin:nano"], "foo"),
    "latin-1": (["train", "latin.jsonl", "--model", "builtin:nano"], "latin.jsonl:1: byte 0xe9"),
    "a folder": (["train", "folder.jsonl", "--model", "builtin:nano"], "is a folder"),
    "wrong column": ([*GOOD, "--set", "data.columns.question=nope"], "nope"),
    "unknown format": ([*GOOD, "--set", "data.format=alpacca"], "alpaca"),
    "bad held-out file": ([*GOOD, "--set", "data.eval=empty.jsonl"], "no rows"),
    "config missing": (["train", "bed.yaml"], "Did you mean bad.yaml"),
    "data named .yml": (["train", "rows.yml", "--model", "builtin:nano"], "a mapping of sections (got a list)"),
    "several faults": (["train", "bad.yaml", "--set", "train.epochs=0"], "adapter.rank: must be `auto` or a whole number"),
    "unknown preset": ([*GOOD, "--preset", "coed"], "Did you mean 'code'"),
    "set without =": ([*GOOD, "--set", "adapter.rank"], "needs key=value"),
    "set on a section": ([*GOOD, "--set", "adapter=8"], "is a section"),
    "unknown key": ([*GOOD, "--set", "adapter.rnak=8"], "Did you mean 'adapter.rank'"),
    "rank of 0": ([*GOOD, "--set", "adapter.rank=0"], "from 1 to 65536 (got 0)"),
    "resume and fresh": ([*GOOD, "--resume", "--fresh"], "exclude each other"),
    "name with a slash": ([*GOOD, "--name", "a/b"], "one plain folder name"),
    "not UTF-8": (["train", "d\udcff.jsonl"], "not UTF-8 text"),
    "unknown run": (["compare", "begin"], "begun"),
    "no adapter": (["compare", "begun"], "has no adapter yet (status interrupted)"),
    "no adapter to ask": (["generate", "hi", "--run", "begun"], "has no adapter yet"),
    "compare before training": (["compare", "--output", "elsewhere"], "no runs here yet"),
    "no run at path": (["eval", "results/no"], "no run at results/no"),
    "unknown sampling": (["generate", "hi", "--set", "temprature=1"], "Did you mean 'generation.temperature'"),
    "bad sampling": (["generate", "hi", "--set", "top_p=2"], "above 0 and at most 1 (got 2)"),
    "explain a typo": (["config", "explain", "rnak"], "Did you mean 'adapter.rank'"),
    "show a typo": (["config", "show", "coed"], "Did you mean the preset 'code'"),
    "init over a file": (["init", "bad.yaml"], "is already there"),
    "init with a bad preset": (["init", "new.yaml", "--preset", "coed"], "Did you mean 'code'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_error_block_and_changes_nothing(place: Path, inlay: Inlay, case: str) -> None:
    arguments, part = BAD[case]
    before = listing(place)
    group = 2 if arguments[0] in ("config", "checkpoints", "data") else 1
    for as_json in (False, True):
        ended = inlay(*arguments[:group], *(["--json"] if as_json else []), *arguments[group:])
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert ended.err.count("error: ") == 1
        assert part in ended.err
        assert "Traceback" not in ended.err
        message = ended.err.removeprefix("error: ").rstrip("\n")
        if as_json:
            assert json.loads(ended.out) == {"error": message, "exit_code": 2}
        else:
            assert ended.out == ""
    assert listing(place) == before


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("weightless", "no *.safetensors weights"),
        ("nothing", "not a model folder"),
        ("./wightless", "Did you mean weightless"),
        ("file", "a file"),
        ("builtin:nona", "no such built-in model"),
    ],
)
def test_a_model_that_is_none_changes_nothing(place: Path, inlay: Inlay, model: str, part: str) -> None:
    before = listing(place)
    ended = inlay("train", "data.jsonl", "--model", model)
    assert ended.code == 2
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
    assert listing(place) == before


def test_fresh_moves_nothing_aside_when_the_new_run_cannot_begin(place: Path, inlay: Inlay) -> None:
    before = listing(place)
    assert inlay(*GOOD, "--name", "begun", "--fresh", "--set", "data.max_length=999999").code == 2
    assert listing(place) == before


def test_a_folder_that_is_not_ours_is_refused_at_once(ordinary_user: tuple[list[str], Path]) -> None:
    prefix, folder = ordinary_user
    write_rows(folder / "data.jsonl", qa_rows(40)).chmod(0o644)
    write_rows(folder / "secret.jsonl", qa_rows(40)).chmod(0)
    (folder / "closed").mkdir(0o555)
    (folder / "home").mkdir(0o777)
    (folder / "home").chmod(0o777)
    env = {"HOME": str(folder / "home"), "INLAY_CACHE": str(folder / "home" / "c")}
    before = listing(folder)
    cases = [
        (["train", "data.jsonl", "--model", "builtin:nano", "--output", "closed"], 1, "no permission to write here"),
        (["train", "data.jsonl", "--model", "builtin:nano", "--output", "data.jsonl/x"], 1, "is a file, not a folder"),
        (["train", "secret.jsonl", "--model", "builtin:nano", "--output", "home"], 2, "no permission to read"),
        (["init", "closed/new.yaml"], 1, "no permission to write here"),
    ]
    for arguments, code, part in cases:
        ended = program(*arguments, cwd=folder, prefix=prefix, env=env)
        assert ended.returncode == code, ended.stderr
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
        assert part in ended.stderr
        assert ended.stdout == ""
    assert listing(folder) == before


def test_a_reader_that_goes_away_is_no_error() -> None:
    import subprocess
    import sys

    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "inlay", "config", "explain"], stdout=write, stderr=subprocess.PIPE, env=environment(),
        check=False,
    )  # fmt: skip
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_ctrl_c_while_a_class_is_made_is_an_interruption_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupts:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def import_of_a_verb() -> None:
        try:
            type("Facts", (), {"targets": Interrupts()})
        except KeyboardInterrupt as interrupt:  # newer versions of Python do not wrap it
            raise RuntimeError("Error calling __set_name__") from interrupt

    assert finish(import_of_a_verb, as_json=False) == 130
    assert capsys.readouterr().err == "interrupted; nothing was being trained.\n"
