"""Weighted sums of adapters, their shorter forms with true errors, and the lossy merges by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import ties as peft_ties

from adapters.test_lowrank import BASE, SEEDS, SIZES, WEIGHTS, lowrank
from inlay.adapters.compose import RankLimit, distance, exact_sum, require_weights, shortened, size_note
from inlay.adapters.lossy_merges import LOSSY_MERGES, dare, lossy_merge, ties
from inlay.adapters.lowrank import LowRank, dense, lowrank_of, norm, state_of
from inlay.errors import AdapterError, ConfigError
from inlay.methods.adapter_state import AdapterState
from methods.test_adapter import decoder, logits
from methods.test_adapters_of_others import write


def dense_distance(f: LowRank, g: LowRank) -> float:
    zero = {module: torch.zeros(SIZES[module]) for module in SIZES}
    whole = [{m: dense(a.factors[m]) if m in a.factors else zero[m] for m in SIZES} for a in (f, g)]
    return math.sqrt(sum(float((whole[0][m].double() - whole[1][m].double()).square().sum()) for m in SIZES))


LIMITS = st.one_of(
    st.integers(1, 6).map(lambda rank: RankLimit(rank=rank)),
    st.floats(0.05, 1.0).map(lambda share: RankLimit(energy=share)),
    st.integers(60, 900).map(lambda size: RankLimit(bytes=size)),
    st.just(RankLimit()),
)


@settings(max_examples=80, deadline=None)
@given(SEEDS, SEEDS, WEIGHTS, LIMITS)
def test_the_error_of_a_shortened_sum_is_the_dense_one(s: int, t: int, weight: float, limit: RankLimit):
    total = exact_sum([(0.7, lowrank(s)), (weight, lowrank(t))]) if s != t else lowrank(s)
    try:
        short = shortened(total, limit)
    except ConfigError:
        assert limit.rank is not None or limit.bytes is not None
        return
    size = norm(total)
    error = dense_distance(short.adapter, total)
    assert math.isclose(short.error * size, error, abs_tol=2e-5 * size + 1e-5)
    assert math.isclose(distance(short.adapter, total), error, abs_tol=2e-5 * size + 1e-5)
    if limit == RankLimit():
        assert short.error < 2e-6
    if limit.rank is not None:
        assert short.adapter.rank <= limit.rank
    if limit.energy is not None:
        assert short.error**2 <= 1 - limit.energy + 1e-6
    if limit.bytes is not None:
        assert short.adapter.bytes <= limit.bytes
    assert short.rank_before == total.rank
    assert short.bytes_before == total.bytes


def test_directions_that_a_sum_does_not_need_are_left_out():
    adapter = lowrank(3)
    twice = shortened(exact_sum([(0.7, adapter), (0.3, adapter)]), RankLimit())
    assert twice.rank_before == 2 * adapter.rank
    ranks = {m: torch.linalg.matrix_rank(dense(f)) for m, f in adapter.factors.items()}
    assert {m: f.rank for m, f in twice.adapter.factors.items()} == ranks
    assert dense_distance(twice.adapter, adapter) < 1e-5 * norm(adapter)


def test_a_sum_of_one_adapter_of_weight_one_computes_what_that_computes(tmp_path: Path):
    write(tmp_path, "llama", use_rslora=True)
    state = AdapterState.read(tmp_path)
    alone = shortened(exact_sum([(1.0, lowrank_of(state, BASE))]), RankLimit())
    assert alone.error == 0.0
    expected = logits(state.attach_to(decoder("llama")))
    assert torch.allclose(logits(state_of(alone.adapter).attach_to(decoder("llama"))), expected, atol=1e-5)


def test_changes_that_cancel_leave_nothing_that_could_be_stored():
    adapter = lowrank(5)
    with pytest.raises(AdapterError, match="cancel each other, so nothing but the base is left"):
        exact_sum([(0.7, adapter), (-0.7, adapter)])
    rest = exact_sum([(1.0, lowrank(6)), (0.7, adapter), (-0.7, adapter)])
    assert set(shortened(rest, RankLimit()).adapter.factors) == set(lowrank(6).factors)


@pytest.mark.parametrize(
    ("weights", "text"),
    [({"a": 1.0, "b": 0.0}, "b=0: an adapter of weight 0 has no part"), ({"a": math.nan}, "a=nan: the weight must be"),
     ({"a": math.inf}, "a=inf: the weight must be")],
)  # fmt: skip
def test_a_weight_of_zero_or_no_number_is_refused(weights: dict[str, float], text: str):
    with pytest.raises(ConfigError, match=text):
        require_weights(weights)
    require_weights({"a": -0.3, "b": 2.5})


def test_a_limit_that_cannot_take_effect_is_refused():
    adapter = lowrank(1)
    with pytest.raises(ConfigError, match="so there is nothing to cut"):
        shortened(adapter, RankLimit(rank=adapter.rank))
    with pytest.raises(ConfigError, match="so there is nothing to cut"):
        shortened(adapter, RankLimit(bytes=adapter.bytes))
    with pytest.raises(ConfigError, match="less than one rank"):
        shortened(adapter, RankLimit(bytes=8))
    for bad in ({"rank": 2, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}, {"energy": math.nan}, {"bytes": 0}):
        with pytest.raises(ConfigError):
            RankLimit(**bad)  # type: ignore[arg-type]


def test_a_large_sum_of_weights_is_noted_with_the_size_of_the_change():
    adapter = lowrank(2)
    parts = [(1.5, adapter), (1.5, adapter)]
    assert "sum to 3: ‖ΔW‖ is 3.00 times" in size_note(parts, exact_sum(parts))
    assert size_note([(1.0, adapter), (1.0, adapter)], adapter) == ""


def test_ties_is_that_of_peft_for_equal_weights():
    torch.manual_seed(0)
    changes = torch.randn(3, 6, 5)
    got = ties(changes, torch.ones(3), 0.4, torch.Generator())
    assert torch.allclose(got, peft_ties(list(changes), torch.ones(3), 0.4), atol=1e-6)


def test_dare_keeps_the_weighted_sum_in_the_mean_over_draws():
    changes, weights = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7, -0.3])
    total = (changes * weights[:, None, None]).sum(0)
    draw = torch.Generator().manual_seed(1)
    drawn = torch.stack([dare(changes, weights, 0.5, draw) for _ in range(3000)])
    assert float((drawn.mean(0) - total).norm() / total.norm()) < 0.04
    assert float((drawn[0] - total).norm() / total.norm()) > 0.3


@pytest.mark.parametrize("kind", LOSSY_MERGES)
def test_a_lossy_merge_is_the_same_for_a_seed_and_exact_where_it_drops_nothing(kind: str):
    parts = [(1.0, lowrank(7))]
    drawn = [lossy_merge(kind, parts, 0.3, seed=seed) for seed in (1, 1, 2)]
    assert dense_distance(drawn[0], drawn[1]) == 0.0
    assert kind == "ties_svd" or dense_distance(drawn[0], drawn[2]) > 0.0
    whole = lossy_merge(kind, parts, 1.0)
    assert dense_distance(whole, lowrank(7)) < 1e-4 * norm(lowrank(7))
    assert whole.rank <= lowrank(7).rank


def test_a_merge_that_nobody_knows_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--as unknown merge 'ties'. Did you mean 'ties_svd'"):
        lossy_merge("ties", [(1.0, lowrank(1))], 0.2)
    with pytest.raises(ConfigError, match="density 0: must be above 0"):
        lossy_merge("ties_svd", [(1.0, lowrank(1))], 0.0)
