"""The ways to get better answers, each measured on the same rows with the same budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inlay.config import Config
from inlay.data.types import Example
from inlay.engine.loss import autocast
from inlay.evaluation.compare import compare_models
from inlay.evaluation.comparison import Comparison
from inlay.evaluation.measured_model import MeasuredModel, ModelFacts
from inlay.evaluation.row_statistics import text_metrics
from inlay.evaluation.score import EvalSet, held_out, score
from inlay.evaluation.verdict import Difference
from inlay.generation.generate import Sampling
from inlay.methods.state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.advise.contexts import NONE, ORACLE, RETRIEVED, SHOTS, Budget, contexts
from inlay.workflows.advise.passages import Index, Passage

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
