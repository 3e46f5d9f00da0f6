"""Two adapters compared by their weights: the figures of the dense changes, without making them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inlay.adapters.differences import largest_angle, weight_difference
from inlay.adapters.lowrank import Factors, LowRank, dense
from inlay.errors import AdapterError

SEED = st.integers(0, 2**31)
RANK = st.integers(1, 4)


def drawn(seed: int, rank: int) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, 8, generator=draw), torch.randn(6, rank, generator=draw))


def adapter(*factors: Factors, base: str = "b") -> LowRank:
    return LowRank(base, {f"m{n}": one for n, one in enumerate(factors)}, {})


def stacked(one: LowRank) -> Tensor:
    return torch.cat([dense(each).double().flatten() for each in one.factors.values()])


@given(SEED, RANK, RANK)
def test_norms_cosine_and_distance_are_those_of_the_dense_changes(seed: int, rank_a: int, rank_b: int):
    a, b = (adapter(drawn(seed + n, rank), drawn(seed + n + 2, rank)) for n, rank in enumerate((rank_a, rank_b)))
    found, one, two = weight_difference(a, b), stacked(a), stacked(b)
    assert found.norm_a == pytest.approx(float(one.norm()), rel=1e-5)
    assert found.norm_b == pytest.approx(float(two.norm()), rel=1e-5)
    assert found.distance == pytest.approx(float((one - two).norm()), rel=1e-5)
    assert found.cosine == pytest.approx(float(one @ two / (one.norm() * two.norm())), abs=1e-5)


@given(SEED, RANK)
def test_an_adapter_is_at_distance_0_and_cosine_1_of_itself(seed: int, rank: int):
    same = weight_difference(adapter(drawn(seed, rank)), adapter(drawn(seed, rank)))
    assert same.distance == 0.0
    assert same.cosine == pytest.approx(1.0, abs=1e-12)
    assert same.modules[0].angle_degrees == pytest.approx(0.0, abs=1e-6)


def test_the_largest_angle_is_that_between_the_directions_of_output():
    turned = math.radians(30)
    a = Factors(torch.eye(2, 8), torch.eye(6)[:, :2])
    b_OR = torch.stack([torch.eye(6)[0], math.cos(turned) * torch.eye(6)[1] + math.sin(turned) * torch.eye(6)[2]], 1)
    assert largest_angle(a, Factors(torch.randn(2, 8), b_OR)) == pytest.approx(30.0, abs=1e-4)
    assert largest_angle(a, Factors(torch.ones(1, 8), torch.eye(6)[:, 4:5])) == pytest.approx(90.0)
    assert largest_angle(a, Factors(torch.ones(1, 8), torch.zeros(6, 1))) is None


def test_a_module_of_one_alone_counts_with_its_norm_and_has_no_angle():
    a, b = adapter(drawn(0, 2)), adapter(drawn(0, 2), drawn(1, 2))
    last = weight_difference(a, b).modules[1]
    assert (last.norm_a, last.cosine, last.angle_degrees) == (0.0, None, None)
    assert last.distance == pytest.approx(last.norm_b)
    with pytest.raises(AdapterError, match="different bases"):
        weight_difference(a, adapter(drawn(0, 2), base="other"))
