"""A weighted sum of adapters, stored in the library as an adapter of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inlay.adapters.compose import RankLimit, Shortened, distance, exact_sum, require_weights, shortened, size_note
from inlay.adapters.library import Entry, Library, require_name
from inlay.adapters.lossy_merges import lossy_merge
from inlay.adapters.lowrank import LowRank, lowrank_of, norm, parameters_of, state_of
from inlay.adapters.reference import config_of, opened, reference
from inlay.data.reading.read import read_examples
from inlay.errors import AdapterError, ConfigError
from inlay.runs.reporter import LateBar, Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.add import described, put
from inlay.workflows.adapter_library.fit import Fit, fit_weights
from inlay.workflows.adapter_library.one_adapter import LateParameters

_NO_WEIGHT = 1e-3
"""A fitted weight below this has no part in the sum."""


@dataclass(frozen=True, slots=True)
class ComposeRequest:
    """Parts with their weights, and how they are put together."""

    weights: Mapping[str, float | None]
    """By the name of a run, a checkpoint, a folder, or a library adapter; None where it is to be fitted."""
    limit: RankLimit = field(default_factory=RankLimit)
    lossy: str | None = None
    """A name of `LOSSY_MERGES` in place of the exact sum."""
    density: float | None = None
    """Share of entries that a lossy merge keeps; None is 0.2."""
    fit: str | None = None
    """File of rows that the weights are fitted to."""
    blocks: int = 1
    """Blocks of layers that have fitted weights of their own."""
    seed: int = 0

    def require_usable(self) -> None:
        """Raises: ConfigError for parts, weights or options that cannot take effect together."""
        if not self.weights:
            raise ConfigError("compose: no adapter is named. Name one or more with their weights: A=0.7 B=0.3.")
        given = {name: weight for name, weight in self.weights.items() if weight is not None}
        require_weights(given)
        if self.fit is not None and given:
            raise ConfigError(f"--fit: finds the weights itself. Name the adapters alone: {' '.join(self.weights)}.")
        if self.fit is None and len(given) < len(self.weights):
            name = next(name for name, weight in self.weights.items() if weight is None)
            raise ConfigError(f"{name}: has no weight. Write {name}=0.7, or have all weights fitted: --fit ROWS.")
        if self.fit is None and self.blocks != 1:
            raise ConfigError("--blocks: weights of blocks of layers are fitted. Add --fit ROWS.")
        if self.fit is not None and self.lossy is not None:
            raise ConfigError(f"--as {self.lossy}: weights are fitted to the exact sum. Leave out --fit or --as.")
        if self.density is not None and self.lossy is None:
            raise ConfigError("--density: only a lossy merge drops entries. Add --as ties_svd or --as dare_svd.")


@dataclass(frozen=True, slots=True)
class Composed:
    """The library's entry of the sum, and what it is made of."""

    entry: Entry
    is_new: bool
    weights: Mapping[str, float]
    """Of each part; the mean of its weights where blocks of layers have their own."""
    error: float
    """‖ΔW - exact sum‖ / ‖exact sum‖."""
    lossy: str | None
    rank_before: int
    """Of the stacked factors."""
    bytes_before: int
    notes: tuple[str, ...] = ()
    fit: Fit | None = None

    def to_json(self) -> JsonObject:
        """The line of the entry in `inlay adapters list --json`, and the other fields."""
        return self.entry.to_json() | {
            "is_new": self.is_new, "weights": dict(self.weights), "error": self.error, "lossy": self.lossy,
            "rank_before": self.rank_before, "bytes_before": self.bytes_before, "notes": list(self.notes),
            "fit": None if self.fit is None else self.fit.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Part:
    """One adapter by itself."""

    name: str
    identity: str
    lowrank: LowRank
    encoding: tuple[str, str]
    """Digests of tokenizer and chat template."""
    precision: str
    """Dtype or quantization of the base that it was made over."""


def compose(request: ComposeRequest, name: str, library: Library, results: str, reporter: Reporter) -> Composed:
    """The sum of the adapters as a version of `name`. See `inlay.api.compose_adapters`."""
    request.require_usable()
    require_name(name)
    ready, parts = _opened_parts(list(request.weights), library, results, reporter)
    notes = _notes_on_differences(parts)
    weights, fit = {key: weight for key, weight in request.weights.items() if weight is not None}, None
    weighted = [(weight, parts[key].lowrank) for key, weight in weights.items()]
    if request.fit is not None:
        fit = _fitted(request, ready, parts, library, results, reporter)
        kept = {key: row for key, row in fit.weights.items() if max(map(abs, row)) >= _NO_WEIGHT}
        if not kept:
            raise AdapterError("--fit: all fitted weights are 0: the base alone has the least loss on these rows.")
        notes += [f"{key}: its fitted weight is 0, so it is left out" for key in fit.weights if key not in kept]
        weights = {key: sum(row) / len(row) for key, row in kept.items()}
        if fit.blocks.count == 1:
            weighted = [(weight, parts[key].lowrank) for key, weight in weights.items()]
        else:
            weighted = [(1.0, fit.blocks.scaled(parts[key].lowrank, row)) for key, row in kept.items()]
    total = exact_sum(weighted)
    if note := size_note(weighted, total):
        notes.append(note)
    short = _put_together(request, weighted, total, reporter)
    base = parameters_of(ready.model) if short.adapter.biases else None
    origin: JsonObject = {
        "operation": _operation(request),
        "parents": tuple({"identity": parts[key].identity, "name": parts[key].name, "weight": weight}
                         for key, weight in weights.items()),
    }  # fmt: skip
    stored = put(name, ready, state_of(short.adapter, base), library, origin, reporter)
    return Composed(
        stored.entry, stored.is_new, weights, short.error, request.lossy, short.rank_before, short.bytes_before,
        tuple(notes), fit,
    )  # fmt: skip


def _opened_parts(
    names: Sequence[str], library: Library, results: str, reporter: Reporter
) -> tuple[OpenedBase, dict[str, _Part]]:
    """(the base of the first part, every part). Raises: AdapterError for a model that is no adapter."""
    first: OpenedBase | None = None
    before: OpenedBase | None = None
    parts: dict[str, _Part] = {}
    for key in names:
        one = reference(key, results, reporter.note, library)
        ready = opened(one, config_of(one), before)
        state = one.adapter(ready.ref)
        if state is None:
            raise AdapterError(f"{key}: is a whole model, not an adapter. Only adapters on one base have a sum.")
        if one.caution:
            reporter.note(one.caution)
        first, before = first or ready, ready
        try:
            lowrank = lowrank_of(state, ready.ref.digest(), LateParameters(ready))
        except AdapterError as error:
            raise AdapterError(f"{key}: {str(error).removeprefix('adapter: ')}") from None
        _require_one_base(parts, key, lowrank)
        encoder = ready.encoder
        identity = one.entry.card.identity if one.entry is not None else described(ready, state)[1].identity
        parts[key] = _Part(one.name, identity, lowrank, (encoder.tokenizer_hash, encoder.template_hash),
                           _precision(ready))  # fmt: skip
    assert first is not None
    return first, parts


def _precision(ready: OpenedBase) -> str:
    precision = ready.precision
    return str(precision.dtype).removeprefix("torch.") if precision.quantization == "none" else precision.quantization


def _require_one_base(parts: Mapping[str, _Part], key: str, adapter: LowRank) -> None:
    for first, part in parts.items():
        if part.lowrank.base != adapter.base:
            raise AdapterError(
                f"{key}: is on another base ({adapter.base[:12]}) than {first} ({part.lowrank.base[:12]}): their changes "
                "have no sum. Train both on one base."
            )


def _notes_on_differences(parts: Mapping[str, _Part]) -> list[str]:
    (name, first), *others = parts.items()
    notes = []
    for key, part in others:
        if part.encoding != first.encoding:
            notes.append(
                f"{key} was made with another tokenizer or chat template than {name}: the sum is stored with those of "
                f"{name}, which {key} has not seen"
            )
        if part.precision != first.precision:
            notes.append(
                f"{key} was made over a base in {part.precision}, {name} in {first.precision}: the sum is stored for "
                f"{first.precision}"
            )
    return notes


def _fitted(
    request: ComposeRequest, ready: OpenedBase, parts: Mapping[str, _Part], library: Library, results: str,
    reporter: Reporter,
) -> Fit:  # fmt: skip
    config = config_of(reference(next(iter(parts)), results, library=library))
    assert request.fit is not None
    examples = read_examples(request.fit).examples
    limit = config.data.max_length if isinstance(config.data.max_length, int) else ready.context_length
    lowranks = {key: part.lowrank for key, part in parts.items()}
    return fit_weights(
        lowranks, ready, examples, limit, config.eval.batch_size, config.eval.resamples, request.seed, reporter,
        request.blocks,
    )  # fmt: skip


def _put_together(
    request: ComposeRequest, weighted: Sequence[tuple[float, LowRank]], total: LowRank, reporter: Reporter
) -> Shortened:
    """The exact sum or the lossy merge within the limit, with its distance to the exact sum."""
    reporter.stage(f"{len(total.factors)} modules: {request.lossy or 'the sum'}")
    with LateBar(reporter, len(total.factors), "module") as bar:
        if request.lossy is None:
            return shortened(total, request.limit, bar.reached)
        rank = request.limit.rank
        if rank is not None and rank > total.rank:
            raise ConfigError(f"rank {rank}: the exact sum has rank {total.rank}. Give at most that, or leave it out.")
        density = 0.2 if request.density is None else request.density
        merged = lossy_merge(request.lossy, weighted, density, rank, request.seed, bar.reached)
    short = shortened(merged, RankLimit() if rank is not None else request.limit)
    return replace(
        short, error=distance(short.adapter, total) / norm(total), rank_before=total.rank, bytes_before=total.bytes
    )


def _operation(request: ComposeRequest) -> str:
    limit = request.limit
    how = [
        f"as {request.lossy} of density {0.2 if request.density is None else request.density:g}"
        if request.lossy
        else "",
        f"rank {limit.rank}" if limit.rank is not None else "",
        f"energy {limit.energy:g}" if limit.energy is not None else "",
        f"budget {limit.bytes} bytes" if limit.bytes is not None else "",
        "fitted weights" if request.fit is not None else "",
        f"in {request.blocks} blocks of layers" if request.blocks > 1 else "",
    ]
    return ", ".join(["compose", *(part for part in how if part)])
