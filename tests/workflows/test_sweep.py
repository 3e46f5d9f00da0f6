"""A sweep: what it tries, that it goes on after any end, and that its winner does not flatter itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay import api
from inlay.config import load
from inlay.errors import ConfigError, DataError, Interrupted, RunError
from inlay.runs.folder import Run
from inlay.workflows.sweep.propose import STUDY, propose
from inlay.workflows.sweep.space import checked_sweep, over_of
from inlay.workflows.sweep.trials import Trial
from inlay.workflows.sweep.winner import choose, loss_between, optimism
from parts import qa_rows, write_rows
from training_runs import Quiet, stop_after

RANGES = {"adapter.rank": [2, 4], "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture
def tree(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_rows(tmp_path / "data.jsonl", qa_rows(24))
    return {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 2},
        "data": {"train": str(data), "max_length": 128, "eval_fraction": 0.4},
        "train": {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-2},
        "eval": {"resamples": 200, "prompts": [], "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(tmp_path / "results"), "name": "tried"},
    }


def swept(tree: dict[str, Any], over: dict[str, Any] | None = None, **options: Any) -> Any:
    own = {"trials": 3, "method": "random"} | options.pop("settings", {})
    options = {"confirm": "none", "reporter": Quiet()} | options
    return api.sweep(tree, over or RANGES, settings=own, **options)


# What it tries


def test_a_text_of_values_or_of_a_range_is_what_the_config_would_hold() -> None:
    assert over_of(["adapter.rank=4,8", "train.learning_rate=5e-5..2e-3:log", "adapter.alpha=4..64"]) == {
        "adapter.rank": [4, 8],
        "train.learning_rate": {"low": 5e-5, "high": 2e-3, "log": True},
        "adapter.alpha": {"low": 4, "high": 64, "log": False},
    }
    assert over_of(["adapter.target_modules=auto,[q_proj,v_proj]"]) == {
        "adapter.target_modules": ["auto", ["q_proj", "v_proj"]]
    }


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"adapter.rnk": [4]}, "sweep.over: unknown setting 'adapter.rnk'. Did you mean 'adapter.rank'?"),
        ({"adapter.rank": [0]}, "sweep.over: adapter.rank: must be"),
        ({"adapter.rank": []}, "sweep.over adapter.rank: an empty list"),
        ({"adapter.rank": [4, 4]}, "sweep.over adapter.rank: names a value twice"),
        ({"train.learning_rate": {"low": 0, "high": 1, "log": True}}, "needs a low end above 0"),
        ({"train.learning_rate": {"low": 2, "high": 1}}, "low 2 must be less than high 1"),
        ({"output.name": ["a"]}, "sweep.over output.name: cannot be swept"),
        ({"train.seed": [1, 2]}, "sweep.over train.seed: cannot be swept: seeds are chance"),
        ({"data.eval": ["rows.jsonl"]}, "sweep.over data.eval: cannot be swept"),
        ({}, "sweep: names no setting to try"),
    ],
)  # fmt: skip
def test_what_no_run_would_take_is_refused_in_one_line(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked_sweep(
            {"over": over}, load(tree={"model": {"base_model": "builtin:nano"}, "data": {"train": "rows.jsonl"}})
        )
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_grid_is_every_combination_once_and_refuses_a_range_and_too_few_trials() -> None:
    config = load(tree={"model": {"base_model": "builtin:nano"}, "data": {"train": "rows.jsonl"}})
    over = {"adapter.rank": [2, 4, 8], "adapter.rslora": [True, False]}
    sweep, space = checked_sweep({"over": over, "method": "grid"}, config)
    past: list[Trial] = []
    while (trial := propose(space, sweep, past)) is not None:
        past.append(trial)
    assert len(past) == sweep.trials == 7
    assert sorted(map(str, (trial.values for trial in past[1:]))) == sorted(
        str({"adapter.rank": r, "adapter.rslora": s}) for r in (2, 4, 8) for s in (True, False)
    )
    with pytest.raises(ConfigError, match="a grid needs values, not a range"):
        checked_sweep({"over": RANGES, "method": "grid"}, config)
    with pytest.raises(ConfigError, match="the grid has 6 combinations"):
        checked_sweep({"over": over, "method": "grid", "trials": 3}, config)


@pytest.mark.parametrize("method", ["random", "qmc", "tpe", "gp"])
def test_a_proposal_depends_on_nothing_but_the_trials_before(method: str) -> None:
    config = load(tree={"model": {"base_model": "builtin:nano"}, "data": {"train": "rows.jsonl"}})
    sweep, space = checked_sweep({"over": RANGES, "method": method}, config)
    past = [Trial(0, state="finished", loss=3.0)]
    for number in range(1, 5):
        proposed, again = propose(space, sweep, past), propose(space, sweep, list(past))
        assert proposed == again
        assert proposed is not None
        assert proposed.values not in [trial.values for trial in past]
        assert space.config_of(proposed.values).adapter.rank in (2, 4)
        past.append(Trial(number, proposed.values, "finished", loss=3.0 - number / 10))


# From its start to its end


def test_a_sweep_that_was_cut_off_finds_what_an_unbroken_one_finds(tree: dict[str, Any], tmp_path: Path) -> None:
    whole = swept(tree)
    other = tree | {"output": {"folder": str(tmp_path / "again"), "name": "tried"}}
    with pytest.raises(
        Interrupted, match=r"interrupted in trial 0\. What is trained is kept: the same command goes on"
    ):
        swept(other, reporter=stop_after(1))
    found = swept(other)
    assert found.finalists == whole.finalists
    assert (found.against_base, found.tuning) == (whole.against_base, whole.tuning)
    alike = [(t.number, t.values, t.state, t.loss, t.parameters, t.steps) for t in found.trials]
    assert alike == [(t.number, t.values, t.state, t.loss, t.parameters, t.steps) for t in whole.trials]

    printed = json.loads((tmp_path / "again" / "tried" / "sweep.json").read_text())
    assert printed == json.loads(json.dumps(found.to_json()))
    assert {"run", "values", "difference", "low", "high", "verdict"} <= printed["winner"].keys()
    assert printed["baseline"]["number"] == 0
    assert printed["winner"]["run"] == found.trials[printed["winner"]["number"]].run

    # Optuna's own view
    import optuna

    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{tmp_path / 'again' / 'tried' / 'study.db'}")
    assert [trial.value for trial in study.trials] == [trial.loss for trial in found.trials]
    rates = [trial.params.get("train.learning_rate") for trial in study.trials]
    assert rates == [trial.values.get("train.learning_rate") for trial in found.trials]

    # a trial is an ordinary run
    trial = found.trials[2]
    config = load(tree=tree, assignments=trial.values | {"output.name": "alone", "train.export": "last"})
    alone = api.train(config, reporter=Quiet())
    assert alone.result.eval_loss == Run(Path(trial.run)).result.eval_loss
    assert {path.name for path in alone.path.iterdir()} == {path.name for path in Path(trial.run).iterdir()}

    # what is there is enough for fewer trials; other settings and other rows are refused
    fewer = swept(other, settings={"trials": 2})
    assert [trial.number for trial in fewer.trials] == [0, 1, 2]
    assert "trial 2" in (tmp_path / "again" / "tried" / "sweep.html").read_text()
    assert (tmp_path / "again" / "tried" / "trials.csv").read_text().count("\n") == 4
    with pytest.raises(RunError, match="holds a sweep with other settings or rows"):
        swept(other, {"adapter.rank": [2, 8]})
    write_rows(Path(tree["data"]["train"]), qa_rows(26))
    with pytest.raises(RunError, match="holds a sweep with other settings or rows"):
        swept(other)


def test_a_trial_that_cannot_be_trained_is_told_and_the_others_go_on(tree: dict[str, Any]) -> None:
    over = {"adapter.target_modules": [["no_such_layer"], ["q_proj"]]}
    found = swept(tree, over, settings={"method": "grid", "trials": 3})
    assert [trial.state for trial in found.trials] == ["finished", "failed", "finished"]
    assert "no_such_layer" in found.trials[1].reason
    broken = tree | {"adapter": {"target_modules": ["none_such"]}, "output": tree["output"] | {"name": "b"}}
    with pytest.raises(DataError, match=r"the config as it is cannot be trained.*none_such"):
        swept(broken, {"adapter.rank": [2]}, settings={"method": "grid", "trials": 2})


def test_too_few_rows_to_judge_are_refused_before_anything_is_trained(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Each needs 50\. Give rows that judge with --confirm FILE"):
        swept(tree, confirm=None)
    assert not (tmp_path / "results").exists()


def test_the_winner_is_judged_on_rows_of_a_file(tree: dict[str, Any], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "judge.jsonl", qa_rows(12))
    found = swept(tree, {"adapter.rank": [4]}, settings={"method": "grid", "trials": 2}, confirm=str(file))
    assert found.against_base.n == 12
    assert "judge.jsonl that chose nothing" in found.judged_on


# The winner


def losses(trials: int, rows: int, seed: int, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are hard for every trial alike, with each trial's own noise; the last trial is better by `effect`."""
    chance = np.random.default_rng(seed)
    weight_N = chance.integers(5, 40, rows).astype(float)
    shared_N = chance.gamma(4, 0.5, rows)
    mean_TN = np.maximum(shared_N + chance.normal(0, 0.05, (trials, rows)), 0)
    mean_TN[-1] -= effect
    return mean_TN * weight_N, weight_N


