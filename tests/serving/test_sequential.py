"""The stopping rule may be looked at after every score, at any shares, and seldom finds what is not there."""

from __future__ import annotations

import importlib
from copy import deepcopy
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.serving import sequential
from inlay.serving.sequential import ArmTest, Limit, Rule

shares = st.floats(0.02, 0.98)
scores = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
history = st.lists(st.tuples(scores, st.booleans(), shares), max_size=40)


def after(past: list[tuple[float, bool, float]]) -> ArmTest:
    test = ArmTest(Rule(0.05, 10_000), with_interval=False)
    for score, is_b, share in past:
        test.add_one(score, "b" if is_b else "a", 1 - share, share)
    return test


def wealth(test: ArmTest) -> np.ndarray:
    """Of the bettors: rows above and below; columns -margin, 0, margin."""
    return np.exp(np.concatenate([test._above._log_wealth_RG, test._below._log_wealth_RG]))


@given(history, shares, st.floats(0, 1), st.floats(-0.05, 0.05))
@settings(max_examples=60, deadline=None)
def test_where_a_hypothesis_is_true_no_bettor_against_it_can_expect_to_gain_by_the_next_score(
    past: list[tuple[float, bool, float]], share: float, mean: float, difference: float
) -> None:
    now = after(past)
    expected = np.zeros((2, 3))
    means = (mean, float(np.clip(mean + difference, 0, 1)))
    for is_b in (False, True):
        for score in (0.0, 1.0):
            then = deepcopy(now)
            then.add_one(score, "b" if is_b else "a", 1 - share, share)
            chance = (share if is_b else 1 - share) * (means[is_b] if score else 1 - means[is_b])
            expected += chance * wealth(then)
    truth, hypotheses = means[1] - means[0], np.array([-0.05, 0, 0.05])
    is_true = np.stack([truth <= hypotheses + 1e-12, truth >= hypotheses - 1e-12])
    assert (wealth(now) > 0).all()
    assert (expected <= wealth(now) * (1 + 1e-9))[is_true].all()


@given(history)
@settings(max_examples=30, deadline=None)
def test_swapping_the_arms_mirrors_difference_interval_and_verdict(past: list[tuple[float, bool, float]]) -> None:
    one, other = ArmTest(Rule(0.05, 30)), ArmTest(Rule(0.05, 30))
    for score, is_b, share in past:
        one.add_one(score, "b" if is_b else "a", 1 - share, share)
        other.add_one(score, "a" if is_b else "b", share, 1 - share)
    mirrored = {"better": "worse", "worse": "better"}
    assert other.outcome == mirrored.get(one.outcome, one.outcome)
    assert other.difference == pytest.approx(-one.difference, abs=1e-12)
    assert other.interval() == pytest.approx((-one.interval()[1], -one.interval()[0]), abs=1e-9)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    return importlib.import_module("ab_error_rates")


def false_alarms(rates: ModuleType, truth: tuple[float, float, float], repetitions: int, n: int) -> float:
    found, _ = rates.rates(rates.simulated(rates.Truth(*truth), repetitions, n))
    return float(found[1] + found[2])


@pytest.mark.parametrize("truth", [(0.5, 0.5, 0.5), (0.5, 0.5, 0.1), (0.9, 0.9, 0.1)])
def test_equal_arms_are_seldom_called_better_or_worse_however_often_one_looks(
    rates: ModuleType, truth: tuple[float, float, float]
) -> None:
    assert false_alarms(rates, truth, 400, 800) <= 0.04


def test_the_simulation_finds_a_bound_that_forgets_the_smaller_arm(
    rates: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "_largest", lambda share_a_R, share_b_R: 1 + 1 / share_a_R)
    with np.errstate(invalid="ignore", divide="ignore"):
        assert false_alarms(rates, (0.9, 0.9, 0.1), 400, 800) > 0.05
        assert false_alarms(rates, (0.9, 0.9, 0.5), 400, 800) <= 0.04  # where it is no mistake


