"""The ways to get better answers, each measured on the same rows, with passages before the question within one budget."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from inlay.config import Config
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import pack
from inlay.data.types import Example
from inlay.engine.loss import autocast
from inlay.errors import DataError
from inlay.evaluation.compare import Comparison, compare_models
from inlay.evaluation.measured_model import MeasuredModel, ModelFacts, text_metrics
from inlay.evaluation.metrics import normalise
from inlay.evaluation.score import EvalSet, held_out, prompt_and_reference, score
from inlay.evaluation.verdict import Difference
from inlay.generation.request import Sampling
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.advise.passages import Index, Passage

NONE, SHOTS, RETRIEVED, ORACLE = "none", "few-shot", "retrieval", "oracle"
"""Passages before the question: none; the same training rows for every question; those that the question finds; those
that the reference answer finds."""
_RANKS: Final = 4
"""So many times the wanted passages are tried: one that does not fit gives way to the next."""
_LONG_ANSWERS: Final = 0.99
_TIMED: Final = 5
"""Requests that are answered one by one for the latency."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer."""

    name: str
    adapted: bool
    context: str

    @property
    def is_ceiling(self) -> bool:
        """True where the passages are chosen with the reference answer in hand, so that it could not be served."""
        return self.context == ORACLE


ARMS: Final = (
    Arm("base", False, NONE),
    Arm("base + few-shot", False, SHOTS),
    Arm("base + retrieval", False, RETRIEVED),
    Arm("base + oracle", False, ORACLE),
    Arm("adapter", True, NONE),
    Arm("adapter + retrieval", True, RETRIEVED),
    Arm("adapter + oracle", True, ORACLE),
)
"""The arms of the base come first, so that the adapter is attached once."""


@dataclass(frozen=True, slots=True)
class MeasuredArm:
    """One arm on the rows, with the time and the tokens that it takes."""

    arm: Arm
    prompts: EvalSet
    """The rows with the prompts of this arm."""
    model: MeasuredModel
    """Its losses and answers, on the rows of the first arm."""
    prompt_tokens: float
    """Mean tokens of a prompt."""
    answer_tokens: float
    """Mean tokens of an answer."""
    latency_s: float
    """Median seconds of requests answered one by one."""
    request_s: float
    """Machine time of a request where they are answered in batches."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The rows and the passages that may stand before them, the same for all arms."""

    examples: Sequence[Example]
    fixed: Sequence[Passage]
    index: Index
    budget: Budget
    config: Config


def measure_arms(bench: Bench, ready: OpenedBase, adapter: AdapterState, reporter: Reporter) -> list[MeasuredArm]:
    """Every arm, in the order of ARMS."""
    found: list[MeasuredArm] = []
    for arm in ARMS:
        model = ready.with_adapter(adapter if arm.adapted else None)
        found.append(_measure(arm, model, bench, ready, found[0].prompts if found else None, reporter))
    return found


def _measure(
    arm: Arm, model: Any, bench: Bench, ready: OpenedBase, first: EvalSet | None, reporter: Reporter
) -> MeasuredArm:
    encoder, settings = ready.encoder, bench.config.eval
    shown = contexts(arm.context, bench.examples, bench.fixed, bench.index, bench.budget, encoder)
    rows = held_out(shown, encoder, ready.context_length, "error", ())
    scored = score(
        model, arm.name, rows, encoder, ready.task, batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        device=ready.device, dtype=ready.autocast_dtype, reporter=reporter,
    )  # fmt: skip
    prompts = list(rows.prompt_ids.values())
    assert scored.speed is not None, "every row has a prompt"
    shared = first or rows
    facts = ModelFacts(arm.name, "adapter" if arm.adapted else "base", bench.config.model.base_model)
    return MeasuredArm(
        arm, rows, MeasuredModel.of(facts, shared, scored, text_metrics(shared)), float(np.mean([len(p) for p in prompts])), scored.speed.tokens / len(prompts),
        _latency_s(model, prompts, settings.max_new_tokens, ready), scored.speed.time_s / len(prompts),
    )  # fmt: skip


def _latency_s(model: Any, prompts: Sequence[list[int]], max_new_tokens: int, ready: OpenedBase) -> float:
    picked = [prompts[n] for n in np.linspace(0, len(prompts) - 1, min(_TIMED, len(prompts))).astype(int)]
    times_s = []
    with autocast(ready.device, ready.autocast_dtype):
        for prompt in picked:
            began = time.perf_counter()
            ready.task.answers(model, ready.encoder, [prompt], Sampling(max_new_tokens=max_new_tokens))
            times_s.append(time.perf_counter() - began)
    return float(np.median(times_s))


