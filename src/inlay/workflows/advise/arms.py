"""The ways to get better answers, each measured on the same rows with the same budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inlay.data.types import Example
from inlay.engine.loss import autocast
from inlay.evaluation.compare import compare_pair
from inlay.evaluation.score import EvalSet, Score, held_out, score
from inlay.evaluation.statistics import Difference
from inlay.generation.generate import Sampling, answers
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.advise.contexts import NONE, ORACLE, RETRIEVED, SHOTS, Budget, contexts
from inlay.workflows.advise.passages import Index, Passage

if TYPE_CHECKING:
    from inlay.config import Config
    from inlay.methods.state import AdapterState

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
        """Chosen with the reference answer in hand: no way that could be served."""
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
"""Those of the base first: the adapter is attached once."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one arm made of the rows."""

    arm: Arm
    rows: EvalSet
    score: Score
    prompt_tokens: float
    """Mean of a request."""
    answer_tokens: float
    """Mean of an answer."""
    latency_s: float
    """Median of requests answered one by one."""
    request_s: float
    """Machine time of a request where they are answered in batches."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The rows and what may stand before them: what all arms share."""

    examples: Sequence[Example]
    fixed: Sequence[Passage]
    index: Index
    budget: Budget
    config: Config


def measure(bench: Bench, ready: OpenedBase, adapter: AdapterState, reporter: Reporter) -> list[Measured]:
    """Every arm, in the order of ARMS."""
    return [
        _measured(arm, ready.with_adapter(adapter if arm.adapted else None), bench, ready, reporter) for arm in ARMS
    ]


def _measured(arm: Arm, model: Any, bench: Bench, ready: OpenedBase, reporter: Reporter) -> Measured:
    encoder, settings = ready.encoder, bench.config.eval
    shown = contexts(arm.context, bench.examples, bench.fixed, bench.index, bench.budget, encoder)
    rows = held_out(shown, encoder, ready.context_length, "error", ())
    scored = score(
        model, arm.name, rows, encoder, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens,
        device=ready.device, dtype=ready.autocast_dtype, reporter=reporter,
    )  # fmt: skip
    prompts = list(rows.asked.values())
    assert scored.speed is not None, "every row is asked"
    return Measured(
        arm, rows, scored, float(np.mean([len(p) for p in prompts])), scored.speed.tokens / len(prompts),
        _latency_s(model, prompts, settings.max_new_tokens, ready), scored.speed.time_s / len(prompts),
    )  # fmt: skip


def _latency_s(model: Any, prompts: Sequence[list[int]], max_new_tokens: int, ready: OpenedBase) -> float:
    picked = [prompts[n] for n in np.linspace(0, len(prompts) - 1, min(_TIMED, len(prompts))).astype(int)]
    times_s = []
    with autocast(ready.device, ready.autocast_dtype):
        for prompt in picked:
            began = time.perf_counter()
            answers(model, ready.encoder, [prompt], Sampling(max_new_tokens=max_new_tokens))
            times_s.append(time.perf_counter() - began)
    return float(np.median(times_s))


class Differences:
    """Every arm against every other, all by the same metrics; each pair is computed once."""

    def __init__(self, found: Sequence[Measured], config: Config) -> None:
        self._found = {one.arm.name: one for one in found}
        self._config = config
        self._rows = found[0].rows
        self._pairs: dict[tuple[str, str], Any] = {}

    def comparison(self, before: str, after: str) -> Any:
        """The `Comparison` of two arms."""
        if (before, after) not in self._pairs:
            sides = (self._found[name].score for name in (before, after))
            self._pairs[before, after] = compare_pair(
                self._rows, *sides, primary=self._config.eval.metric, resamples=self._config.eval.resamples,
                seed=self._config.train.seed, available=len(self._rows.examples),
            )  # fmt: skip
        return self._pairs[before, after]

    def __call__(self, before: str, after: str) -> Mapping[str, Difference]:
        """`after` minus `before`, by metric."""
        metrics: Mapping[str, Difference] = self.comparison(before, after).metrics
        return metrics