def test_a_test_of_fixed_size_that_is_looked_at_after_every_score_would_be_wrong_all_the_time() -> None:
    """What the rule is for: the same scores, judged by a 95% interval of their mean after each of them."""
    draw = np.random.default_rng(0)
    change_RN = (draw.random((400, 800)) < 0.5) * 1.0 - (draw.random((400, 800)) < 0.5)
    n_N = np.arange(1, 801)
    mean_RN = change_RN.cumsum(1) / n_N
    spread_RN = np.sqrt(np.maximum((change_RN**2).cumsum(1) / n_N - mean_RN**2, 1e-9) / n_N)
    assert (np.abs(mean_RN) > 1.96 * spread_RN)[:, 30:].any(1).mean() > 0.2


def test_a_difference_is_found_and_its_interval_holds_it(rates: ModuleType) -> None:
    found, median = rates.rates(rates.simulated(rates.Truth(0.5, 0.7, 0.5), 100, 800))
    assert found[1] > 0.95
    assert median is not None
    assert median < 400


def test_intervals_hold_the_true_difference_at_every_look_and_exclude_0_once_there_is_a_verdict() -> None:
    draw, test = np.random.default_rng(3), ArmTest(Rule(0.05, 10_000), 100)
    share_R = np.full(100, 0.3)
    is_missed_R = np.zeros(100, bool)
    for _ in range(400):
        is_b_R = draw.random(100) < share_R
        score_R = draw.random(100) ** np.where(is_b_R, 1, 2)  # means 1/2 and 1/3
        test.add(score_R, ~is_b_R, is_b_R, 1 - share_R, share_R)
        low_R, high_R = test.intervals()
        is_missed_R |= (low_R > 1 / 6) | (high_R < 1 / 6)
    assert is_missed_R.mean() <= 0.05
    better_R = test.outcome_R == 1
    assert better_R.mean() > 0.5
    assert (low_R[better_R] >= 0).all()
    assert (high_R - low_R).mean() < 0.5


def test_equal_arms_are_the_same_within_a_margin_and_undecided_where_the_horizon_comes_first(rates: ModuleType) -> None:
    test = rates.simulated(rates.Truth(0.95, 0.95, 0.5), 50, 1500)
    assert rates.rates(test)[0][3] > 0.8
    short = ArmTest(Rule(0.05, 3))
    assert [short.add_one(1.0, arm, 0.5, 0.5) for arm in ("a", "b", "a", "b")] == [
        "not yet", "not yet", "undecided", "undecided",
    ]  # fmt: skip


def test_scores_of_a_third_arm_tell_nothing_of_the_other_two() -> None:
    draw, test = np.random.default_rng(0), ArmTest(Rule(0.05, 10_000), 200, with_interval=False)
    third_R = np.full(200, 1 / 3)
    for _ in range(600):
        arm_R = draw.integers(0, 3, 200)
        score_R = (draw.random(200) < np.array([0.5, 0.5, 1.0])[arm_R]).astype(float)
        test.add(score_R, arm_R == 0, arm_R == 1, third_R, third_R)
    assert np.isin(test.outcome_R, (1, 2)).mean() <= 0.05


def test_a_guard_finds_an_arm_that_fails_too_often_and_leaves_one_at_its_limit_alone() -> None:
    draw = np.random.default_rng(0)
    good, bad = Limit(0.05, repetitions=200), Limit(0.05, repetitions=200)
    for _ in range(600):
        is_over_good_R, is_over_bad_R = good.add(draw.random(200) < 0.05), bad.add(draw.random(200) < 0.15)
    assert is_over_good_R.mean() <= 0.05
    assert is_over_bad_R.mean() > 0.95
    broken = Limit(0.02)
    assert next(n for n in range(1, 100) if broken.add_one(True)) <= 10  # an arm that always fails is gone at once


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("mean", [0.1, 0.5, 0.9])
def test_false_alarms_stay_below_alpha_over_thousands_of_scores(rates: ModuleType, mean: float, share: float) -> None:
    assert false_alarms(rates, (mean, mean, share), 2_000, 6_000) <= 0.05


@pytest.mark.slow
def test_false_alarms_stay_below_alpha_where_the_shares_follow_the_scores(rates: ModuleType) -> None:
    test = rates.simulated(rates.Truth(0.5, 0.5, 0.5), 2_000, 6_000, share=rates.by_the_leader)
    assert rates.rates(test)[0][1:3].sum() <= 0.05
