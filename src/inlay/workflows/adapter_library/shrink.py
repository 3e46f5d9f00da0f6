"""An adapter of fewer parameters: the smallest that keeps the gain, or one of a given size; stored in the library.

Shapes: B rows of a batch, L positions, R rank, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from inlay.adapters.compose import RankLimit, distance, shortened
from inlay.adapters.library import Entry, Library, require_name
from inlay.adapters.lowrank import LowRank, energy_rank, norm, state_of
from inlay.adapters.truncation import (
    Cores,
    activation_cores,
    budget_of,
    price,
    ranks_within,
    truncated,
    weight_cores,
)
from inlay.data.batches import micro_batches
from inlay.data.types import Example
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, ConfigError, InlayError, RunError
from inlay.evaluation.kept_gain import LEAST_ROWS, KeptGain, kept_gain
from inlay.evaluation.score import held_out
from inlay.methods.lora import lora_layers
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.add import described, origin_of, put
from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses
from inlay.workflows.adapter_library.one_adapter import LateParameters, OneAdapter, one_adapter
from inlay.workflows.adapter_library.ranks import KEEP, few_rows, keeps, require_share

CALIBRATION: Final = 0.25
"""Share of the rows that activations are measured on; the others judge."""
_MOST_CALIBRATION_ROWS: Final = 256
WEIGHTS: Final = "weights"
ACTIVATIONS: Final = "activations"


@dataclass(frozen=True, slots=True)
class ShrinkRequest:
    """Size, and the rows to judge by. One of rank, energy and keep; none is `keep` 0.98."""

    rank: int | None = None
    energy: float | None = None
    keep: float | None = None
    rows: str | None = None

    def require_usable(self) -> None:
        """Raises: ConfigError for values that cannot be used, or not together."""
        given = [f"--{name}" for name in ("rank", "energy", "keep") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)}: only one of them can say how small. Leave out the others.")
        RankLimit(self.rank, self.energy)
        if self.keep is not None:
            require_share(self.keep)

    @property
    def share(self) -> float:
        """Share of the gain to keep, where no size is given."""
        return KEEP if self.keep is None else self.keep


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The library's entry of the smaller adapter, and what it lost."""

    entry: Entry
    is_new: bool
    name: str
    """Of the adapter that was shrunk."""
    form: str
    """`weights` or `activations`: what the truncation is nearest in."""
    rank: int
    """Each module at this rank would have as many parameters."""
    ranks: tuple[int, int]
    """Least and largest rank of a module."""
    modules_left_out: int
    error: float
    """‖ΔW - ΔW'‖ / ‖ΔW‖."""
    parameters_before: int
    kept: KeptGain | None
    """None without rows."""
    other_form: KeptGain | None
    """What the form that was not kept would keep."""
    calibration_rows: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """The line of the entry in `inlay adapters list --json`, and the other fields."""
        return self.entry.to_json() | {
            "is_new": self.is_new, "shrunk_from": self.name, "form": self.form, "as_rank": self.rank,
            "ranks": list(self.ranks), "modules_left_out": self.modules_left_out, "error": self.error,
            "parameters_before": self.parameters_before, "kept": self.kept and self.kept.to_json(),
            "other_form": self.other_form and self.other_form.to_json(), "calibration_rows": self.calibration_rows,
            "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Candidate:
    form: str
    adapter: LowRank
    kept: KeptGain | None = None


def shrink(
    name: str, new_name: str, request: ShrinkRequest, library: Library, results: str, reporter: Reporter
) -> Shrunk:
    """The smaller adapter as a version of `new_name`. See `inlay.api.shrink_adapter`.

    Raises: InlayError where no lower rank keeps the gain; nothing is written then.
    """
    request.require_usable()
    require_name(new_name)
    one = one_adapter(name, library, results, reporter)
    _require_less(one, request)
    work = _Shrinking(one, request, reporter)
    rank, (best, *others) = work.smallest() if work.has_to_keep else work.of_size()
    made = best.adapter
    ranks = [each.rank for each in made.factors.values()]
    origin: JsonObject = origin_of(one.reference) | {
        "operation": _operation(best, rank), "verdict": None, "proofs": None,
        "parents": ({"identity": _identity(one), "name": one.name, "weight": 1.0},),
    }  # fmt: skip
    state = state_of(made, LateParameters(one.ready))
    stored = put(new_name, one.ready, state, library, origin, reporter, run=one.reference.run)
    return Shrunk(
        stored.entry, stored.is_new, one.name, best.form, rank, (min(ranks), max(ranks)),
        len(one.lowrank.factors) - len(ranks), distance(made, one.lowrank) / (norm(one.lowrank) or 1.0),
        one.lowrank.parameters, best.kept, others[0].kept if others else None, work.calibration_rows, tuple(work.notes),
    )  # fmt: skip


class _Shrinking:
    """The candidates of each size, measured as they are asked for."""

    def __init__(self, one: OneAdapter, request: ShrinkRequest, reporter: Reporter) -> None:
        self._one, self._request, self._reporter = one, request, reporter
        self.notes: list[str] = []
        self.calibration_rows = 0
        # what the adapter can do without at once: directions of no weight have no activations to be measured by
        self._adapter = shortened(one.lowrank, RankLimit()).adapter
        self._parameters = LateParameters(one.ready)
        self._cores: dict[str, Cores] = {WEIGHTS: weight_cores(self._adapter)}
        self._losses = self._rows()
        self.has_to_keep = request.rank is None and request.energy is None
        if self._losses is None:
            if self.has_to_keep:
                raise ConfigError(
                    f"--keep: {one.name} has no held-out rows here to measure the gain on. Give --rows FILE, or a size: "
                    "--rank R or --energy E."
                )
            self.notes.append("not measured: no rows. Give --rows FILE to have its loss compared")
            return
        self._calibrate(self._losses)
        if self.has_to_keep and (few := few_rows(len(self._losses.rows.examples))):
            raise ConfigError(f"--keep: {few} beside the {self.calibration_rows} that activations are measured on.")
        self._base_N, self._whole_N = self._losses.of("base", None), self._losses.of(one.name, one.state)

    def smallest(self) -> tuple[int, list[_Candidate]]:
        """(rank, forms, the better one first) of the least rank that keeps the gain, found by halving the interval."""
        self._require_gain()
        most = self._one.lowrank.rank - 1
        low, high = 1, most + 1
        found: dict[int, list[_Candidate]] = {}
        while low < high:
            rank = (low + high) // 2
            found[rank] = self._measured(budget_of(self._one.lowrank, rank), f"rank {rank}")
            if self._keeps(found[rank][0]):
                high = rank
            else:
                low = rank + 1
        if high > most:
            nearest = found[max(found)][0].kept if found else None
            shown = f": at rank {max(found)} it {nearest.text()}" if nearest is not None else ""
            raise InlayError(
                f"shrink: no rank below {self._one.lowrank.rank} keeps {self._request.share:.0%} of the gain by its "
                f"interval{shown}. Nothing was written. Ask for less (--keep), give more rows, or a size (--rank)."
            )
        return high, found[high]

    def of_size(self) -> tuple[int, list[_Candidate]]:
        """(rank, forms, the better one first) of the size that was asked for."""
        request, adapter = self._request, self._one.lowrank
        if request.rank is not None:
            rank, budget = request.rank, budget_of(adapter, request.rank)
        else:
            assert request.energy is not None
            sigmas = {module: each.sigma_K for module, each in self._cores[WEIGHTS].items()}
            budget = sum(
                price(each) * energy_rank(sigmas[module], request.energy)
                for module, each in self._adapter.factors.items()
            )
            if budget >= budget_of(adapter, adapter.rank):
                raise ConfigError(
                    f"--energy {request.energy:g}: takes every rank, so there is nothing to cut. Give less."
                )
            rank = next(r for r in range(1, adapter.rank + 1) if budget_of(adapter, r) >= budget)
        return rank, self._measured(budget, f"rank {rank}")

    def _measured(self, budget: int, named: str) -> list[_Candidate]:
        """The forms of a size, the one of lower loss first; the weights' alone without rows."""
        found = []
        for form, cores in self._cores.items():
            adapter = truncated(self._adapter, cores, ranks_within(self._adapter, cores, budget))
            if not adapter.factors:
                raise AdapterError(f"shrink: {named} leaves nothing of the adapter. Give a larger size.")
            if self._losses is None:
                return [_Candidate(form, adapter)]
            nll_N = self._losses.of(f"{named} by {form}", state_of(adapter, self._parameters))
            kept = kept_gain(self._base_N, self._whole_N, nll_N, self._losses.weight_N)
            found.append(_Candidate(form, adapter, kept))
        return sorted(found, key=lambda one: one.kept.other if one.kept else 0.0)

    def _keeps(self, found: _Candidate) -> bool:
        return found.kept is not None and keeps(found.kept, self._request.share)

    def _require_gain(self) -> None:
        assert self._losses is not None
        whole = kept_gain(self._base_N, self._whole_N, self._whole_N, self._losses.weight_N)
        if whole.share is None:
            raise InlayError(f"shrink: {whole.text()}, so there is no gain to keep. Nothing was written.")
        if whole.low is None:
            raise InlayError(
                f"shrink: the gain on these {whole.rows} rows may be nothing, so no share of it can be told. Nothing was "
                "written. Give more rows with --rows FILE, or a size: --rank R."
            )

    def _rows(self) -> HeldOutLosses | None:
        one, rows = self._one, self._request.rows
        if rows is None and one.reference.run is None:
            return None
        try:
            return HeldOutLosses(one.reference, rows, self._reporter, one.ready)
        except RunError:
            if rows is not None:
                raise
            return None

    def _calibrate(self, losses: HeldOutLosses) -> None:
        """Measures activations on some of the rows, which are then not judged on."""
        if len(losses.examples) <= LEAST_ROWS:
            self.notes.append(f"{len(losses.examples)} rows are too few to measure activations on some of them")
            return
        apart = losses.set_apart(CALIBRATION)[:_MOST_CALIBRATION_ROWS]
        self._reporter.stage(f"activations on {len(apart)} rows")
        grams = activation_grams(self._one.ready, self._adapter, apart, losses.limit, losses.config.eval.batch_size)
        self.calibration_rows = len(apart)
        if lacking := next((m for m in self._adapter.factors if m not in grams or not grams[m].any()), None):
            self.notes.append(f"by its weights alone: {lacking} has no activations on these rows")
            return
        self._cores[ACTIVATIONS] = activation_cores(self._adapter, grams)


def activation_grams(
    ready: OpenedBase, adapter: LowRank, examples: tuple[Example, ...], max_length: int, batch_size: int
) -> dict[str, Tensor]:
    """(R, R) mean of (A·x)(A·x)ᵀ over the tokens of the rows, by module; without those that have no A as a layer."""
    tokens = held_out(examples, ready.encoder, max_length, ready.data.overlong, ()).tokens
    model = ready.with_adapter(state_of(adapter, LateParameters(ready)))
    shares = micro_batches(range(len(tokens)), tokens.lengths, batch_size)
    with _products(model, adapter) as (grams, mask), torch.no_grad():
        for rows in batch_groups(model).apart(shares, tokens.lengths):
            batch = ready.task.batch(tokens, rows, ready.encoder.pad_id, ready.device)
            mask[:] = [batch.attention_mask.bool()]
            with autocast(ready.device, ready.autocast_dtype):
                ready.task.loss(model, batch)
    count = max(int(tokens.lengths.sum()), 1)
    return {module: gram / count for module, gram in grams.items()}


@contextlib.contextmanager
def _products(model: Any, adapter: LowRank) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
    """Inside, each forward pass adds to the sums of (A·x)(A·x)ᵀ, over the positions that the (B, L) mask has."""
    sums: dict[str, Tensor] = {}
    mask: list[Tensor] = []

    def summing(module: str, rank: int) -> Any:
        def hook(_layer: Any, _inputs: Any, output: Tensor) -> None:
            seen = output[mask[0]] if output.shape[:2] == mask[0].shape else output.reshape(-1, output.shape[-1])
            wide_TR = seen[..., :rank].double()  # PEFT fills up ranks with zeros where it cannot take unequal ones
            gram_RR = (wide_TR.T @ wide_TR).cpu()
            sums[module] = sums[module] + gram_RR if module in sums else gram_RR

        return hook

    handles = [
        down.register_forward_hook(summing(path, adapter.factors[path].rank))
        for path, layer in lora_layers(model)
        if path in adapter.factors
        for down in layer.lora_A.values()
    ]
    try:
        yield sums, mask
    finally:
        for handle in handles:
            handle.remove()


def _require_less(one: OneAdapter, request: ShrinkRequest) -> None:
    rank = one.lowrank.rank
    if request.rank is not None and request.rank >= rank:
        raise ConfigError(f"--rank {request.rank}: {one.name} has rank {rank}, so there is nothing to cut. Give less.")
    if rank < 2 and request.energy is None:
        raise ConfigError(f"{one.name}: has rank {rank}, so there is nothing to cut.")


def _identity(one: OneAdapter) -> str:
    entry = one.reference.entry
    return entry.card.identity if entry is not None else described(one.ready, one.state)[1].identity


def _operation(best: _Candidate, rank: int) -> str:
    kept = "" if best.kept is None or best.kept.share is None else f", keeps {best.kept.share:.1%} of the gain"
    return f"shrink to the size of rank {rank} by {best.form}{kept}"
