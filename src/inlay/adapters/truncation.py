"""An adapter cut to lower ranks: by its weights alone, or by what it adds to the outputs of its modules on rows.

Shapes: I inputs and O outputs of a module, R rank, K singular values, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from inlay.adapters.lowrank import Core, Factors, LowRank, allocated, core, cut

Cores = Mapping[str, Core]
"""The decomposed change of each module."""
_RIDGE = 1e-6
"""Share of its trace that is added to the diagonal of a Gram matrix, so that it has a Cholesky factor."""


def weight_cores(adapter: LowRank) -> dict[str, Core]:
    """The singular value decomposition of each ΔW: cut, it is the nearest to ΔW."""
    return {module: core(each) for module, each in adapter.factors.items()}


def activation_cores(adapter: LowRank, grams: Mapping[str, Tensor]) -> dict[str, Core]:
    """Decompositions that, cut, are the nearest to ΔW·x over the inputs x that the Gram matrices were made of."""
    return {module: activation_core(each, grams[module]) for module, each in adapter.factors.items()}


def activation_core(factors: Factors, gram_RR: Tensor) -> Core:
    """ΔW = left · diag(sigma) · right, of which the first r terms have the least mean ‖(ΔW - ΔW')x‖².

    `gram_RR` is the mean of (A·x)(A·x)ᵀ over the inputs x. The squares of sigma are what each term adds to the mean of
    ‖ΔW·x‖². The terms of `right` are not orthogonal.
    """
    gram_RR = gram_RR.double()
    # mean ‖(B - B'')·A·x‖² = ‖(B - B'')·L‖² with gram = L·Lᵀ, so B·L is what is cut
    ridge = _RIDGE * gram_RR.diagonal().sum()
    factor_RR = torch.linalg.cholesky(gram_RR + ridge * torch.eye(len(gram_RR), dtype=torch.float64))
    q_OK, r_KR = torch.linalg.qr(factors.B_OR.double())
    u, sigma_K, vh_KR = torch.linalg.svd(r_KR @ factor_RR, full_matrices=False)
    right_KI = vh_KR @ torch.linalg.solve_triangular(factor_RR, factors.A_RI.double(), upper=False)
    return Core(q_OK @ u, sigma_K, right_KI)


def price(factors: Factors) -> int:
    """Parameters of one rank of a module."""
    return factors.A_RI.shape[1] + len(factors.B_OR)


def budget_of(adapter: LowRank, rank: int) -> int:
    """Parameters of the adapter with each module cut to at most that rank."""
    return sum(price(each) * min(rank, each.rank) for each in adapter.factors.values())


def ranks_within(adapter: LowRank, cores: Cores, budget: int) -> dict[str, int]:
    """Rank of each module, all together of at most `budget` parameters, that keep the most."""
    prices = {module: price(each) for module, each in adapter.factors.items()}
    return allocated({module: each.sigma_K for module, each in cores.items()}, prices, budget)


def truncated(adapter: LowRank, cores: Cores, ranks: Mapping[str, int]) -> LowRank:
    """The adapter with each module cut to its rank; one of rank 0 is left out, one that has it already stays."""
    factors = {
        module: each if ranks[module] >= each.rank else cut(cores[module], ranks[module])
        for module, each in adapter.factors.items()
        if ranks[module]
    }
    return replace(adapter, factors=factors)


def halved_ranks(rank: int) -> list[int]:
    """The rank, its half, and so on down to 1."""
    found = [rank]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
