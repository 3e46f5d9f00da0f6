"""Heuristics that merge adapters by dropping a part of each: TIES and DARE on the dense changes, then an SVD.

They are no sums: what they change besides the sum is lost or made up. `compose` prints how far they are from it.

Shapes: P parts, O outputs, I inputs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from inlay.adapters.compose import Progress
from inlay.adapters.lowrank import Factors, LowRank, dense, summed
from inlay.errors import ConfigError, unknown_name
from inlay.methods.initialization import leading


def ties(changes_POI: Tensor, weights_P: Tensor, density: float, _draw: torch.Generator) -> Tensor:
    """Keeps the largest entries of each change, elects the sign of each entry, and averages the parts that agree with it.

    Source: TIES-Merging (arXiv 2306.01708), section 3, with the weights on the trimmed changes.
    """
    kept_POI = torch.stack([_largest(change, density) for change in changes_POI]) * weights_P[:, None, None]
    sign_OI = kept_POI.sum(0).sign()
    agrees_POI = (kept_POI.sign() == sign_OI) & (kept_POI != 0)
    return (kept_POI * agrees_POI).sum(0) / agrees_POI.sum(0).clamp(min=1)


def dare(changes_POI: Tensor, weights_P: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """Drops entries of each change at random, divides the others by the density, and sums the parts.

    Source: DARE (arXiv 2311.03099), section 3.
    """
    kept_POI = torch.rand(changes_POI.shape, generator=draw) < density
    return (changes_POI * kept_POI / density * weights_P[:, None, None]).sum(0)


LOSSY_MERGES: Final[Mapping[str, Callable[[Tensor, Tensor, float, torch.Generator], Tensor]]] = {
    "ties_svd": ties,
    "dare_svd": dare,
}
"""Name -> merge of the dense changes of one module."""


def lossy_merge(
    kind: str,
    parts: Sequence[tuple[float, LowRank]],
    density: float,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> LowRank:
    """The parts merged by a heuristic of `LOSSY_MERGES`, at that rank; by default at the rank of the exact sum.

    A module that a part does not change counts as a change of zero. Biases are summed.

    Raises: ConfigError for an unknown name or a density out of range.
    """
    if kind not in LOSSY_MERGES:
        raise ConfigError(f"--as {unknown_name('merge', kind, LOSSY_MERGES)}")
    if not 0.0 < density <= 1.0:
        raise ConfigError(f"density {density:g}: must be above 0 and at most 1, such as 0.2.")
    total, factors = summed(parts), {}
    weights_P = torch.tensor([weight for weight, _ in parts])
    for number, (module, each) in enumerate(total.factors.items(), 1):
        zero_OI = torch.zeros(len(each.B_OR), each.A_RI.shape[1])
        changes = [dense(part.factors[module]) if module in part.factors else zero_OI for _, part in parts]
        # each module has its own stream: the result does not depend on which others are there
        draw = torch.Generator().manual_seed(seed ^ zlib.crc32(module.encode()))
        merged_OI = LOSSY_MERGES[kind](torch.stack(changes), weights_P, density, draw)
        factors[module] = _leading_factors(merged_OI, each.rank if rank is None else rank, seed)
        progress(number)
    return replace(total, factors=factors)


def _leading_factors(change_OI: Tensor, rank: int, seed: int) -> Factors:
    with torch.random.fork_rng(devices=[]):  # a large SVD draws its test vectors from the global generator
        torch.manual_seed(seed)
        u_OR, s_R, v_RI = leading(change_OI, min(rank, *change_OI.shape))
    root_R = s_R.sqrt()
    return Factors((root_R[:, None] * v_RI).contiguous(), (u_OR * root_R).contiguous())


def _largest(change_OI: Tensor, density: float) -> Tensor:
    """The change with all but its largest entries, by absolute value, set to zero."""
    count = max(1, round(density * change_OI.numel()))
    places = change_OI.abs().flatten().topk(count, sorted=False).indices
    kept = torch.zeros_like(change_OI.flatten())
    kept[places] = change_OI.flatten()[places]
    return kept.view_as(change_OI)