def test_the_smallest_adapter_wins_among_trials_that_chance_alone_tells_apart() -> None:
    found = 0
    for seed in range(40):
        nll_TN, weight_N = losses(12, 200, seed)
        choice = choose(nll_TN, weight_N, list(range(12, 0, -1)), list(range(200)), resamples=400, seed=seed)
        found += choice.winner == 11
        assert choice.optimism > 0
    assert found >= 36
    nll_TN, weight_N = losses(12, 200, 0, effect=0.05)
    clear = choose(nll_TN, weight_N, list(range(12)), list(range(200)), resamples=400, seed=0)
    assert (clear.winner, clear.finalists) == (11, [11])


def test_the_least_loss_flatters_itself_by_what_is_printed() -> None:
    """The loss of the trial that is chosen on some rows, on new rows, lies above by the optimism, on average."""
    gaps, told = [], []
    for seed in range(60):
        nll_TN, weight_N = losses(16, 400, seed)
        first, second = slice(0, 200), slice(200, 400)
        loss_T = nll_TN[:, first].sum(1) / weight_N[first].sum()
        new_T = nll_TN[:, second].sum(1) / weight_N[second].sum()
        chosen = loss_T.argmin()
        gaps.append((loss_T.mean() - loss_T[chosen]) - (new_T.mean() - new_T[chosen]))
        told.append(optimism(nll_TN[:, first], weight_N[first], list(range(200)), seed))
    assert np.mean(told) == pytest.approx(np.mean(gaps), rel=0.35)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=4))