class Differences:
    """Every arm against every other, all by the same metrics; each pair is computed once."""

    def __init__(self, found: Sequence[MeasuredArm], config: Config) -> None:
        self._models = {one.arm.name: one.model for one in found}
        self._config = config
        self._pairs: dict[tuple[str, str], Comparison] = {}

    def comparison(self, before: str, after: str) -> Comparison:
        """The comparison of two arms."""
        if (before, after) not in self._pairs:
            base, other = (self._models[name] for name in (before, after))
            self._pairs[before, after] = compare_models(
                base, other, primary=self._config.eval.metric, resamples=self._config.eval.resamples,
                seed=self._config.train.seed, available=len(base.rows.examples),
            )  # fmt: skip
        return self._pairs[before, after]

    def __call__(self, before: str, after: str) -> Mapping[str, Difference]:
        """`after` minus `before`, by metric."""
        return self.comparison(before, after).metrics


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of every arm."""

    prompt_tokens: int
    passages: int
    """Most training rows or passages before one question."""


def has_prompt(example: Example) -> bool:
    """True where messages stand before the last trained answer; a plain document has none."""
    return example.messages[0].role != "text" and bool(example.prompt)


def last_answer_only(example: Example) -> Example:
    """The row up to its last trained answer, with no other turn trained."""
    before = example.prompt
    answer = example.messages[len(before)]
    return replace(example, messages=(*(replace(m, weight=0.0) for m in before), answer))


def answerable(
    examples: Iterable[Example], encoder: Encoder, context_length: int, prompt_tokens: int, max_new_tokens: int,
    passages: int,
) -> tuple[list[Example], Budget]:  # fmt: skip
    """(the rows that fit every arm, the budget): room is kept for an answer of `max_new_tokens`, and for all references
    but the longest hundredth, and up to half of the context. Raises: DataError where none fits."""
    kept = [last_answer_only(e) for e in examples if has_prompt(e)]
    if not kept:
        raise DataError("advise: no held-out row has a prompt, so no answers can be compared. See inlay eval.")
    prompts = np.array([prompt_length(e, encoder) for e in kept])
    whole = pack(encoder.examples(kept)).lengths
    answers = whole - prompts
    longest = min(int(np.quantile(answers, _LONG_ANSWERS, method="higher")), context_length // 2)
    room = context_length - max(longest, max_new_tokens)
    budget = Budget(min(prompt_tokens, room), passages)
    fitting = (prompts <= budget.prompt_tokens) & (answers <= context_length - budget.prompt_tokens)
    if not fitting.any():
        raise DataError(
            f"advise: no held-out row fits a prompt of {budget.prompt_tokens} tokens with an answer after it in a "
            f"context of {context_length}. Lower eval.max_new_tokens (now {max_new_tokens}), or raise advise.prompt_tokens."
        )
    return [example for example, fits in zip(kept, fitting, strict=True) if fits], budget


def prompt_length(example: Example, encoder: Encoder) -> int:
    """Tokens of the prompt."""
    return len(encoder.prompt(example.prompt, example.tools, example.switches))


def shots(passages: Sequence[Passage], left_out: Iterable[int], count: int, seed: int) -> list[Passage]:
    """The training rows that every question gets, drawn by seed, each with another answer as long as there are others."""
    skipped = set(left_out)
    order = [int(n) for n in np.random.default_rng([seed, 0x5407]).permutation(len(passages)) if n not in skipped]
    seen: set[str] = set()
    new: list[Passage] = []
    again: list[Passage] = []
    for n in order:
        answer = normalise(passages[n].turns[-1].content)
        (again if answer in seen else new).append(passages[n])
        seen.add(answer)
    return (new + again)[:count]


def found_for(example: Example, index: Index, count: int, by_answer: bool) -> list[Passage]:
    """The passages nearest to the last question, or with `by_answer` to the reference answer."""
    prompt, answer = prompt_and_reference(example)
    text = answer if by_answer else prompt
    return [index.passages[n] for n in index.nearest(text, count)]


def with_passages(example: Example, ranked: Sequence[Passage], budget: Budget, encoder: Encoder) -> Example:
    """The row with the first passages that fit the budget, the best nearest to the question."""
    shown: list[Passage] = []
    best = example
    for passage in ranked:
        if len(shown) == budget.passages:
            break
        longer = _placed(example, [*shown, passage])
        try:
            fits = prompt_length(longer, encoder) <= budget.prompt_tokens
        except DataError:  # the passage reads as a special token, or the template refuses it
            continue
        if fits:
            shown.append(passage)
            best = longer
    return best


def _placed(example: Example, shown: Sequence[Passage]) -> Example:
    """Training rows become turns after the system turn; text of documents stands in the question's own turn."""
    messages = example.messages
    head = next(n for n, m in enumerate(messages) if m.role != "system")
    turns = [turn for passage in reversed(shown) for turn in passage.turns]
    texts = [passage.text for passage in reversed(shown) if not passage.turns]
    place = len(example.prompt) - 1
    last = messages[place]
    if texts:
        last = replace(last, content="\n\n".join([*texts, last.content]))
    return replace(example, messages=(*messages[:head], *turns, *messages[head:place], last, *messages[place + 1 :]))


def contexts(
    kind: str, examples: Sequence[Example], fixed: Sequence[Passage], index: Index, budget: Budget, encoder: Encoder
) -> list[Example]:
    """Every row with the passages of this kind before its question; `fixed` are the rows of `SHOTS`."""
    if kind == NONE:
        return list(examples)
    count = budget.passages * _RANKS
    return [
        with_passages(e, fixed if kind == SHOTS else found_for(e, index, count, kind == ORACLE), budget, encoder)
        for e in examples
    ]
