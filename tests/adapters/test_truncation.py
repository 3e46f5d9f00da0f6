"""Adapters cut to lower ranks: nearest in weights, or in what they add to outputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inlay.adapters.lowrank import Factors, LowRank, cut, dense, norm
from inlay.adapters.truncation import (
    activation_core,
    budget_of,
    halved_ranks,
    ranks_within,
    truncated,
    weight_cores,
)

SEED = st.integers(0, 2**31)


def drawn(seed: int, rank: int, inputs: int = 9, outputs: int = 7) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, inputs, generator=draw), torch.randn(outputs, rank, generator=draw))


def seen(seed: int, inputs: int = 9, tokens: int = 40) -> Tensor:
    """Inputs of very different sizes in different directions, so that weights alone are a bad guide."""
    draw = torch.Generator().manual_seed(seed + 1)
    mixed = torch.randn(inputs, inputs, generator=draw) @ torch.diag(torch.logspace(0, -2, inputs))
    return torch.randn(tokens, inputs, generator=draw) @ mixed.T


def gram(factors: Factors, inputs_TI: Tensor) -> Tensor:
    parts_TR = inputs_TI.double() @ factors.A_RI.double().T
    return parts_TR.T @ parts_TR / len(inputs_TI)


def output_error(factors: Factors, other: Factors, inputs_TI: Tensor) -> float:
    return float(((dense(factors) - dense(other)).double() @ inputs_TI.double().T).square().sum() / len(inputs_TI))


@given(SEED, st.integers(1, 6), st.integers(1, 6))
def test_outputs_on_the_rows_are_nearer_than_those_of_the_nearest_weights(seed: int, stored: int, rank: int):
    factors, inputs_TI = drawn(seed, stored), seen(seed)
    by_outputs = cut(activation_core(factors, gram(factors, inputs_TI)), rank)
    by_weights = truncated(
        LowRank("b", {"m": factors}, {}), weight_cores(LowRank("b", {"m": factors}, {})), {"m": rank}
    )
    size = float((dense(factors).double() @ inputs_TI.double().T).square().sum() / len(inputs_TI))
    allowed = output_error(factors, by_weights.factors["m"], inputs_TI) + 1e-5 * size
    assert output_error(factors, by_outputs, inputs_TI) <= allowed


@given(SEED, st.integers(1, 6), st.integers(1, 6))
def test_what_the_outputs_lose_is_the_sum_of_the_terms_that_are_left_out(seed: int, stored: int, rank: int):
    factors, inputs_TI = drawn(seed, stored), seen(seed)
    decomposed = activation_core(factors, gram(factors, inputs_TI))
    assert torch.allclose(
        (decomposed.left_OK * decomposed.sigma_K @ decomposed.right_KI).float(), dense(factors), atol=1e-4
    )
    found = output_error(factors, cut(decomposed, rank), inputs_TI)
    whole = float(decomposed.sigma_K.square().sum())
    assert found == pytest.approx(float(decomposed.sigma_K[rank:].square().sum()), abs=1e-4 * whole)


@given(SEED, st.integers(1, 4))
def test_ranks_are_shared_out_within_the_size_of_a_rank_and_lose_no_more_than_equal_ranks(seed: int, rank: int):
    adapter = LowRank("b", {"large": drawn(seed, 4), "small": drawn(seed + 1, 4)}, {})
    adapter.factors["small"].B_OR.mul_(0.1)
    cores = weight_cores(adapter)
    budget = budget_of(adapter, rank)
    shared = truncated(adapter, cores, ranks_within(adapter, cores, budget))
    equal = truncated(adapter, cores, {"large": min(rank, 4), "small": min(rank, 4)})
    assert shared.parameters <= budget == equal.parameters
    lost = [
        math.sqrt(sum(float((dense(adapter.factors[m]) - (dense(kept.factors[m]) if m in kept.factors else 0)).square().sum())
                      for m in adapter.factors))
        for kept in (shared, equal)
    ]  # fmt: skip
    assert lost[0] <= lost[1] + 1e-5 * norm(adapter)


def test_ranks_of_a_truncation_curve_are_halves_down_to_one():
    assert [halved_ranks(rank) for rank in (1, 8, 12)] == [[1], [8, 4, 2, 1], [12, 6, 3, 1]]
