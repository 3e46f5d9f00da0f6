"""What the curve of a run says: simulated runs of each kind, looked at after every evaluation as a run does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.training.plateau.diagnose import Point, change, diagnose

BASE = 3.0
Curve = Callable[[np.ndarray], np.ndarray]


def simulated(
    held: Curve, trained: Curve, rng: np.random.Generator, *, noise: float = 0.004, train_noise: float = 0.02,
    evaluations: int = 20, steady: Callable[[float], bool] = lambda share: True,
) -> list[Point]:  # fmt: skip
    """A run of 1000 steps; curves are functions of the share of the run that is done."""
    share = np.arange(1, evaluations + 1) / evaluations
    steps = np.round(share * 1000).astype(int)
    held_losses = held(share) * (1 + noise * rng.standard_normal(evaluations))
    train_losses = trained(share) * (1 + train_noise * rng.standard_normal(evaluations))
    rows = zip(steps, train_losses, held_losses, share, strict=True)
    return [Point(int(s), float(t), float(h), steady(x)) for s, t, h, x in rows]


def looked_at(points: list[Point]) -> list[str | None]:
    """The kind after each evaluation."""
    found = [diagnose(points[: n + 1], BASE) for n in range(len(points))]
    return [d.kind if d else None for d in found]


def rate(wanted: Callable[[list[str | None]], bool], runs: int = 60, **curves: Any) -> float:
    rng = np.random.default_rng(0)
    return sum(wanted(looked_at(simulated(rng=rng, **curves))) for _ in range(runs)) / runs


def power(floor: float, exponent: float) -> Curve:
    return lambda x: floor + (BASE - floor) * (1 + 20 * x) ** -exponent


IMPROVING = {
    "a power law": power(0.5, 0.5),
    "a slow power law": power(1.0, 0.3),
    "a line": lambda x: BASE * (1 - 0.5 * x),
    "late learning": lambda x: BASE - 0.3 * x - 1.2 * x**3,
}


@pytest.mark.parametrize("evaluations", [10, 30])
@pytest.mark.parametrize("curve", IMPROVING)
def test_a_run_that_improves_is_left_alone(curve: str, evaluations: int) -> None:
    falling = IMPROVING[curve]
    alarms = rate(any, held=falling, trained=falling, evaluations=evaluations)
    assert alarms <= 0.02, f"{alarms:.1%} of the runs"
    stopped = rate(lambda kinds: "overfitting" in kinds, held=falling, trained=falling, noise=0.02)
    assert stopped <= 0.02, f"{stopped:.1%} of the runs with five times the noise"


@pytest.mark.parametrize("evaluations", [10, 30])
def test_overfitting_is_found_before_the_run_ends(evaluations: int) -> None:
    held, trained = lambda x: 1.5 + 3 * (x - 0.3) ** 2, lambda x: 2.5 * np.exp(-2 * x)
    found = rate(lambda kinds: "overfitting" in kinds[:-1], held=held, trained=trained, evaluations=evaluations)
    assert found >= 0.95, f"{found:.1%}"


def test_overfitting_is_found_while_the_learning_rate_decays_too() -> None:
    held, trained = lambda x: 1.5 + 3 * (x - 0.3) ** 2, lambda x: 2.5 * np.exp(-2 * x)
    found = rate(lambda kinds: "overfitting" in kinds, held=held, trained=trained, steady=lambda x: x < 0.4)
    assert found >= 0.95, f"{found:.1%}"


def test_a_rise_that_the_noise_explains_is_not_overfitting() -> None:
    flat = lambda x: 1.5 + 0 * x  # noqa: E731
    for noise in (0.002, 0.01, 0.03):
        found = rate(lambda kinds: "overfitting" in kinds, held=flat, trained=power(0.5, 0.5), noise=noise)
        assert found <= 0.05, f"{found:.1%} at noise {noise}"


@pytest.mark.parametrize(
    ("kind", "held", "trained", "noises"),
    [
        ("converged", lambda x: 1.5 + 1.5 * np.exp(-20 * x), lambda x: 1.4 + 1.6 * np.exp(-20 * x), (0.001, 0.004)),
        ("stalled", lambda x: 2.98 + 0 * x, lambda x: 3 + 0 * x, (0.001, 0.004)),
        ("noise-bound", lambda x: 1.5 + 1.5 * np.exp(-20 * x), lambda x: 1.4 + 1.6 * np.exp(-20 * x), (0.06, 0.2)),
    ],
)
def test_each_kind_of_plateau_is_found(kind: str, held: Curve, trained: Curve, noises: tuple[float, float]) -> None:
    at_end = rate(
        lambda kinds: kind in kinds, held=held, trained=trained, noise=noises[0], train_noise=noises[1], evaluations=30
    )
    assert at_end >= 0.9, f"{at_end:.1%}"


def test_both_losses_rising_is_no_overfitting() -> None:
    rising = lambda x: 1.5 + 2 * x  # noqa: E731
    kinds = [k for k in looked_at(simulated(rising, rising, np.random.default_rng(0))) if k]
    assert kinds
    assert set(kinds) == {"stalled"}


def test_a_flat_curve_means_nothing_while_the_learning_rate_is_small() -> None:
    still = lambda x: 1.5 + 0 * x  # noqa: E731
    assert rate(any, held=still, trained=still, noise=0.001, train_noise=0.001, steady=lambda x: x < 0.2) <= 0.02


@given(
    values=st.lists(st.floats(0.1, 10), min_size=2, max_size=30),
    scale=st.floats(0.1, 10),
    shift=st.floats(-5, 5),
)
def test_the_slope_scales_with_the_losses_ignores_their_level_and_lies_in_its_interval(
    values: list[float], scale: float, shift: float
) -> None:
    def points(losses: list[float]) -> list[Point]:
        return [Point(10 * n + 10, 0.0, loss, True) for n, loss in enumerate(losses)]

    plain, scaled = (
        change(points(values), "eval_loss"),
        change(points([scale * v + shift for v in values]), "eval_loss"),
    )
    assert plain.low <= plain.value <= plain.high
    assert scaled.value == pytest.approx(scale * plain.value, rel=1e-6, abs=1e-6)
    mirrored = change(points([-v for v in values]), "eval_loss")
    assert (mirrored.low, mirrored.high) == (pytest.approx(-plain.high), pytest.approx(-plain.low))


def test_one_wild_evaluation_does_not_change_the_slope_much() -> None:
    line = [Point(n, 0.0, 3 - 0.1 * n, True) for n in range(1, 11)]
    wild = [*line[:5], Point(6, 0.0, 50.0, True), *line[6:]]
    assert change(wild, "eval_loss").value == pytest.approx(change(line, "eval_loss").value, rel=0.05)


def test_the_interval_of_a_flat_curve_covers_zero_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        points = [Point(n, 0.0, float(v), True) for n, v in enumerate(rng.standard_normal(12), 1)]
        moved = change(points, "eval_loss")
        covered += moved.low <= 0 <= moved.high
    assert 0.93 <= covered / 1000 <= 0.99
