"""The paired bootstrap: exact symmetries, honest verdicts, intervals that cover as often as they say."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from inlay.errors import ConfigError, DataError
from inlay.evaluation.metrics import LOSS_METRICS, METRICS, Metric
from inlay.evaluation.verdict import MIN_ROWS, Difference, compare_scores, holm, mcnemar, paired_bootstrap, t_quantile

MEAN = METRICS["token_f1"]
LOSS = LOSS_METRICS["loss"]
TEXT = "a bird can fly over the wide sea and 7 hills, but not under it."
FLIPPED = {"better": "worse", "worse": "better", "not distinguishable": "not distinguishable"}


def mean_rows(scores) -> np.ndarray:
    """Statistics of a metric that is a mean of row scores."""
    return np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1)


def all_metrics(n: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray, Metric]]:
    """Two sides of every metric over n rows: text that is edited more or less, losses of uneven rows."""
    generator = random.Random(seed)
    words = TEXT.split()
    pairs = {}
    references = [generator.choices(words, k=generator.randint(1, 14)) for _ in range(n)]
    sides = [
        [
            " ".join(word if generator.random() < keep else generator.choice(words) for word in reference)
            for reference in references
        ]
        for keep in (0.4, 0.7)
    ]
    for name, metric in METRICS.items():
        a, b = (
            np.stack([metric.statistics(p, " ".join(r)) for p, r in zip(side, references, strict=True)])
            for side in sides
        )
        pairs[name] = (a, b, metric)
    noise = np.random.default_rng(seed)
    weights = noise.integers(1, 300, n).astype(float)
    high, low = (np.stack([weights * noise.gamma(2, scale, n), weights], axis=1) for scale in (1.0, 0.8))
    return pairs | {
        name: (low, high, metric) if metric.higher_is_better else (high, low, metric)
        for name, metric in LOSS_METRICS.items()
    }


def mirrored(d: Difference) -> Difference:
    """What swapping the two sides must give."""
    return dataclasses.replace(
        d,
        base=d.other,
        other=d.base,
        difference=-d.difference,
        low=None if d.high is None else -d.high,
        high=None if d.low is None else -d.low,
        wins=d.losses,
        losses=d.wins,
    )


@pytest.mark.parametrize("n", [1, 2, 9, 60, 300])
def test_swapping_the_sides_mirrors_every_number_and_flips_the_verdict(n):
    pairs = all_metrics(n, seed=n)
    forward = compare_scores(pairs, resamples=1000, seed=3)
    backward = compare_scores({k: (b, a, m) for k, (a, b, m) in pairs.items()}, resamples=1000, seed=3)
    for name in pairs:
        assert backward[name] == mirrored(forward[name])
        assert backward[name].verdict == FLIPPED[forward[name].verdict]
    if n == 300:
        assert {d.verdict for d in forward.values()} == {"better"}


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
@example([(0.0, 0.0), (40.0, 1.0), (76.0, 0.0)])
@settings(max_examples=200)
def test_swapping_mirrors_exactly_for_any_scores(scores):
    a, b = (mean_rows([pair[side] for pair in scores]) for side in (0, 1))
    forward = paired_bootstrap(a, b, MEAN, resamples=200, seed=0)
    assert paired_bootstrap(b, a, MEAN, resamples=200, seed=0) == mirrored(forward)
    assert forward.interval == (None if len(scores) == 1 else tuple(sorted(forward.interval or ())))


@pytest.mark.parametrize("n", [1, 2, 8, 60, 301])
def test_a_model_against_itself_differs_by_exactly_zero(n):
    pairs = {name: (a, a.copy(), metric) for name, (a, _, metric) in all_metrics(n, seed=n).items()}
    for difference in compare_scores(pairs, resamples=500, seed=0).values():
        assert (difference.difference, difference.interval) == (0.0, None if n == 1 else (0.0, 0.0))
        assert (difference.wins, difference.ties, difference.losses) == (0, n, 0)
        assert difference.verdict == "not distinguishable"


def test_a_metric_gives_the_same_interval_alone_and_among_others():
    pairs = all_metrics(40, seed=0)
    together = compare_scores(pairs, resamples=400, seed=5)
    for name, (a, b, metric) in pairs.items():
        assert paired_bootstrap(a, b, metric, resamples=400, seed=5) == together[name]


def test_the_seed_decides_the_interval_and_nothing_else():
    a, b, metric = all_metrics(40, seed=0)["rouge_l"]
    first, again, other = (paired_bootstrap(a, b, metric, resamples=400, seed=s) for s in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert dataclasses.replace(other, low=first.low, high=first.high, p=first.p) == first


def test_resamples_are_drawn_in_blocks_without_a_seam(monkeypatch):
    a, b, metric = all_metrics(50, seed=0)["chrf"]
    whole = paired_bootstrap(a, b, metric, resamples=999, seed=0)
    monkeypatch.setattr("inlay.evaluation.verdict._CELLS", 50 * 7)
    assert paired_bootstrap(a, b, metric, resamples=999, seed=0) == whole


def test_point_values_are_those_of_the_whole_corpus():
    for name, (a, b, metric) in all_metrics(80, seed=1).items():
        difference = paired_bootstrap(a, b, metric, resamples=100, seed=0)
        assert difference.base == pytest.approx(float(metric.value(a.sum(axis=0))), rel=1e-11), name
        assert difference.other == pytest.approx(float(metric.value(b.sum(axis=0))), rel=1e-11), name
        assert difference.difference == difference.other - difference.base
        assert difference.low < difference.difference < difference.high
        assert difference.wins + difference.ties + difference.losses == difference.n == 80


def test_a_known_improvement_is_better_and_its_loss_form_worse():
    noise = np.random.default_rng(0)
    base = noise.random(200)
    other = base + noise.normal(0.05, 0.1, 200)
    up = paired_bootstrap(mean_rows(base), mean_rows(other), MEAN, seed=0)
    assert up.verdict == "better"
    assert up.reason == "the 95% interval excludes 0"
    assert up.wins > up.losses
    loss = paired_bootstrap(mean_rows(base), mean_rows(other), LOSS, seed=0)
    assert (loss.low, loss.high, loss.verdict) == (up.low, up.high, "worse")
    assert (loss.wins, loss.losses) == (up.losses, up.wins)


def test_pairing_finds_what_two_separate_means_would_hide():
    noise = np.random.default_rng(0)
    base = noise.normal(0, 10, 100)
    other = base + noise.normal(0.1, 0.2, 100)
    assert paired_bootstrap(mean_rows(base), mean_rows(other), MEAN, seed=0).verdict == "better"
    shuffled = noise.permutation(other)
    assert paired_bootstrap(mean_rows(base), mean_rows(shuffled), MEAN, seed=0).verdict != "better"


def test_the_interval_of_a_large_sample_is_the_normal_one():
    change = np.random.default_rng(0).normal(0.3, 1, 5000)
    found = paired_bootstrap(mean_rows(np.zeros(5000)), mean_rows(change), MEAN, seed=0)
    error = change.std() / np.sqrt(5000)
    assert found.low == pytest.approx(change.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(change.mean() + 1.96 * error, abs=0.1 * error)


@pytest.mark.parametrize("n", range(1, MIN_ROWS + 1))
def test_fewer_than_eight_rows_give_no_verdict(n):
    found = paired_bootstrap(mean_rows(np.zeros(n)), mean_rows(np.ones(n)), MEAN, resamples=100, seed=0)
    assert found.verdict == ("better" if n >= MIN_ROWS else "not distinguishable")
    assert ("a verdict needs 8" in found.reason) == (n < MIN_ROWS)


@pytest.mark.parametrize(("level", "needed"), [(0.9, 5), (0.95, 6), (0.99, 8)])
def test_rows_that_could_agree_by_chance_give_no_verdict(level, needed):
    for changed in (needed - 1, needed):
        other = np.r_[np.ones(changed), np.zeros(200 - changed)]
        found = paired_bootstrap(mean_rows(np.zeros(200)), mean_rows(other), MEAN, seed=0, level=level)
        assert found.low > 0 or changed < needed
        assert found.verdict == ("better" if changed >= needed else "not distinguishable")
        assert (f"a verdict needs {needed}" in found.reason) == (changed < needed)
        assert 2 * 0.5**needed <= 1 - level + 1e-12 < 2 * 0.5 ** (needed - 1)


def test_the_reason_names_the_interval_when_it_contains_zero():
    noise = np.random.default_rng(0)
    found = paired_bootstrap(mean_rows(noise.random(30)), mean_rows(noise.random(30)), MEAN, seed=0)
    assert found.verdict == "not distinguishable"
    assert found.reason == "the 95% interval contains 0"


def test_unequal_rows_are_refused_by_name():
    with pytest.raises(DataError, match=r"token_f1.*\(9, 2\) and \(8, 2\)"):
        paired_bootstrap(mean_rows(np.ones(9)), mean_rows(np.ones(8)), MEAN)
    with pytest.raises(DataError, match="chrf"):
        paired_bootstrap(mean_rows(np.ones(9)), mean_rows(np.ones(9)), METRICS["chrf"])
    with pytest.raises(DataError, match="token_f1"):
        paired_bootstrap(np.zeros((0, 2)), np.zeros((0, 2)), MEAN)


def test_a_row_that_is_not_finite_is_refused_by_number():
    with pytest.raises(DataError, match="row 2 "):
        paired_bootstrap(mean_rows([1, 2, 3]), mean_rows([1, 2, np.nan]), MEAN)


def test_a_row_without_weight_is_refused():
    rows = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 1.0]])
    with pytest.raises(DataError, match="without weight"):
        paired_bootstrap(rows, rows, LOSS)


@pytest.mark.parametrize(("resamples", "level"), [(38, 0.95), (10_000, 1.0), (10_000, 0.0), (198, 0.99)])
def test_an_interval_that_the_resamples_cannot_give_is_refused(resamples, level):
    rows = mean_rows(np.arange(10))
    with pytest.raises(ConfigError, match="resamples"):
        paired_bootstrap(rows, rows, MEAN, resamples=resamples, level=level)
    assert paired_bootstrap(rows, rows, MEAN, resamples=39, level=0.95).high == 0.0


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.99])
def test_thet_quantile_equals_that_of_scipy(level):
    for freedom in (*range(1, 60), 1000):
        expected = scipy_stats.t.ppf((1 + level) / 2, freedom)
        assert t_quantile((1 + level) / 2, freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (3, 9), (9, 3), (5, 5), (0, 6), (700, 600), (1, 2000), (3000, 3100)]
)
def test_mcnemar_equals_the_exact_binomial_test_of_scipy(wins, losses):
    expected = scipy_stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_right_or_wrong_rows_are_tested_by_mcnemar_and_scores_by_the_resamples():
    noise = np.random.default_rng(0)
    right = [mean_rows(noise.random(60) < share) for share in (0.3, 0.7)]
    scores = [mean_rows(noise.random(60) ** power) for power in (2, 1)]
    found = compare_scores({"right": (*right, MEAN), "score": (*scores, MEAN)}, resamples=999, seed=0)
    assert (found["right"].test, found["score"].test) == ("mcnemar", "bootstrap")
    assert found["right"].p == mcnemar(found["right"].wins, found["right"].losses)
    assert all(d.p < 0.05 and d.verdict == "better" for d in found.values())


def test_holm_multiplies_by_the_hypotheses_left_and_never_falls():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_rows_of_a_cluster_are_drawn_together():
    noise = np.random.default_rng(0)
    per_file = np.repeat(noise.normal(0, 1, 20), 30)  # rows of one file say the same: 20 facts, not 600
    base, other = mean_rows(np.zeros(600)), mean_rows(per_file + noise.normal(0, 0.1, 600))
    files = [f"file-{n // 30}" for n in range(600)]
    alone = compare_scores({"m": (base, other, MEAN)}, seed=0)["m"]
    together = compare_scores({"m": (base, other, MEAN)}, seed=0, clusters=files)["m"]
    assert together.high - together.low > 4 * (alone.high - alone.low)
    assert together.difference == pytest.approx(alone.difference)
    assert (together.n, together.clusters, together.wins) == (600, 20, alone.wins)
    sums = [mean_rows(side[:, 0].reshape(20, 30).mean(1)) for side in (base, other)]
    as_facts = compare_scores({"m": (*sums, MEAN)}, seed=0)["m"]
    assert (together.low, together.high) == pytest.approx((as_facts.low, as_facts.high))
    few = compare_scores({"m": (base, other, MEAN)}, seed=0, clusters=[n // 100 for n in range(600)])["m"]
    assert "only 6 groups of rows" in few.reason


def power(kind: str, n: int, count: int, resamples: int = 400) -> tuple[float, float]:
    """Share of verdicts that are right when the true effect is the printed detectable one, and when there is none."""
    noise = np.random.default_rng(n)
    rows = noise.normal(0, 1, (count, n)) if kind == "normal" else noise.exponential(1, (2, count, n)) @ np.eye(n)
    rows = rows[0] - rows[1] if kind == "exponential" else rows
    base = mean_rows(np.zeros(n))

    def verdicts(effects: np.ndarray) -> list:
        pairs = {
            str(k): (base, mean_rows(row + effect), MEAN)
            for k, (row, effect) in enumerate(zip(rows, effects, strict=True))
        }
        return list(compare_scores(pairs, resamples=resamples, seed=n).values())

    idle = verdicts(np.zeros(count))
    printed = float(np.mean([d.mde for d in idle]))
    found = verdicts(np.full(count, printed))
    return float(np.mean([d.verdict == "better" for d in found])), float(
        np.mean([d.verdict == "not distinguishable" for d in idle])
    )


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_detectable_effect_is_found_and_no_effect_is_not(kind):
    found, quiet = power(kind, n=50, count=300)
    assert found >= 0.92
    assert quiet >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "exponential"])
@pytest.mark.parametrize("n", [50, 200])
def test_an_effect_of_the_printed_size_is_found_in_95_of_100_comparisons(kind, n):
    found, quiet = power(kind, n, count=4000, resamples=2000)
    # 95 and three standard errors of 0.34; docs/decisions/bootstrap-interval.md has the figures
    assert found >= 0.94
    assert quiet >= 0.94


def trials(kind: str, n: int, count: int) -> tuple[np.ndarray, float]:
    """(count, n) row differences and their true mean."""
    noise = np.random.default_rng(n)
    if kind == "exponential":
        return noise.exponential(1, (count, n)), 1.0
    if kind == "exponential against exponential":
        return noise.exponential(1.3, (count, n)) - noise.exponential(1, (count, n)), 0.3
    if kind == "beta against beta":
        return noise.beta(0.4, 0.6, (count, n)) - noise.beta(0.3, 0.9, (count, n)), 0.15
    draw = noise.random((count, n))
    if kind == "15% of rows won, 5% lost":
        return (draw < 0.15) * 1.0 - (draw > 0.95), 0.1
    assert kind == "no effect, 10% of rows differ"
    return (draw < 0.05) * 1.0 - (draw > 0.95), 0.0


def simulated(kind: str, n: int, count: int, resamples: int) -> tuple[float, float]:
    """Share of intervals that cover the truth, and of verdicts that are wrong."""
    rows, truth = trials(kind, n, count)
    base = mean_rows(np.zeros(n))
    pairs = {str(trial): (base, mean_rows(row), MEAN) for trial, row in enumerate(rows)}
    found = compare_scores(pairs, resamples=resamples, seed=n).values()
    wrong = {"better"} if truth < 0 else {"worse"} if truth > 0 else {"better", "worse"}
    covered = np.mean([d.low - 1e-12 <= truth <= d.high + 1e-12 for d in found])
    return float(covered), float(np.mean([d.verdict in wrong for d in found]))


SKEWED = ["exponential", "exponential against exponential", "beta against beta", "15% of rows won, 5% lost"]


@pytest.mark.parametrize("kind", SKEWED)
def test_intervals_of_skewed_rows_cover_the_truth(kind):
    covered, wrong = simulated(kind, n=40, count=500, resamples=1000)
    assert 0.92 <= covered <= 0.98
    assert wrong <= 0.025


def test_two_equal_models_are_rarely_told_apart():
    covered, wrong = simulated("no effect, 10% of rows differ", n=100, count=500, resamples=1000)
    assert covered >= 0.93
    assert wrong <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 200])
@pytest.mark.parametrize("kind", SKEWED)
def test_intervals_of_skewed_rows_cover_93_to_97_percent(kind, n):
    covered, wrong = simulated(kind, n, count=4000, resamples=4000)
    assert 0.93 <= covered <= 0.97
    assert wrong <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 200])
def test_two_equal_models_are_told_apart_in_at_most_one_of_twenty(n):
    assert simulated("no effect, 10% of rows differ", n, count=4000, resamples=4000)[1] <= 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_too_few_rows_give_no_p_and_one_row_no_interval(n: int, seed: int, clustered: bool) -> None:
    pairs = all_metrics(n, seed)
    files = [row // 2 for row in range(n)] if clustered else None
    for d in compare_scores(pairs, resamples=100, seed=seed, clusters=files).values():
        units = (n + 1) // 2 if clustered else n
        assert (d.p is None) == bool(d.too_few)
        assert not d.too_few or d.verdict == "not distinguishable"
        assert units >= MIN_ROWS or d.p is None
        told = d.to_json()
        if units == 1:
            assert [told[key] for key in ("low", "high", "standard_error", "mde", "p")] == [None] * 5
            assert d.reason.startswith("only 1 group of rows;" if clustered else "only 1 row;")
        else:
            assert d.low is not None
            assert d.high is not None
            assert d.low <= d.high
