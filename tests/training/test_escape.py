"""A plateau is escaped from, and the three ways are judged alike; every branch is a run."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay import api
from inlay.config import load
from inlay.config.sections.train import TrainConfig
from inlay.errors import ConfigError, Interrupted, RunError
from inlay.runs.folder import Run
from inlay.runs.record import FINISHED, Plateau
from inlay.training import checkpoint as checkpoints
from inlay.training.optimizer import learning_rate
from inlay.training.plateau import escape
from inlay.workflows import escape_plateau
from parts import run_record, run_result
from training_runs import Inlay, Quiet, outcome, stop_after, train, untimed

Tree = Callable[..., dict[str, Any]]
# a rate at which nothing moves: the plateau is found at step 12, six evaluations into the later half
STALLED = {
    "learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 0, "max_steps": 16, "eval_steps": 1, "save_steps": 2,
    "keep_checkpoints": 1, "on_plateau": "escape", "batch_size": 2, "micro_batch_size": 2,
}  # fmt: skip


@given(
    save_every=st.integers(1, 150), eval_every=st.integers(1, 150), found=st.integers(1, 20), step=st.integers(0, 3000)
)
def test_the_place_to_go_back_to_is_kept_until_it_is_known(
    save_every: int, eval_every: int, found: int, step: int
) -> None:
    plateau = found * eval_every
    back = escape.branch_step(plateau, save_every)
    assert back % save_every == 0
    assert 0 <= back < plateau
    assert plateau - back >= min(100, plateau / 2)
    assert plateau - back < min(100, plateau / 2 + 1) + save_every
    if back <= step <= plateau:  # from the moment it is written until the plateau is found
        assert back in escape.branch_steps_to_keep(step, save_every, eval_every)
    assert (
        len(escape.branch_steps_to_keep(step, save_every, eval_every))
        <= 100 // eval_every + save_every // eval_every + 3
    )


def test_the_rate_falls_to_a_tenth_past_the_plateau_and_comes_back() -> None:
    ways = escape.factors(200, 300, 1000)
    rates = {
        name: [learning_rate(TrainConfig(schedule="constant", learning_rate_factors=f), 1.0, s, 1000) for s in range(1001)]
        for name, f in ways.items()
    }  # fmt: skip
    assert rates["escape"][201:311] == pytest.approx([0.1] * 110)
    assert rates["escape"][315] == pytest.approx(0.55)
    assert rates["escape"][320:] == [1.0] * 681
    assert escape.end_step(300, 100) == 320
    assert rates["decay"][201] == 1.0
    assert rates["decay"][600] == pytest.approx(0.5, abs=0.01)
    assert rates["decay"][1000] == pytest.approx(1 / 800)


def files(run: Run) -> dict[str, Any]:
    """The run and both branches, as they end."""
    found = {"run": outcome(run)} | {n: outcome(Run(run.path / "branches" / n)) for n in ("escape", "decay")}
    found["run"]["result"].pop("escape")
    return found | {"judged": run.result.escape}


@pytest.mark.parametrize(
    "stops", [[15], pytest.param([3, 11, 14, 9, 10, 15, 16, 16], marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_a_plateau_is_escaped_from_by_branches_that_are_runs_also_through_stops(
    config_tree: Tree, tmp_path: Path, stops: list[int]
) -> None:
    def stalled(name: str) -> dict[str, Any]:
        return config_tree(train=STALLED, adapter={"rank": 2, "target_modules": ["q_proj"]}, output={"name": name})

    reporter = Quiet()
    run = train(stalled("whole"), reporter=reporter)
    result = run.result.to_json()
    plateau, judged = result["plateau"], result["escape"]
    assert plateau["kind"] == "stalled"
    assert plateau["back_to"] == escape.branch_step(plateau["step"], 2)
    assert (judged["tried"], judged["steps"]) == (True, [plateau["back_to"] + 1, 16])
    assert judged["eval_loss"].keys() == {"continuation", "decay", "escape"}
    assert judged["eval_loss"]["continuation"] == pytest.approx(run.metrics[-1]["eval_loss"], rel=1e-5)
    assert {name: d["n"] for name, d in judged["against"].items()} == {"continuation": 8, "decay": 8}
    since = [line["eval_loss"] for line in run.metrics if line["step"] > plateau["back_to"]]
    assert judged["best"]["continuation"]["eval_loss"] == min(since)
    assert judged["beat"] == [n for n, d in judged["against"].items() if d["verdict"] == "better"]
    assert any("held-out loss after step 16 of three ways from step" in note for note in reporter.notes)

    assert len({line["learning_rate"] for line in run.metrics if "loss" in line}) == 1, "it goes on as planned"
    for name in ("escape", "decay"):
        branch = Run(run.path / "branches" / name)
        assert branch.result.steps == 16
        assert [untimed(x) for x in branch.metrics[: plateau["back_to"] + 1]] == [
            untimed(x) for x in run.metrics[: plateau["back_to"] + 1]
        ]
        assert [line["step"] for line in branch.metrics] == list(range(17))
        assert branch.metrics[-1]["eval_loss"] == pytest.approx(judged["eval_loss"][name], rel=1e-5)
        assert api.verify(branch)["passed"]
        assert checkpoints.listed(branch.checkpoints)[-1].step == 16
    named = f"{run.path / 'branches' / 'escape'}"
    assert api.evaluate(f"{named}@16", reporter=Quiet())["metrics"]["loss"] == pytest.approx(
        judged["eval_loss"]["escape"], rel=1e-5
    )

    tree = stalled("broken")
    stopped(tree, *stops)
    assert files(train(tree, resume=True)) == files(run)
    again = Quiet()
    assert train(tree, resume=True, reporter=again).record == Run(tmp_path / "results" / "broken").record
    assert [note for note in again.notes if "nothing to do" not in note] == []


def stopped(tree: dict[str, Any], *stops: int) -> None:
    for number, stop in enumerate(stops):
        reporter = stop_after(stop) if number or len(stops) > 1 else stop_in_branch(stop)
        with pytest.raises(Interrupted):
            train(tree, resume=number > 0, reporter=reporter)


def stop_in_branch(step: int) -> Quiet:
    """Like `stop_after`, in the first branch."""
    reporter = stop_after(step)
    act = reporter.progress

    def progress(done: int, values: dict[str, Any]) -> None:
        if any(note.startswith("escape: from step") for note in reporter.notes):
            act(done, values)

    reporter.progress = progress  # type: ignore[method-assign]
    return reporter


def test_a_branch_with_the_same_settings_ends_as_its_origin_bit_for_bit(config_tree: Tree, tmp_path: Path) -> None:
    plan = {"max_steps": 7, "save_steps": 2, "eval_steps": 3, "keep_checkpoints": 9}
    dropout = {"adapter": {"dropout": 0.2}}
    whole = train(config_tree(train=plan, output={"name": "whole"}, **dropout))
    branch = train(config_tree(train=plan | {"branch_from": "whole@2"}, output={"name": "branch"}, **dropout))
    one, two = outcome(whole), outcome(branch)
    assert one["files"] == two["files"]
    assert one["metrics"] == two["metrics"]
    assert one["result"]["trained_batches"] == two["result"]["trained_batches"]


def test_what_cannot_be_branched_from_is_refused_before_anything_is_written(config_tree: Tree, tmp_path: Path) -> None:
    plan = {"max_steps": 4, "save_steps": 2}
    train(config_tree(train=plan, output={"name": "a"}))
    for changed, error, said in (
        ({"train": {"branch_from": "a@3"}}, RunError, r"no checkpoint of step 3. There are 2, 4"),
        ({"train": {"branch_from": "a"}}, ConfigError, "names no step. Write RUN@STEP"),
        ({"train": {"branch_from": "a@2", "batch_size": 4}}, RunError, r"differs in train.batch_size"),
        ({"train": {"branch_from": "a@2"}, "adapter": {"rank": 2}}, RunError, r"differs in adapter.rank"),
        ({"train": {"branch_from": "a@4"}}, RunError, "ends at step 4 already"),
        ({"train": {"branch_from": "a@2", "on_plateau": "escape"}}, ConfigError, "a run with branch_from is one"),
    ):
        sections = dict(changed)
        sections["train"] = plan | sections["train"]
        with pytest.raises(error, match=said):
            train(config_tree(**sections, output={"name": "b"}))
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["a"]


def test_a_run_that_stopped_early_has_nothing_to_escape_from_and_says_so(config_tree: Tree, tmp_path: Path) -> None:
    run, reporter = Run(tmp_path / "run"), Quiet()
    run.path.mkdir()
    result = run_result(
        plateau=Plateau(step=8, back_to=4, kind="stalled", reason=""), steps=12, adapter_step=12, stopped_early=True
    )
    run.write_record(run_record(status=FINISHED, result=result))
    escape_plateau.follow(run, reporter)
    assert run.result.to_json()["escape"] == {"tried": False, "reason": "the run stopped early"}
    assert reporter.notes == ["the escape was not tried: the run stopped early"]

    run.write_record(run_record(status=FINISHED, result=replace(result, stopped_early=False)))
    escape_plateau.follow(run, reporter)
    assert "no checkpoint of step 4" in reporter.notes[-1], "somebody deleted it"


@pytest.mark.slow
def test_a_run_and_its_branches_killed_at_random_moments_end_as_the_unbroken_ones(
    inlay: Callable[..., Inlay], config_file: Callable[..., str], tmp_path: Path
) -> None:
    few = {"adapter": {"rank": 2, "target_modules": ["q_proj"]}, "train": STALLED}
    whole = train(load(Path(config_file("whole", **few))))
    source, draw, kills, tries = config_file("broken", **few), random.Random(0), 0, 0
    run = Run(tmp_path / "results" / "broken")
    while not (run.is_recorded and run.record.result and run.record.result.escape):
        process = inlay("train", source, "--resume")
        tries += 1
        time.sleep(draw.uniform(0.5, 1 + tries / 3))  # longer and longer: soon enough here, long enough anywhere
        with contextlib.suppress(ProcessLookupError):
            process.send(signal.SIGKILL)
        kills += process.wait()[0] == -signal.SIGKILL
    assert kills >= 2
    assert files(run) == files(whole)
