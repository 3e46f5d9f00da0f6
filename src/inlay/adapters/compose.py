"""Weighted sums of adapters: checked weights, the exact sum, and shorter forms of it with their true error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from inlay.adapters.lowrank import (
    Core,
    Factors,
    LowRank,
    allocated,
    core,
    cut,
    energy_rank,
    norm,
    spectrum,
    summed,
)
from inlay.errors import AdapterError, ConfigError

NEGLIGIBLE: Final = 1e-6
"""Share of a module's largest singular value below which a direction is left out of an exact sum."""
_LARGE_TOTAL: Final = 2.0
"""Sum of weights from which the size of the change is noted."""
Progress = Callable[[int], None]
"""Called with the number of modules done."""


@dataclass(frozen=True, slots=True)
class RankLimit:
    """The limit that an adapter is cut to; without one only negligible directions are left out."""

    rank: int | None = None
    """Largest rank of a module."""
    energy: float | None = None
    """Share of ‖ΔW‖² that each module keeps."""
    bytes: int | None = None
    """Size of all factors, shared out to where a rank keeps the most."""

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "bytes") if getattr(self, name) is not None]
        if len(given) > 1:
            named = " and ".join("budget" if name == "bytes" else name for name in given)
            raise ConfigError(
                f"{named}: only one of rank, energy and budget can limit an adapter. Leave out the others."
            )
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank {self.rank}: must be at least 1.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"energy {self.energy:g}: must be above 0 and at most 1, such as 0.99.")
        if self.bytes is not None and self.bytes < 1:
            raise ConfigError("budget: must be above 0, such as 20MB.")


@dataclass(frozen=True, slots=True)
class Shortened:
    """An adapter of lower rank, and what that cost."""

    adapter: LowRank
    error: float
    """‖left out‖ / ‖ΔW‖ over all modules, exact from the singular values."""
    rank_before: int
    bytes_before: int


def require_weights(weights: Mapping[str, float]) -> None:
    """Raises: ConfigError for a weight that is zero or no number."""
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ConfigError(f"{name}={weight}: the weight must be a number, such as 0.7 or -0.3.")
        if weight == 0.0:
            raise ConfigError(f"{name}=0: an adapter of weight 0 has no part in the sum. Leave it out.")


def exact_sum(parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """The weighted sum. Raises: AdapterError for different bases, and where the weighted changes cancel each other."""
    total = summed(parts)
    largest = max(abs(weight) * norm(part) for weight, part in parts)
    if norm(total) <= NEGLIGIBLE * largest and not any(change.any() for change in total.biases.values()):
        raise AdapterError(
            "adapters: their weighted changes cancel each other, so nothing but the base is left. Change a weight."
        )
    return total


def size_note(parts: Sequence[tuple[float, LowRank]], total: LowRank) -> str:
    """One line where the weights sum to more than 2, with the size of the change; empty otherwise."""
    weights = sum(abs(weight) for weight, _ in parts)
    if weights <= _LARGE_TOTAL:
        return ""
    ratio = norm(total) / max(norm(part) for _, part in parts)
    return (
        f"the weights sum to {weights:g}: ‖ΔW‖ is {ratio:.2f} times that of the largest part. So large a change may harm "
        "the base's answers: compare it before use"
    )


def shortened(adapter: LowRank, limit: RankLimit, progress: Progress = lambda _: None) -> Shortened:
    """The nearest adapter within the limit; factors from which nothing is left out stay as they are.

    Raises: ConfigError for a limit that leaves out nothing.
    """
    if limit.rank is not None and limit.rank >= adapter.rank:
        raise ConfigError(
            f"rank {limit.rank}: the adapter has rank {adapter.rank}, so there is nothing to cut. Leave it out."
        )
    if limit.bytes is not None and limit.bytes >= adapter.bytes:
        raise ConfigError(
            f"budget: {limit.bytes} bytes are given and the adapter takes {adapter.bytes}, so there is nothing to cut. "
            "Leave it out."
        )
    ranks = _ranks_of_budget(adapter, limit.bytes) if limit.bytes is not None else {}
    factors, lost, whole = {}, 0.0, 0.0
    for number, (module, each) in enumerate(adapter.factors.items(), 1):
        decomposed = core(each)
        rank = ranks.get(module, _rank(decomposed.sigma_K, limit))
        energy_K = decomposed.sigma_K.square()
        whole += float(energy_K.sum())
        if rank:
            factors[module] = _of_rank(each, decomposed, rank)
        if factors.get(module) is not each:
            lost += float(energy_K[rank:].sum())
        progress(number)
    if not factors and not adapter.biases:
        raise ConfigError("budget: is less than one rank of any module takes. Give more.")
    error = math.sqrt(lost / whole) if whole else 0.0
    return Shortened(replace(adapter, factors=factors), error, adapter.rank, adapter.bytes)


def distance(f: LowRank, g: LowRank) -> float:
    """‖ΔW_f - ΔW_g‖ over all modules, exact from singular values."""
    difference = summed([(1.0, f), (-1.0, g)])
    return math.sqrt(sum(float(spectrum(each).square().sum()) for each in difference.factors.values()))


def _of_rank(each: Factors, decomposed: Core, rank: int) -> Factors:
    return each if rank >= each.rank else cut(decomposed, rank)


def _rank(sigma_K: Tensor, limit: RankLimit) -> int:
    if limit.energy is not None:
        return energy_rank(sigma_K, limit.energy)
    kept = int((sigma_K > NEGLIGIBLE * sigma_K[0]).sum())
    return kept if limit.rank is None else min(kept, limit.rank)


def _ranks_of_budget(adapter: LowRank, budget: int) -> dict[str, int]:
    """Rank of each module that keeps the most within the bytes."""
    costs = {m: 4 * (each.A_RI.shape[1] + len(each.B_OR)) for m, each in adapter.factors.items()}
    spectra = {module: spectrum(each) for module, each in adapter.factors.items()}
    return allocated(spectra, costs, budget - 4 * sum(b.numel() for b in adapter.biases.values()))
