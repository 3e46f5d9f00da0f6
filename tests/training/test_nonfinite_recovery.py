"""Numbers that are not finite: stop, skip, roll back; and what is never written."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from inlay.errors import AdapterError, ConfigError, Interrupted, TrainingError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.training import checkpoint as checkpoints
from inlay.training import guards, loop, setup
from inlay.training.checkpoint import Progress
from inlay.training.job import AdapterJob
from inlay.training.optimizer import learning_rate
from inlay.training.process_group import ProcessGroup
from training_runs import Quiet, outcome, stop_after, train

Tree = Callable[..., dict[str, Any]]
PLAN = {"max_steps": 8, "save_steps": 3, "eval_steps": 4, "keep_checkpoints": 1}


class Poison:
    """Spoils a step at one of its stages, by the position of its rows in the data."""

    def __init__(self) -> None:
        self.loss: set[int] = set()
        self.gradient: set[int] = set()
        self.weights: set[int] = set()
        self.positions: list[int] = []
        self.value = math.nan


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison]:
    chosen = Poison()
    rows_of, accumulate, finite = loop.step_rows, loop.accumulate, guards.require_finite_update

    def watched(position: int, *rest: Any) -> list[int]:
        chosen.positions.append(position)
        return rows_of(position, *rest)

    def spoilt(job: Any, step: int, *rest: Any) -> Any:
        loss, bad = accumulate(job, step, *rest)
        now = chosen.positions[-1] if chosen.positions else 0
        if now in chosen.loss:
            loss = loss * chosen.value
        gradient = list(job.parameters.values())[-1].grad
        if now in chosen.gradient and gradient is not None:  # none after a stop
            gradient.view(-1)[0] = chosen.value
        return loss, bad

    def checked(group: ProcessGroup, parameters: list[Any], optimizer: Any, step: int) -> None:
        if chosen.positions[-1] in chosen.weights:
            optimizer.state[parameters[0]]["exp_avg_sq"].view(-1)[0] = chosen.value
            parameters[0].data.view(-1)[0] = chosen.value
        finite(group, parameters, optimizer, step)

    monkeypatch.setattr(loop, "step_rows", watched)
    monkeypatch.setattr(loop, "accumulate", spoilt)
    monkeypatch.setattr(guards, "require_finite_update", checked)
    return chosen


def events(run: Run, name: str) -> list[dict[str, Any]]:
    return [line for line in run.metrics if line.get("event") == name]


@pytest.mark.parametrize("stage", ["loss", "gradient", "weights"])
def test_stop_names_the_step_and_leaves_the_last_good_checkpoint(
    config_tree: Tree, poison: Poison, tmp_path: Path, stage: str
) -> None:
    getattr(poison, stage).add(5)
    with pytest.raises(TrainingError, match=r"^step 5: "):
        train(config_tree(train=PLAN, output={"name": "a"}))
    run = Run(tmp_path / "results" / "a")
    assert [c.step for c in checkpoints.listed(run.checkpoints)] == [4]
    assert "| 5 | failed | step 5: " in (run.reports / "report.md").read_text()
    assert (run.reports / "curves.png").exists()
    assert all(
        torch.isfinite(t).all() for t in checkpoints.load(checkpoints.listed(run.checkpoints)[0])[0].tensors.values()
    )


def test_skip_passes_over_the_batch_and_changes_nothing_by_it(config_tree: Tree, poison: Poison) -> None:
    poison.loss |= {1}
    poison.gradient |= {5}
    reporter = Quiet()
    run = train(config_tree(train=PLAN | {"on_nonfinite": "skip", "log_steps": 8}), reporter=reporter)
    assert [line["step"] for line in events(run, "skipped")] == [1, 5], "also where no line is due"
    reported = (run.reports / "report.md").read_text()
    assert all(f"| {step} | skipped | step {step}: " in reported for step in (1, 5))
    assert all("rows data.jsonl:" in line["error"] or ".jsonl:" in line["error"] for line in events(run, "skipped"))
    assert [line["step"] for line in run.metrics] == [0, 1, 4, 5, 8]
    assert run.result.skipped_steps == 2
    assert run.result.steps == 8
    assert sum(note.startswith("skipped step") for note in reporter.notes) == 2


def test_skip_cannot_heal_weights_and_says_what_can(config_tree: Tree, poison: Poison) -> None:
    poison.weights |= {5}
    with pytest.raises(TrainingError, match=r"Skipping a batch cannot heal it; train.on_nonfinite=rollback can"):
        train(config_tree(train=PLAN | {"on_nonfinite": "skip"}))


@pytest.mark.parametrize("stage", ["loss", "gradient", "weights"])
def test_rollback_goes_back_lowers_the_rate_and_passes_the_rows(config_tree: Tree, poison: Poison, stage: str) -> None:
    getattr(poison, stage).add(5)
    run = train(config_tree(train=PLAN | {"on_nonfinite": "rollback"}))
    (event,) = events(run, "rollback")
    assert (event["step"], event["failed_step"], event["learning_rate_factor"], event["batches_passed"]) == (
        4,
        5,
        0.5,
        [5, 5],
    )
    assert poison.positions == [1, 2, 3, 4, 5, 6, 7, 8, 9], "each batch once, none twice"
    trained = [line for line in run.metrics if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 9))
    planned = [learning_rate(run.config.train, 1e-2, step, 8) for step in range(1, 9)]
    assert [line["learning_rate"] for line in trained] == planned[:4] + [0.5 * rate for rate in planned[4:]]
    assert run.result.rollbacks == 1
    assert (
        "| back to step 4, past the batches 5 to 5, 0.5 of the learning rate |"
        in (run.reports / "report.md").read_text()
    )


def test_before_the_first_checkpoint_it_goes_back_to_the_start(config_tree: Tree, poison: Poison) -> None:
    poison.loss |= {2}
    run = train(config_tree(train=PLAN | {"on_nonfinite": "rollback"}))
    (event,) = events(run, "rollback")
    assert (event["step"], event["batches_passed"]) == (0, [1, 2])
    assert poison.positions == [1, 2, *range(3, 11)]


def test_more_than_so_many_are_too_many(config_tree: Tree, poison: Poison) -> None:
    for policy in ("skip", "rollback"):
        poison.loss |= set(range(3, 100))
        with pytest.raises(TrainingError, match=r"passed over 2 times before, as often as train.max_nonfinite allows"):
            train(config_tree(train=PLAN | {"on_nonfinite": policy, "max_nonfinite": 2}))


def ends_as_the_unbroken_one(
    config_tree: Tree, poison: Poison, folder: str, policy: str, bad: set[int], stops: list[int]
) -> None:
    plan = PLAN | {"on_nonfinite": policy}
    poison.loss, poison.gradient = {p for p in bad if p % 2}, {p for p in bad if not p % 2}
    whole = train(config_tree(train=plan, output={"folder": folder, "name": "whole"}))
    tree = config_tree(train=plan, output={"folder": folder, "name": "broken"})
    for stop in stops:
        try:
            train(tree, resume=Run(Path(folder) / "broken").path.exists(), reporter=stop_after(stop))
        except Interrupted:
            continue
    assert outcome(train(tree, resume=True)) == outcome(whole)


@pytest.mark.parametrize(
    ("policy", "bad", "stops"),
    [("skip", {3, 4}, [3, 5]), ("rollback", {5, 8}, [4, 6])],  # before, at and behind a batch that is passed over
    ids=["skip", "rollback"],
)
def test_a_run_with_recoveries_stopped_near_them_and_resumed_ends_as_the_unbroken_one(
    config_tree: Tree, poison: Poison, tmp_path: Path, policy: str, bad: set[int], stops: list[int]
) -> None:
    ends_as_the_unbroken_one(config_tree, poison, str(tmp_path), policy, bad, stops)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    policy=st.sampled_from(["skip", "rollback"]),
    bad=st.sets(st.integers(1, 8), min_size=1, max_size=3),
    stops=st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_a_run_with_recoveries_stopped_anywhere_and_resumed_ends_as_the_unbroken_one(
    config_tree: Tree,
    poison: Poison,
    tmp_path_factory: pytest.TempPathFactory,
    policy: str,
    bad: set[int],
    stops: list[int],
) -> None:
    ends_as_the_unbroken_one(config_tree, poison, str(tmp_path_factory.mktemp("runs")), policy, bad, stops)


def test_a_kill_between_any_two_acts_of_a_rollback_ends_the_same(
    config_tree: Tree, poison: Poison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    plan = PLAN | {"on_nonfinite": "rollback"}
    poison.loss |= {6}
    whole = train(config_tree(train=plan, output={"name": "whole"}))
    tree, results = config_tree(train=plan, output={"name": "broken"}), tmp_path / "results"
    with pytest.raises(Interrupted):  # leaves a checkpoint that was not due, newer than the one to go back to
        train(tree, reporter=stop_after(5))
    (results / "broken").rename(results / "stopped")
    for module, name in [(checkpoints, "delete"), (checkpoints, "write"), (Run, "truncate_metrics")]:
        shutil.rmtree(results / "broken", ignore_errors=True)
        shutil.copytree(results / "stopped", results / "broken")
        acted = getattr(module, name)

        def dying(*args: Any, acted: Any = acted, **kwargs: Any) -> Any:
            if poison.positions[-1:] == [6]:
                raise Killed
            return acted(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, dying)
            with pytest.raises(Killed):
                train(tree, resume=True)
        poison.positions.clear()
        assert outcome(train(tree, resume=True)) == outcome(whole), name


class Spoilt:
    """An engine that meets a value that is not finite in the rows named: on the way forward, or in its gradient."""

    def __init__(self, engine: Any, parameters: list[torch.nn.Parameter], stage: str, value: float) -> None:
        self.name, self._engine, self._matrix = engine.name, engine, parameters[-1]
        self._stage, self._value = stage, value

    def add_gradient(self, batch: Any, factor: float) -> torch.Tensor:
        if BAD_ROW not in batch.rows:
            return self._engine.add_gradient(batch, factor)  # type: ignore[no-any-return]
        if self._stage == "gradient":
            nll_B = self._engine.add_gradient(batch, factor)
            assert self._matrix.grad is not None
            self._matrix.grad.view(-1)[0] = self._value
            return nll_B  # type: ignore[no-any-return]
        before = self._matrix.detach().clone()
        self._matrix.data.view(-1)[0] = self._value  # so that it spreads from layer to layer, as it would
        nll_B = self._engine.add_gradient(batch, factor)
        self._matrix.data.copy_(before)
        return nll_B  # type: ignore[no-any-return]


BAD_ROW = 5
CASES = [
    *itertools.product(
        ("autograd", "handwritten"), ("forward", "gradient", "weight", "exp_avg", "exp_avg_sq"), (math.nan, math.inf, -math.inf),
        ("stop", "skip", "rollback"), (2, 7),
    )
]  # fmt: skip
"""180: engine, where, what, policy, and the step for what an update spoils."""
FEW = [CASES[n] for n in (4, 95, 140)]


@pytest.mark.parametrize(
    "cases", [[case] for case in FEW] + [pytest.param(CASES, marks=pytest.mark.slow)], ids=[*map(str, FEW), "all"]
)
def test_a_value_that_is_not_finite_never_reaches_the_disk_and_is_answered_whichever_engine_meets_it(
    config_tree: Tree, tmp_path: Path, cases: list[Any]
) -> None:
    wholes: dict[str, Any] = {}
    for number, (engine, stage, value, policy, at) in enumerate(cases):
        tree = config_tree(
            train=PLAN | {"engine": engine, "on_nonfinite": policy},
            adapter={"rank": 2, "target_modules": ["q_proj", "down_proj"]}, output={"name": f"run-{number}"},
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            answered = _spoilt_run(tree, patch, stage, value, at)
        run = Run(tmp_path / "results" / f"run-{number}")
        case = f"{engine} {stage} {value} {policy} {at}"
        for file in run.path.rglob("*.safetensors"):
            assert all(torch.isfinite(t.float()).all() for t in load_file(file).values()), f"{case}: {file}"
        lines = events(run, {"skip": "skipped", "rollback": "rollback", "stop": ""}[policy])
        if policy == "stop" or (policy == "skip" and stage not in ("forward", "gradient")):
            assert not answered, f"{case}: went unnoticed"
            if policy == "stop":  # what is there is whole: it goes on to the end that it would have had
                if engine not in wholes:
                    wholes[engine] = outcome(train(tree | {"output": tree["output"] | {"name": f"whole-{engine}"}}))
                assert outcome(train(tree, resume=True)) == wholes[engine], case
        else:
            assert answered, case
            assert lines, f"{case}: not recorded"
            assert run.result.steps == PLAN["max_steps"]
        shutil.rmtree(run.path)


def _spoilt_run(tree: dict[str, Any], patch: pytest.MonkeyPatch, stage: str, value: float, at: int) -> bool:
    """Whether it came to its end."""
    make_job, calls = setup.make_job, itertools.count(1)

    def joined(*given: Any) -> AdapterJob:
        made = make_job(*given)
        if stage in ("forward", "gradient"):
            made.engine = Spoilt(made.engine, list(made.parameters.values()), stage, value)
        return made

    def after_update(optimizer: Any, *_: Any) -> None:
        if next(calls) == at and stage not in ("forward", "gradient"):
            parameter = optimizer.param_groups[0]["params"][0]
            (parameter.data if stage == "weight" else optimizer.state[parameter][stage]).view(-1)[0] = value

    patch.setattr(setup, "make_job", joined)
    hook = register_optimizer_step_post_hook(after_update)
    try:
        train(tree)
    except TrainingError:
        return False
    finally:
        hook.remove()
    return True


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(TrainingError, match=r"a is not finite: nothing was written"):
            checkpoints.snapshot(AdapterState({}, {"a": torch.tensor([0.0, value])}), optimizer, Progress(step=1))
        with pytest.raises(AdapterError, match=r"a is not finite; nothing was written"):
            AdapterState({}, {"a": torch.tensor([0.0, value])}).write(tmp_path)
        optimizer.state[parameter]["exp_avg"][1] = value
        with pytest.raises(TrainingError, match=r"optimizer state 0.exp_avg is not finite"):
            checkpoints.snapshot(AdapterState({}, {"a": torch.zeros(2)}), optimizer, Progress(step=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["weight", "exp_avg", "exp_avg_sq"])
def test_an_update_that_spoils_one_number_is_found(value: float, place: str) -> None:
    parameters = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(3)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    guards.require_finite_update(ProcessGroup(), parameters, optimizer, 1)
    spoilt = parameters[1].data if place == "weight" else optimizer.state[parameters[1]][place]
    spoilt[2, 1] = value
    with pytest.raises(guards.NonFinite, match=r"step 1: .* no longer finite"):
        guards.require_finite_update(ProcessGroup(), parameters, optimizer, 1)


def test_a_spike_is_told_from_the_usual_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    norms = (torch.randn(2000, generator=generator) * 0.3).exp().tolist()  # log-normal, as gradient norms are
    window = guards.SPIKE_WINDOW
    found = [n for n in range(window, 2000) if guards.spike(norms[n], norms[n - window : n])]
    assert len(found) <= 4, "fewer than one false alarm in 500 steps"
    assert guards.spike(20.0, norms[:window]) is not None
    assert guards.spike(20.0, norms[:19]) is None, "too little to tell a spread from"
    assert guards.spike(2.1, [1.0] * 50) is not None
    assert guards.spike(1.9, [1.0] * 50) is None


def test_spikes_are_in_the_metrics_and_counted(config_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_SPIKE_NEEDS", 3)
    clip = torch.nn.utils.clip_grad_norm_
    calls: list[int] = []

    def loud(*args: Any) -> torch.Tensor:
        calls.append(1)
        return clip(*args) * (100 if len(calls) == 6 else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", loud)
    run = train(config_tree(train=PLAN))
    assert [line["step"] for line in run.metrics if "spike" in line] == [6]
    assert run.result.gradient_spikes == 1


def test_a_limit_without_a_policy_is_refused(config_tree: Tree) -> None:
    with pytest.raises(ConfigError, match="max_nonfinite has no effect with on_nonfinite stop"):
        train(config_tree(train={"max_nonfinite": 5}))
