"""Several seeds of one config are judged as one: rows and seeds are two levels of luck."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay import api
from inlay.cli.render.comparison import comparisons_text
from inlay.errors import DataError
from inlay.evaluation.caveats import SeedsOfOneConfig
from inlay.evaluation.metrics import LOSS_METRICS, METRICS, Metric
from inlay.evaluation.seeds import by_seed, over_seeds
from inlay.evaluation.verdict import Difference, compare_scores
from training_runs import Quiet

MEAN = METRICS["token_f1"]


def mean_rows(scores: np.ndarray) -> np.ndarray:
    return np.stack([scores, np.ones(len(scores))], axis=1)


def scored(n: int, effects: list[float], seed: int = 0) -> list[np.ndarray]:
    """Rows of one model for each effect, which differ in nothing else."""
    rows = np.random.default_rng(seed).normal(0, 1, n)
    return [mean_rows(rows + effect) for effect in effects]


def level(base: np.ndarray, others: list[np.ndarray], metric: Metric = MEAN) -> tuple[Difference, list[float]]:
    return over_seeds([base], [[one] for one in others], [metric], resamples=500)[metric.name]


def test_seeds_that_agree_give_the_interval_of_one() -> None:
    base, one = mean_rows(np.zeros(60)), scored(60, [0.5])[0]
    (found, each), alone = level(base, [one] * 3), compare_scores({"m": (base, one, MEAN)}, resamples=500)["m"]
    assert (found.difference, found.low, found.high) == pytest.approx((alone.difference, alone.low, alone.high))
    assert each == pytest.approx([alone.difference] * 3)
    assert (found.wins, found.ties, found.losses, found.seeds) == (alone.wins, alone.ties, alone.losses, 3)
    assert found.p < 0.01


def test_seeds_that_disagree_take_a_verdict_away_that_each_of_them_gives() -> None:
    base = mean_rows(np.zeros(200))
    others = scored(200, [0.4, 0.6, 1.9])
    assert {compare_scores({"m": (base, one, MEAN)}, resamples=500)["m"].verdict for one in others} == {"better"}
    found, each = level(base, others)
    assert found.difference == pytest.approx(np.mean(each))
    assert found.verdict == "not distinguishable"
    assert found.p > 0.05
    assert level(base, scored(200, [0.9, 1.0, 1.1]))[0].verdict == "better"


def test_the_mean_of_a_corpus_metric_is_over_the_scores_of_the_seeds_and_swapping_the_sign_mirrors() -> None:
    loss = LOSS_METRICS["perplexity"]
    noise = np.random.default_rng(1)
    weight = noise.integers(1, 50, 40).astype(float)
    base, *others = (np.stack([weight * noise.gamma(2, 1, 40), weight], axis=1) for _ in range(4))
    found, _ = level(base, others, loss)
    assert found.other == pytest.approx(np.mean([loss.value(one.sum(0)) for one in others]))
    assert found.low < found.difference < found.high
    with pytest.raises(DataError, match="two or more"):
        level(base, others[:1], loss)


def covered(count: int, n: int, seeds: int, spread: float, by_row: float, trials: int) -> float:
    """Share of intervals that hold the truth where rows, seeds, and rows by seeds differ so much."""
    noise = np.random.default_rng(n + seeds)
    truth, ones = 0.3, np.ones(n)
    names = [
        Metric(name=str(k), higher_is_better=True, description="", size=2, value=MEAN.value) for k in range(trials)
    ]
    rows = noise.normal(0, 1, (trials, 1, n)) + noise.normal(0, spread, (trials, seeds, 1))
    rows += truth + noise.normal(0, by_row, (trials, seeds, n))
    others = [[np.stack([rows[t, s], ones], 1) for t in range(trials)] for s in range(seeds)]
    found = over_seeds([mean_rows(np.zeros(n))] * trials, others, names, resamples=count)
    return float(np.mean([d.low <= truth <= d.high for d, _ in found.values()]))


def test_the_interval_over_rows_and_seeds_covers_the_truth() -> None:
    for seeds, spread in ((3, 0.0), (3, 0.5), (5, 0.1)):
        assert covered(400, 50, seeds, spread, 0.3, trials=150) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("by_row", [0.0, 0.5])
def test_it_covers_the_truth_at_least_94_times_in_100(seeds: int, spread: float, by_row: float) -> None:
    assert covered(2000, 100, seeds, spread, by_row, trials=2000) >= 0.94


def test_runs_are_one_config_only_with_several_seeds() -> None:
    assert by_seed([("a", 1), ("b", 1), None, ("a", 2), ("a", 2), ("c", 3)]) == [[0, 3]]


def test_runs_of_one_config_are_found_and_judged_together(
    config_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def run(seed: int, **train: Any) -> Any:
        tree = config_tree(eval={"max_rows": 8, "max_new_tokens": 2}, output={"name": f"s{seed}{len(train)}"})
        return api.train(tree | {"train": tree["train"] | {"seed": seed} | train}, reporter=Quiet())

    first, second, other = run(1), run(2), run(2, learning_rate=1e-3)
    found = api.compare(first, second, other, reporter=Quiet())
    assert found.seeds == ()
    assert SeedsOfOneConfig(("s10", "s20")) in found.caveats
    found = api.compare("base", first, other, second, reporter=Quiet(), folder=str(tmp_path / "results"))
    (together,) = found.seeds
    assert (together.names, together.seeds) == (("s10", "s20"), (1, 2))
    losses = [one.metrics["loss"].difference for one in (found, found.also[1])]
    assert together.each["loss"] == pytest.approx(losses)
    assert together.metrics["loss"].difference == pytest.approx(np.mean(losses))
    assert "2 seeds of one config: s10, s20" in comparisons_text(found, 100)
    for name in ("report.html", "report.md"):
        assert together.title in (Path(found.reports) / name).read_text(encoding="utf-8")
    there = json.loads((Path(found.reports) / "compare.json").read_text(encoding="utf-8"))["seeds"]
    assert there[0]["metrics"]["loss"]["seeds"] == 2