def test_neither_the_order_of_trials_or_rows_nor_a_repeated_trial_changes_the_choice(
    seed: int, order: list[int], repeated: list[int]
) -> None:
    nll_TN, weight_N = losses(5, 60, seed)
    nll_TN += np.random.default_rng(seed).normal(0, 0.01, (5, 1)) * weight_N
    sizes, groups = [10, 20, 30, 40, 50], list(range(60))
    one = choose(nll_TN, weight_N, sizes, groups, resamples=200, seed=0)
    trials, rows = [*order, *repeated], np.random.default_rng(seed).permutation(60)
    moved = choose(
        nll_TN[trials][:, rows], weight_N[rows], [sizes[n] for n in trials], [groups[n] for n in rows],
        resamples=200, seed=0,
    )  # fmt: skip
    assert trials[moved.winner] == one.winner
    assert sorted({trials[n] for n in moved.finalists}) == one.finalists
    assert (moved.least_gain, moved.optimism) == (one.least_gain, one.optimism)


@pytest.mark.slow
def test_a_sweep_seldom_names_a_gain_that_is_none_and_finds_the_gain_that_it_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweeps, trials, rows, resamples = 200, 16, 400, 2_000
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from sweep_error_rates import swept as simulated

    equal = [simulated(trials, rows, seed, resamples=resamples) for seed in range(sweeps)]
    gains = sum(one.judged.verdict == "better" for one in equal)
    naive = sum(one.naive.verdict == "better" for one in equal)
    assert gains <= 0.05 * sweeps < naive, (gains, naive)
    gain = float(np.median([one.least_gain for one in equal]))
    planted = [simulated(trials, rows, 1_000 + seed, gain, resamples) for seed in range(sweeps)]
    found = [one.winner == trials - 1 and one.judged.verdict == "better" for one in planted]
    assert np.mean(found) >= 0.95


def test_a_difference_of_a_trial_to_itself_is_none() -> None:
    nll_TN, weight_N = losses(1, 30, 0)
    same = loss_between(nll_TN[0], nll_TN[0], weight_N, list(range(30)), resamples=200, seed=0)
    assert (same.difference, same.verdict) == (0.0, "not distinguishable")


def test_a_loss_that_is_not_finite_chooses_nothing() -> None:
    nll_TN, weight_N = losses(3, 30, 0)
    nll_TN[1, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        choose(nll_TN, weight_N, [1, 2, 3], list(range(30)), resamples=200, seed=0)
