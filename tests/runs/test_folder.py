"""Which run a command means, and that nothing of an earlier one is lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.errors import (
    ConfigError,
    DataError,
    InlayError,
    Interrupted,
    ModelError,
    RunError,
    StorageError,
    UserError,
)
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from parts import make_base, qa_rows, quick_tree, write_rows
from training_runs import Quiet, outcome, stop_after, train

Tree = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def stopped_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    data = write_rows(folder / "data.jsonl", qa_rows(40))
    with pytest.raises(Interrupted):
        train(quick_tree(tiny_base, data, folder, output={"name": "a"}), reporter=stop_after(2))
    return folder / "a"


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Run:
    """A run called `a`, stopped after step 2 of 4."""
    shutil.copytree(stopped_run, tmp_path / "results" / "a")
    return Run(tmp_path / "results" / "a")


def named(config_tree: Tree, **sections: dict[str, Any]) -> dict[str, Any]:
    tree = config_tree(**sections)
    tree["output"]["name"] = "a"
    return tree


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_resume_starts_when_there_is_nothing_goes_on_when_there_is_and_says_when_all_is_done(
    config_tree: Tree, tmp_path: Path
) -> None:
    run = train(named(config_tree), resume=True)
    assert run.status == "finished"
    before, reporter = contents(run.path), Quiet()
    assert train(named(config_tree), resume=True, reporter=reporter) == run
    assert reporter.notes == [f"{run.path}: already finished at step 4; nothing to do."]
    assert contents(run.path) == before
    with pytest.raises(RunError, match="this run is finished"):
        train(named(config_tree))
    assert contents(run.path) == before
    train(named(config_tree), fresh=True)
    assert contents(tmp_path / "results" / "a.old-1") == before


def test_checkpoints_and_no_flag_is_asked_about_and_without_a_terminal_refused(
    config_tree: Tree, stopped: Run, tmp_path: Path
) -> None:
    before = contents(stopped.path)
    with pytest.raises(RunError, match="Give --resume to go on, or --fresh"):
        train(named(config_tree))
    with pytest.raises(ConfigError, match="exclude each other"):
        train(named(config_tree), resume=True, fresh=True)
    assert contents(stopped.path) == before
    asked: list[str] = []

    def say(answer: bool) -> Callable[[str], bool]:
        return lambda question: asked.append(question) is None and answer

    afresh = Quiet()
    assert train(named(config_tree), confirm=say(False), reporter=afresh).metrics[1]["step"] == 1
    assert not any("going on after" in note for note in afresh.notes)
    assert contents(tmp_path / "results" / "a.old-1") == before
    assert len(asked) == 1


def test_a_yes_goes_on(config_tree: Tree, stopped: Run) -> None:
    reporter = Quiet()
    assert train(named(config_tree), confirm=lambda question: True, reporter=reporter).status == "finished"
    assert any("going on after step 2 of 4" in note for note in reporter.notes)


def test_a_start_that_fails_moves_and_writes_nothing(config_tree: Tree, stopped: Run, tmp_path: Path) -> None:
    before = contents(tmp_path / "results")
    for bad in ({"data": {"train": str(tmp_path / "none.jsonl")}}, {"adapter": {"target_modules": ["nope"]}}):
        with pytest.raises(InlayError):
            train(named(config_tree, **bad), fresh=True)
    assert contents(tmp_path / "results") == before


def test_other_settings_are_refused_on_resume_with_the_difference(config_tree: Tree, stopped: Run) -> None:
    before = contents(stopped.path)
    other = named(config_tree, train={"learning_rate": 3e-3, "batch_size": 4}, adapter={"rank": 8})
    with pytest.raises(ConfigError) as caught:
        train(other, resume=True)
    for line in (
        "adapter.rank: 4 then, 8 now",
        "train.batch_size: 8 then, 4 now",
        "train.learning_rate: 0.01 then, 0.003",
    ):
        assert line in str(caught.value)
    assert contents(stopped.path) == before
    other_output = named(config_tree, track={"trackers": []})
    assert train(other_output, resume=True).status == "finished"


def test_other_inputs_are_refused_on_resume(config_tree: Tree, data_file: Path, tmp_path: Path) -> None:
    base, held = make_base(tmp_path / "base"), write_rows(tmp_path / "held.jsonl", qa_rows(9)[5:])
    stored = tmp_path / "results" / "a" / "config.yaml"
    tree = named(config_tree, model={"base_model": str(base)}, data={"eval": str(held), "check": "warn"})
    with pytest.raises(Interrupted):
        train(tree, reporter=stop_after(1))
    inputs = {path: path.read_bytes() for path in (data_file, held, stored, *base.iterdir())}
    changes: dict[str, Callable[[], object]] = {
        "the data file": lambda: write_rows(data_file, qa_rows(41)),
        "the base model (its weights have other values)": lambda: make_base(base, seed=1),
        "the held-out rows": lambda: write_rows(held, qa_rows(9)[4:]),
        "a setting in its config.yaml": lambda: stored.write_text(
            stored.read_text().replace("warmup_ratio: 0.0", "warmup_ratio: 0.1")
        ),
    }
    for changed, change in changes.items():
        change()
        before = contents(tmp_path / "results")
        with pytest.raises(RunError, match=re.escape(f"{changed} changed since this run began")):
            train(tree, resume=True)
        assert contents(tmp_path / "results") == before, changed
        for path, content in inputs.items():
            path.write_bytes(content)


def test_a_run_without_a_name_is_numbered_and_never_overwritten(config_tree: Tree, tmp_path: Path) -> None:
    first = train(config_tree())
    before = contents(first.path)
    second = train(config_tree(), fresh=True)
    assert (first.name, second.name) == ("data-tiny-base0-1", "data-tiny-base0-2")
    assert contents(first.path) == before
    reporter = Quiet()
    with pytest.raises(Interrupted):
        train(config_tree(), reporter=stop_after(2))
    assert train(config_tree(), resume=True, reporter=reporter).name == "data-tiny-base0-3"
    assert any("going on after step 2" in note for note in reporter.notes)
    assert outcome(Run(tmp_path / "results" / "data-tiny-base0-3")) == outcome(second)


def test_a_folder_that_appears_meanwhile_is_not_shared(config_tree: Tree, tmp_path: Path) -> None:
    class Meanwhile(Quiet):
        def stage(self, text: str) -> None:
            if text.startswith("loading") and text != "loading torch":
                (tmp_path / "results" / "data-tiny-base0-1").mkdir(parents=True)
                (tmp_path / "results" / "a").mkdir(parents=True)

    with pytest.raises(RunError, match="another process made this run just now"):
        train(named(config_tree), reporter=Meanwhile())
    for folder in (tmp_path / "results").iterdir():
        folder.rmdir()
    assert train(config_tree(), reporter=Meanwhile()).name == "data-tiny-base0-2"


def test_a_second_trainer_is_refused_within_a_second_naming_the_first(
    config_tree: Tree, stopped: Run, tmp_path: Path
) -> None:
    from inlay.storage import owned

    config = tmp_path / "a.yaml"
    config.write_text(json.dumps(named(config_tree)))
    with owned(stopped.path):
        before = contents(stopped.path)
        for flag in ("--resume", "--fresh"):
            began = time.process_time()
            with pytest.raises(RunError, match=r"another process \(pid"):
                train(named(config_tree), **{flag.removeprefix("--"): True})
            assert time.process_time() - began < 1
        code = "import sys; from inlay.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
        ended = subprocess.run(
            [sys.executable, "-c", code, "train", str(config), "--resume"], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2
        assert "another process (pid" in ended.stderr
        assert ended.stdout == "False\n", "it was refused before torch was imported"
        assert contents(stopped.path) == before


def test_find_names_the_nearest_run_and_takes_the_latest(config_tree: Tree, stopped: Run, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert runs.find(None, results) == runs.find("a", results) == runs.find(stopped.path) == stopped
    with pytest.raises(RunError, match="Known: a"):
        runs.find("b", results)
    with pytest.raises(RunError, match="no runs here yet"):
        runs.find(None, tmp_path / "none")


def test_a_run_is_resumed_by_name_from_its_own_config(stopped: Run) -> None:
    assert api.resume("a", reporter=Quiet(), folder=str(stopped.path.parent)).status == "finished"


def test_data_errors_stay_data_errors(config_tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(named(config_tree, data={"train": str(tmp_path / "none.jsonl")}))
    assert not (tmp_path / "results").exists()


def test_a_folder_that_is_not_a_run_is_never_moved(config_tree: Tree, tmp_path: Path) -> None:
    mine = tmp_path / "results" / "a"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RunError, match="not one of a run"):
            train(named(config_tree), fresh=fresh)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_an_optimizer_that_is_not_here_leaves_no_folder(config_tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pages only on CUDA"):
        train(config_tree(train={"optimizer": "paged_adamw_8bit"}))
    assert not (tmp_path / "results").exists()


def test_a_warmup_longer_than_the_run_is_refused_and_leaves_no_folder(config_tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.warmup_steps 5: the run has 4 steps, .* never reach"):
        train(config_tree(train={"warmup_steps": 5}))
    assert not (tmp_path / "results").exists()


def test_what_was_said_before_the_folder_was_there_is_in_its_log(stopped: Run) -> None:
    log = stopped.path.joinpath("log.txt").read_text(encoding="utf-8")
    assert 0 < log.index("… loading ") < log.index("pre-flight")


def test_one_broken_folder_hides_no_run_and_a_run_may_be_called_old(config_tree: Tree, tmp_path: Path) -> None:
    tree = config_tree()
    tree["output"]["name"] = "a.old-school"
    run = train(tree)
    broken = tmp_path / "results" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("[1]")
    assert runs.find(None, tmp_path / "results").path == run.path
    assert runs.find("a.old-school", tmp_path / "results").path == run.path
    (run.adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match="damaged"):
        api.load(run)


def test_a_path_that_cannot_be_looked_at_is_one_line(config_tree: Tree) -> None:
    with pytest.raises(UserError, match="cannot be looked at"):
        train(config_tree(data={"train": "x" * 5000}))


def test_a_model_name_that_is_neither_folder_nor_hub_id_is_one_line(config_tree: Tree) -> None:
    with pytest.raises(ModelError, match="not a hub id"):
        train(config_tree(model={"base_model": "models/tiny stories"}))


def test_a_run_says_what_the_machine_was(config_tree: Tree) -> None:
    machine = train(config_tree()).record.machine
    assert machine["versions"]["torch"]
    assert machine["memory"]["total_bytes"] > 0


def test_the_log_of_a_run_holds_what_was_said_before_it_had_a_folder(config_tree: Tree) -> None:
    reporter = Quiet()
    run = train(config_tree(), reporter=reporter)
    lines = (run.path / "log.txt").read_text().splitlines()
    read = next(stage for stage in reporter.stages if stage.startswith("reading"))
    assert lines.index(f"… {read}") < lines.index("pre-flight")
    warned = [f"warning: {text}" for text in run.record.machine.get("warnings", ())]
    assert [line for line in lines if line.startswith("warning: ")][: len(warned)] == warned
