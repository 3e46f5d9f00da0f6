"""Two adapters beside each other: facts, weights, behaviour on the golden prompts, and answers on held-out rows.

Shapes: T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.adapters.differences import WeightDifference, weight_difference
from inlay.adapters.goldens import Golden, golden_prompts, goldens_of, read_goldens
from inlay.adapters.identity import WeightFacts
from inlay.adapters.library import Library
from inlay.adapters.lowrank import lowrank_of
from inlay.adapters.reference import Reference, config_of
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, RunError
from inlay.evaluation.compare import Comparison
from inlay.evaluation.score import read_held_out
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import LateBar, Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.add import origin_of
from inlay.workflows.adapter_library.logit_agreement import same_choices, summed_kl
from inlay.workflows.adapter_library.one_adapter import LateParameters, opened_adapter
from inlay.workflows.compare import compare_and_report, reports_folder
from inlay.workflows.measure import EvaluationRequest, measure_models

NOT_BEHAVIOUR = (
    "The cosine of weights is not similarity of behaviour: adapters with a cosine near 0 may answer alike, and near ones "
    "may answer differently."
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of both adapters, in words; empty where it is not known."""

    name: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.a != self.b


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Both models on the greedy answers of the first to the golden prompts."""

    prompts: int
    tokens: int
    """Of these answers."""
    kl: float
    """Mean KL(first‖second) of the next token, in nats."""
    same_choice: float
    """Share of the tokens at which both have the same first choice."""
    equal_answers: int
    """Prompts to which the second gives the same greedy answer."""

    def to_json(self) -> JsonObject:
        """Every figure."""
        return {
            "prompts": self.prompts, "tokens": self.tokens, "kl": self.kl, "same_choice": self.same_choice,
            "equal_answers": self.equal_answers,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdapterDifference:
    """All that two adapters were compared in."""

    a: str
    b: str
    facts: tuple[Fact, ...]
    settings: tuple[Fact, ...]
    """Keys of the configs that differ."""
    weights: WeightDifference | None
    behaviour: Behaviour | None
    reasons: tuple[str, ...] = ()
    """Reasons why weights or behaviour were not compared."""
    comparison: Comparison | None = None
    """Both on held-out rows, where that was asked for."""

    def to_json(self) -> JsonObject:
        """Every value."""
        return {
            "a": self.a, "b": self.b,
            "facts": {one.name: [one.a, one.b] for one in self.facts},
            "settings": {one.name: [one.a, one.b] for one in self.settings},
            "weights": self.weights and self.weights.to_json(),
            "behaviour": self.behaviour and self.behaviour.to_json(),
            "reasons": list(self.reasons),
            "comparison": self.comparison and self.comparison.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Side:
    reference: Reference
    ready: OpenedBase
    state: AdapterState

    @property
    def name(self) -> str:
        return self.reference.name


def difference(
    first: str, second: str, library: Library, results: str, reporter: Reporter, *, answers: bool, rows: str | None
) -> AdapterDifference:
    """Both adapters compared. See `inlay.api.diff_adapters`."""
    a = _Side(*opened_adapter(first, library, results, reporter))
    b = _Side(*opened_adapter(second, library, results, reporter, a.ready))
    reasons: list[str] = []
    comparison = None
    if answers:
        found = measure_models([a.reference, b.reference], EvaluationRequest(rows), reporter)
        comparison = compare_and_report(found, reports_folder(found, results))
    weights = behaviour = None
    try:
        _require_one_base(a, b)
        behaviour = _behaviour(a, b, reporter)
        weights = weight_difference(
            *(lowrank_of(s.state, s.ready.ref.digest(), LateParameters(s.ready)) for s in (a, b))
        )
    except AdapterError as error:
        what = "weights and behaviour" if behaviour is None else "weights"
        reasons.append(f"{what} are not compared: {str(error).removeprefix('adapter: ')}")
    return AdapterDifference(
        a.name, b.name, tuple(_facts(a, b)), tuple(_settings(a, b)), weights, behaviour, tuple(reasons), comparison
    )


def _require_one_base(a: _Side, b: _Side) -> None:
    digests = [side.ready.ref.digest() for side in (a, b)]
    if digests[0] != digests[1]:
        raise AdapterError(f"they are on different bases ({digests[0][:12]} and {digests[1][:12]}).")
    if a.ready.encoder.tokenizer_hash != b.ready.encoder.tokenizer_hash:
        raise AdapterError("they have different tokenizers.")


def _facts(a: _Side, b: _Side) -> Iterator[Fact]:
    both = [_facts_of(side) for side in (a, b)]
    for name in both[0]:
        texts = ["" if one[name] is None else str(one[name]) for one in both]
        if any(texts):
            yield Fact(name, texts[0], texts[1])


def _facts_of(side: _Side) -> Mapping[str, object]:
    digest = side.ready.ref.digest()
    weights, origin = WeightFacts.of(side.state, digest), origin_of(side.reference)
    entry, verdict = side.reference.entry, origin.get("verdict")
    return {
        "base": side.reference.base, "base digest": digest[:12], "method": weights.method, "rank": weights.rank,
        "modules": weights.modules, "parameters": f"{weights.parameters:,}", "run": origin.get("run"),
        "step": origin.get("step"), "seed": origin.get("seed"), "data hash": _short(origin.get("data_hash")),
        "operation": origin.get("operation"),
        "parents": ", ".join(f"{one.weight:g} of {one.name}" for one in origin.get("parents") or ()),
        "verdict": verdict and f"{verdict.verdict} by {verdict.metric} ({verdict.base:.4f} → {verdict.adapter:.4f})",
        "task": entry and entry.card.task, "licence": entry and entry.card.licence, "note": entry and entry.card.note,
    }  # fmt: skip


def _short(digest: object) -> str | None:
    return None if digest is None else str(digest)[:12]


def _settings(a: _Side, b: _Side) -> Iterator[Fact]:
    """Settings that differ, where both have a config of their training."""
    if any(side.reference.run is None and side.reference.entry is None for side in (a, b)):
        return
    both = [dict(_leaves(config_of(side.reference).model_dump(mode="json"))) for side in (a, b)]
    for name in sorted({*both[0], *both[1]}):
        texts = [str(one.get(name, "")) for one in both]
        if texts[0] != texts[1]:
            yield Fact(name, texts[0], texts[1])


def _leaves(tree: JsonObject, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _answers(side: _Side, reporter: Reporter) -> list[Golden]:
    """The golden answers of an adapter: stored ones, else computed now."""
    entry, run = side.reference.entry, side.reference.run
    if entry is not None and (stored := read_goldens(entry.folder)):
        return stored
    try:
        held_out = read_held_out(run.heldout) if run is not None else ()
    except RunError:  # gone, and the general texts remain
        held_out = ()
    prompts = golden_prompts(side.ready.encoder, held_out)
    reporter.stage(f"{side.name}: {len(prompts)} golden answers")
    with LateBar(reporter, len(prompts), "answer") as bar:
        return goldens_of(side.ready, side.ready.with_adapter(side.state), prompts, bar.reached)


@torch.no_grad()
def _behaviour(a: _Side, b: _Side, reporter: Reporter) -> Behaviour:
    answers = _answers(a, reporter)
    if not answers:
        raise AdapterError("no golden prompt fits the base.")
    of_a, of_b = ([_log_probabilities(side, golden) for golden in answers] for side in (a, b))
    pairs = list(zip(of_a, of_b, strict=True))
    agreed, kl = sum(same_choices(*pair) for pair in pairs), sum(summed_kl(*pair) for pair in pairs)
    # an answer whose every token is the second's first choice is its greedy answer
    equal = sum(tuple(q_TV.argmax(-1).tolist()) == one.ids for q_TV, one in zip(of_b, answers, strict=True))
    tokens = sum(len(one.ids) for one in answers)
    return Behaviour(len(answers), tokens, max(kl / tokens, 0.0), agreed / tokens, equal)


def _log_probabilities(side: _Side, golden: Golden) -> Tensor:
    """(T, V) log-probabilities at each token of an answer."""
    ready, model = side.ready, side.ready.with_adapter(side.state)
    ids = torch.tensor([[*golden.prompt_ids, *golden.ids]], device=ready.device)
    with autocast(ready.device, ready.autocast_dtype):
        logits_TV = model(input_ids=ids).logits[0]
    # counted from the end: virtual tokens of an adapter stand in front
    result: Tensor = logits_TV[-len(golden.ids) - 1 : -1].float().log_softmax(-1).cpu()
    return result
