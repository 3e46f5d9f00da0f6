"""One form of export: its source, its limits, and the proof that its files hold the adapter's changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from inlay.adapters.flat import rank_class
from inlay.adapters.lowrank import BaseParameters, Factors, LowRank, padded, spectrum
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.errors import AdapterError
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from inlay.models.named_class import NamedClass

DTYPES: Final = {"float32": torch.float32, "float16": torch.float16}
LARGEST_ERROR: Final = {"float32": 1e-6, "float16": 2e-3}
"""‖written - ΔW‖ / ‖ΔW‖ of a module that an export may have; float16 has 11 bits, and A and B are both rounded."""


@dataclass(frozen=True, slots=True)
class ExportSource:
    """One adapter, with all that a form may need of it and of its base."""

    name: str
    """Name of its files, and of the adapter in a server."""
    state: AdapterState
    """As it was trained."""
    adapter: LowRank | None
    """As changes of modules; None where it has no such form."""
    fault: str
    """The reason where it has none, and what to do instead; else empty."""
    base: BaseRef
    architecture: Any
    """The base's transformers config."""
    encoder: Encoder
    generation: GenerationConfig
    named: NamedClass | None = None
    values: BaseParameters | None = None
    """The base's parameters; needed for biases alone."""
    dtype: str = "float32"
    as_trained: bool = False

    @property
    def lowrank(self) -> LowRank:
        """Its changes. Raises: AdapterError where it has none of low rank."""
        if self.adapter is None:
            raise AdapterError(self.fault)
        return self.adapter

    @property
    def rank(self) -> int:
        """The one rank of all modules in the export."""
        return rank_class(self.lowrank.rank)

    @property
    def family(self) -> str:
        """The base's model type, such as `llama`."""
        return str(self.architecture.model_type)

    def factors(self) -> dict[str, Factors]:
        """A and B of each module at one rank, in the dtype of the export; their scale is 1."""
        dtype, rank = DTYPES[self.dtype], self.rank
        return {
            module: Factors(*(half.to(dtype).contiguous() for half in padded(each, rank)))
            for module, each in sorted(self.lowrank.factors.items())
        }


class Limit(NamedTuple):
    """One thing that a program requires of an adapter."""

    name: str
    passed: bool | None
    """None where it is not known."""
    found: str


class ReadBack(NamedTuple):
    """The files of an export, read again and compared with the adapter."""

    modules: int
    error: float
    """The largest ‖written - ΔW‖ / ‖ΔW‖ of a module."""
    module: str
    """The module that has it."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of export."""

    program: str
    """The program that reads it."""
    limits: Callable[[ExportSource], list[Limit]]
    write: Callable[[ExportSource, Path], None]
    """Writes the files. Raises: AdapterError where a needed package is missing."""
    read_back: Callable[[ExportSource, Path], ReadBack]
    commands: Callable[[ExportSource, Path], list[str]]
    """Command lines that run the export from its folder."""
    not_checked: str
    """What this export does not prove, in a sentence or two."""


def method_limits(source: ExportSource) -> list[Limit]:
    """The limits that every LoRA format has: a change of low rank, and no biases beside it."""
    if source.adapter is None:
        return [Limit("method", False, source.fault)]
    biases = sorted(source.adapter.biases)
    merge = "`inlay adapters merge` keeps them in a whole model"
    return [
        Limit("method", True, f"LoRA on {len(source.adapter.factors)} modules"),
        Limit("biases", not biases, f"it trains biases ({biases[0]} …): {merge}" if biases else "none are trained"),
    ]


def embedding_limit(source: ExportSource) -> Limit:
    """Whether no embedding is adapted, nor a head that is tied to it."""
    if source.adapter is None:
        return Limit("embeddings", None, "not looked at")
    found = sorted(source.adapter.embeddings)
    if getattr(source.architecture, "tie_word_embeddings", False):
        found += [module for module in source.adapter.factors if module.endswith("lm_head")]
    way_out = "train without it, or `inlay adapters merge`"
    return Limit("embeddings", not found, f"{found[0]} is adapted: {way_out}" if found else "not adapted")


def family_limit(source: ExportSource, families: Mapping[str, object], program: str) -> Limit:
    """Whether the base is of a family whose names in that program are known and were compared."""
    if source.named is not None:
        return Limit("family", False, f"the base is a {source.named.name}, of which one part is trained. {_way_out()}")
    if source.family in families:
        return Limit("family", True, source.family)
    known = ", ".join(sorted(families))
    return Limit(
        "family", False, f"{source.family!r} is not among those compared with {program}: {known}. {_way_out()}"
    )


def _way_out() -> str:
    return "`inlay adapters merge` gives a whole model"


def compared(expected: Mapping[str, Factors], found: Mapping[str, Factors]) -> ReadBack:
    """The factors of all modules that were read against those of the adapter.

    Raises: AdapterError where a module is missing, or one is there that the adapter does not change.
    """
    if others := sorted(set(expected) ^ set(found)):
        place = "is missing in" if others[0] in expected else "is no module of the adapter, but in"
        raise AdapterError(f"export: {others[0]} {place} the written files. Nothing was kept; report this as a bug.")
    worst = ReadBack(len(expected), 0.0, "")
    for module, factors in expected.items():
        error = relative_error(factors, found[module])
        if not error <= worst.error:  # also NaN
            worst = ReadBack(len(expected), error, module)
    return worst


def relative_error(expected: Factors, found: Factors) -> float:
    """‖found - expected‖ / ‖expected‖ of ΔW (Frobenius), in float64; infinite where the shapes differ."""
    halves = [half.float() for half in found]
    if (halves[0].shape[1], len(halves[1])) != (expected.A_RI.shape[1], len(expected.B_OR)):
        return float("inf")
    if not all(half.isfinite().all() for half in halves):
        return float("inf")
    difference = Factors(torch.cat([expected.A_RI, halves[0]]), torch.cat([expected.B_OR, -halves[1]], 1))
    wrong, right = float(spectrum(difference).norm()), float(spectrum(expected).norm())
    return wrong / right if right else (float("inf") if wrong else 0.0)


def same_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> ReadBack:
    """Tensors that must be there again bit for bit; the error is 0, or infinite at the first that differs."""
    for name in sorted(set(expected) | set(found)):
        if name not in expected or name not in found or not torch.equal(expected[name], found[name]):
            return ReadBack(len(expected), float("inf"), name)
    return ReadBack(len(expected), 0.0, "")
