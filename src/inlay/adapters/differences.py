"""Two adapters on one base compared by their weights, module by module, without either ΔW."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.adapters.lowrank import Factors, LowRank, core, inner, spectrum, summed
from inlay.typed_json import JsonObject

_NEGLIGIBLE = 1e-6
"""Share of the largest singular value from which a direction counts as one that a module writes to."""


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """The changes of one module by two adapters; a module that only one of them changes has a norm of 0 for the other."""

    module: str
    norm_a: float
    """‖ΔW‖ (Frobenius) of the first."""
    norm_b: float
    inner: float
    """⟨ΔW_a, ΔW_b⟩ (Frobenius)."""
    distance: float
    """‖ΔW_a - ΔW_b‖."""
    angle_degrees: float | None
    """Largest principal angle between the directions of output that the two write to; None where one writes to none."""

    @property
    def cosine(self) -> float | None:
        """Cosine of the two changes as vectors; None where one is zero."""
        return _cosine(self.inner, self.norm_a, self.norm_b)

    def to_json(self) -> JsonObject:
        """Every figure."""
        return {
            "module": self.module, "norm_a": self.norm_a, "norm_b": self.norm_b, "cosine": self.cosine,
            "distance": self.distance, "angle_degrees": self.angle_degrees,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """Figures of all modules together."""

    modules: tuple[ModuleDifference, ...]

    @property
    def norm_a(self) -> float:
        """‖ΔW‖ of the first."""
        return math.hypot(*(one.norm_a for one in self.modules))

    @property
    def norm_b(self) -> float:
        """‖ΔW‖ of the second."""
        return math.hypot(*(one.norm_b for one in self.modules))

    @property
    def distance(self) -> float:
        """‖ΔW_a - ΔW_b‖."""
        return math.hypot(*(one.distance for one in self.modules))

    @property
    def cosine(self) -> float | None:
        """Cosine of the two changes as vectors; None where one is zero."""
        return _cosine(math.fsum(one.inner for one in self.modules), self.norm_a, self.norm_b)

    def to_json(self) -> JsonObject:
        """The figures of all together, and of each module."""
        return {
            "norm_a": self.norm_a, "norm_b": self.norm_b, "cosine": self.cosine, "distance": self.distance,
            "modules": [one.to_json() for one in self.modules],
        }  # fmt: skip


def weight_difference(a: LowRank, b: LowRank) -> WeightDifference:
    """The modules that either adapter changes, by name. Raises: AdapterError for adapters on different bases."""
    difference = summed([(1.0, a), (-1.0, b)])
    return WeightDifference(
        tuple(
            _of_module(module, a.factors.get(module), b.factors.get(module), factors)
            for module, factors in difference.factors.items()
        )
    )


def _of_module(module: str, a: Factors | None, b: Factors | None, difference: Factors) -> ModuleDifference:
    norms = [0.0 if one is None else _norm(one) for one in (a, b)]
    both = 0.0 if a is None or b is None else inner(a, b)
    angle = None if a is None or b is None else largest_angle(a, b)
    return ModuleDifference(module, norms[0], norms[1], both, _norm(difference), angle)


def largest_angle(a: Factors, b: Factors) -> float | None:
    """Largest principal angle of the column spaces of two ΔW in degrees, over as many directions as the smaller one has."""
    spans = [_span(one) for one in (a, b)]
    if not all(span.shape[1] for span in spans):
        return None
    # of the smaller span, what lies outside the larger one: the sine is exact where the angle is small
    small_OK, large_OK = sorted(spans, key=lambda span: span.shape[1])
    outside_OK = small_OK - large_OK @ (large_OK.T @ small_OK)
    sine = float(torch.linalg.svdvals(outside_OK).max())
    return math.degrees(math.asin(min(sine, 1.0)))


def _span(factors: Factors) -> Tensor:
    decomposed = core(factors)
    sigma_K = decomposed.sigma_K
    return decomposed.left_OK[:, : int((sigma_K > _NEGLIGIBLE * sigma_K[0]).sum())]


def _norm(factors: Factors) -> float:
    return math.sqrt(float(spectrum(factors).square().sum()))


def _cosine(product: float, norm_a: float, norm_b: float) -> float | None:
    return None if not norm_a or not norm_b else min(max(product / (norm_a * norm_b), -1.0), 1.0)
