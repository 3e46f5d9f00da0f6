"""Rank that an adapter uses: singular values of its changes, and the held-out loss at lower ranks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from inlay.adapters.library import Library
from inlay.adapters.lowrank import LowRank, energy_rank, state_of
from inlay.adapters.truncation import Cores, halved_ranks, truncated, weight_cores
from inlay.errors import ConfigError, RunError
from inlay.evaluation.kept_gain import LEAST_ROWS, KeptGain, kept_gain
from inlay.runs.reporter import Reporter
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses
from inlay.workflows.adapter_library.one_adapter import LateParameters, one_adapter

ENERGIES: Final = (0.9, 0.95, 0.99)
"""Shares of ‖ΔW‖² that ranks are given for."""
KEEP: Final = 0.98
"""Share of the gain that a lower rank must keep."""
_LAYER: Final = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ModuleSpectrum:
    """Singular values of the change of one module."""

    module: str
    rank: int
    """Stored rank."""
    sigma: tuple[float, ...]
    energy_ranks: tuple[int, ...]
    """Least rank that keeps each of `ENERGIES`."""

    @property
    def norm(self) -> float:
        """‖ΔW‖ (Frobenius)."""
        return math.sqrt(math.fsum(one * one for one in self.sigma))

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖² / σ₁², 0 for ΔW = 0."""
        return (self.norm / self.sigma[0]) ** 2 if self.sigma and self.sigma[0] else 0.0

    def to_json(self) -> JsonObject:
        """Ranks, norm and all singular values."""
        return {
            "module": self.module, "rank": self.rank, "norm": self.norm, "stable_rank": self.stable_rank,
            **{f"energy_{share * 100:.0f}": rank for share, rank in zip(ENERGIES, self.energy_ranks, strict=True)},
            "sigma": list(self.sigma),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RankLoss:
    """The adapter with every module cut to one rank."""

    rank: int
    error: float
    """‖left out‖ / ‖ΔW‖ over all modules."""
    kept: KeptGain

    def to_json(self) -> JsonObject:
        """Rank, error, loss, and share of the gain."""
        return {"rank": self.rank, "error": self.error, **self.kept.to_json()}


@dataclass(frozen=True, slots=True)
class RankEvidence:
    """Spectra of an adapter and, where there are rows, its truncation curve."""

    name: str
    rank: int
    modules: tuple[ModuleSpectrum, ...]
    keep: float
    curve: tuple[RankLoss, ...] = ()
    """From the stored rank down to 1; empty without rows."""
    rows: int = 0
    data: str = ""
    """File of the rows."""
    no_curve: str = ""
    """Reason why there is no curve."""

    @property
    def recommended(self) -> int | None:
        """Least measured rank from which on the lower end of the interval is at least `keep`; None where none is known."""
        kept = None
        for one in self.curve:
            if not keeps(one.kept, self.keep):
                break
            kept = one.rank
        return kept

    def to_json(self) -> JsonObject:
        """Every value."""
        return {
            "name": self.name, "rank": self.rank, "keep": self.keep, "recommended": self.recommended, "rows": self.rows,
            "data": self.data, "no_curve": self.no_curve, "curve": [one.to_json() for one in self.curve],
            "modules": [one.to_json() for one in self.modules],
        }  # fmt: skip


def place_of(module: str) -> tuple[int | None, str]:
    """(number of its layer, None outside them; its kind, such as `q_proj`)"""
    found = _LAYER.search(module)
    return (int(found.group(1)) if found else None), module.rpartition(".")[2]


def keeps(found: KeptGain, share: float) -> bool:
    """Whether at least that share of the gain is kept, by the lower end of the interval."""
    return found.low is not None and found.low >= share - 1e-6


def rank_evidence(
    name: str, rows: str | None, keep: float, library: Library, results: str, reporter: Reporter
) -> RankEvidence:
    """Spectrum and truncation curve of an adapter. See `inlay.api.rank_adapter`."""
    require_share(keep)
    one = one_adapter(name, library, results, reporter)
    cores = weight_cores(one.lowrank)
    spectra = tuple(_spectrum(module, one.lowrank, cores) for module in sorted(cores))
    evidence = RankEvidence(one.name, one.lowrank.rank, spectra, keep)
    if rows is None and one.reference.run is None:
        reason = "no rows: its run is not here. Give rows of its task with --rows FILE for the loss at each rank"
        return replace(evidence, no_curve=reason)
    try:
        losses = HeldOutLosses(one.reference, rows, reporter, one.ready)
    except RunError as error:
        if rows is not None:
            raise
        return replace(evidence, no_curve=str(error))
    return _with_curve(evidence, one.lowrank, cores, losses, reporter)


def require_share(keep: float) -> None:
    """Raises: ConfigError for what is no share."""
    if not 0.0 < keep < 1.0:
        raise ConfigError(f"--keep {keep:g}: must be a share of the gain between 0 and 1, such as 0.98.")


def few_rows(count: int) -> str:
    """One line where so few rows give no interval, else empty."""
    return "" if count >= LEAST_ROWS else f"{count} rows give no interval: at least {LEAST_ROWS} are needed"


def relative_error(cores: Cores, ranks: dict[str, int]) -> float:
    """‖left out‖ / ‖ΔW‖ over all modules with each cut to its rank, exact from the singular values."""
    whole = math.fsum(float(each.sigma_K.square().sum()) for each in cores.values())
    lost = math.fsum(float(each.sigma_K[ranks[module] :].square().sum()) for module, each in cores.items())
    return math.sqrt(lost / whole) if whole else 0.0


def _with_curve(
    evidence: RankEvidence, adapter: LowRank, cores: Cores, losses: HeldOutLosses, reporter: Reporter
) -> RankEvidence:
    ranks = halved_ranks(evidence.rank)
    count = len(losses.rows.examples)
    reporter.stage(f"held-out loss at {len(ranks)} ranks on {count} rows")
    base_N = losses.of("base", None)
    parameters = LateParameters(losses.base)
    curve: list[RankLoss] = []
    whole_N = None
    for rank in ranks:
        cut_to = {module: min(rank, each.rank) for module, each in adapter.factors.items()}
        nll_N = losses.of(f"rank {rank}", state_of(truncated(adapter, cores, cut_to), parameters))
        whole_N = nll_N if whole_N is None else whole_N
        kept = kept_gain(base_N, whole_N, nll_N, losses.weight_N)
        curve.append(RankLoss(rank, relative_error(cores, cut_to), kept))
    return replace(evidence, curve=tuple(curve), rows=count, data=losses.data)


def _spectrum(module: str, adapter: LowRank, cores: Cores) -> ModuleSpectrum:
    sigma_K: Tensor = cores[module].sigma_K
    return ModuleSpectrum(
        module, adapter.factors[module].rank, tuple(sigma_K.tolist()),
        tuple(energy_rank(sigma_K, share) for share in ENERGIES),
    )  # fmt: skip


def advice(evidence: RankEvidence) -> str:
    """The recommended rank in one sentence, or the reason why there is none."""
    rank = evidence.recommended
    if not evidence.curve:
        return evidence.no_curve
    whole = evidence.curve[0].kept
    if whole.share is None:
        return f"{whole.text()}: there is no result to keep"
    if whole.low is None:
        return few_rows(evidence.rows) or "the gain is too uncertain on these rows to say what keeps it"
    if rank is None or rank == evidence.rank:
        return f"no lower rank of these keeps {evidence.keep:.0%} of the gain by its interval"
    return (
        f"this adapter keeps its result at rank {rank}; training at rank {rank} may or may not reach it: "
        f"inlay train --set adapter.rank={rank}"
    )
