"""Held-out losses of many adapters over one base, which is opened once, on the same rows."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from inlay.adapters.reference import Reference, config_of, opened
from inlay.config import Config
from inlay.data.splits import by_content
from inlay.data.types import Example
from inlay.errors import DataError
from inlay.evaluation.metrics import Array
from inlay.evaluation.score import EvalSet, held_out, score
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.measure import examples_for


class HeldOutLosses:
    """Losses on the held-out rows of a model's run, or on the rows of a file. N rows."""

    def __init__(self, one: Reference, data: str | None, reporter: Reporter, base: OpenedBase | None = None) -> None:
        """`base` is used where it is given. Raises: ConfigError without rows to measure on, DataError where none fits."""
        self.reference, self._reporter = one, reporter
        self.config: Config = config_of(one)
        self.base = base or opened(one, self.config)
        self.examples: tuple[Example, ...]
        self.examples, self.available, self.data = examples_for(one.run, data, self.config, {})
        self.weight_N: Array = np.zeros(0)
        """Summed weight of the trained tokens of each row, once one model was measured."""

    @property
    def limit(self) -> int:
        """Longest row in tokens: `data.max_length` of the run, else the base's context."""
        return int(self.config.data.max_length) if self.reference.run else self.base.context_length

    def set_apart(self, share: float) -> tuple[Example, ...]:
        """That share of the rows, with whole groups of one prompt, which are not measured on from now on."""
        kept, apart = by_content(self.examples, share)
        every, self.examples = self.examples, tuple(self.examples[n] for n in kept)
        self.__dict__.pop("rows", None)
        return tuple(every[n] for n in apart)

    @cached_property
    def rows(self) -> EvalSet:
        """The rows of which `data.max_length` leaves something to score."""
        limit = self.limit
        found = held_out(self.examples, self.base.encoder, limit, self.config.data.overlong, ())
        kept = sorted(set(found.tokens.examples.tolist()))
        if not kept:
            raise DataError(f"{self.data}: no row fits {limit} tokens, so there is nothing to measure on.")
        if len(kept) == len(found.examples):
            return found
        return held_out([found.examples[n] for n in kept], self.base.encoder, limit, self.config.data.overlong, ())

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The prompt of each row: rows with one prompt belong together."""
        return [tuple(m.content for m in e.messages if m.role != "assistant") for e in self.rows.examples]

    def of(self, name: str, state: AdapterState | None, base: OpenedBase | None = None) -> Array:
        """(N,) summed nll of each row under an adapter, None for the bare base; `name` stands in the progress.

        `base` takes the place of the opened one: the same base in another form, with the same tokenizer.
        """
        ready = base or self.base
        found = score(
            ready.with_adapter(state), name, self.rows, self.base.encoder, ready.task,
            batch_size=self.config.eval.batch_size, max_new_tokens=1, device=ready.device, dtype=ready.autocast_dtype,
            reporter=self._reporter, generate=False,
        )  # fmt: skip
        self.weight_N = found.weight
        return found.nll

    def mean(self, nll_N: Array) -> float:
        """Nats per trained token of losses that `of` gave."""
        return float(nll_N.sum() / self.weight_N.sum())
