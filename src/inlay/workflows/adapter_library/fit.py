"""Weights of a sum of adapters, fitted to rows and judged on other rows.

The factors of all adapters are on the base once, as one adapter of the summed rank; the weights multiply its rank blocks
between A and B. So the gradient of the weights is exact, and nothing else is trained.

Shapes: K adapters, R summed rank of a module, N rows, S statistics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from inlay.adapters.lowrank import LowRank, state_of, summed
from inlay.data.batches import micro_batches
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.splits import by_content
from inlay.data.types import Example
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, DataError
from inlay.evaluation.metrics import LOSS_METRICS, Array
from inlay.evaluation.score import EvalSet, held_out
from inlay.evaluation.verdict import Difference, compare_scores, holm
from inlay.methods.lora import lora_layers
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject

LARGEST: Final = 2.0
"""Weights stay between minus this and this."""
MOST_EVALUATIONS: Final = 20
_LEVEL: Final = 0.95
LossAndGradient = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted weights, and the loss of the sum that they make against that of simpler choices."""

    weights: Mapping[str, float]
    fitted_rows: int
    judged_rows: int
    fit_loss: float
    """On the rows that the weights were fitted to."""
    rival_fit_losses: Mapping[str, float]
    """Of each simpler choice, on the same rows."""
    rivals: Mapping[str, Difference]
    """Fitted minus simpler choice, on the rows that the weights were not fitted to: `A alone`, `sum`, `mean`."""

    @property
    def adjusted_p(self) -> dict[str, float | None]:
        """Holm's p-values over the simpler choices."""
        return holm({name: difference.p for name, difference in self.rivals.items()})

    def verdict(self, rival: str) -> str:
        """better, worse or not distinguishable, after Holm's correction for the number of simpler choices."""
        found = self.rivals[rival].verdict
        p = self.adjusted_p[rival]
        return found if p is not None and p <= 1 - _LEVEL else "not distinguishable"

    def to_json(self) -> JsonObject:
        """The weights, the losses, and each difference."""
        adjusted = self.adjusted_p
        return {
            "weights": dict(self.weights), "fitted_rows": self.fitted_rows, "judged_rows": self.judged_rows,
            "fit_loss": self.fit_loss, "rival_fit_losses": dict(self.rival_fit_losses),
            "rivals": {name: one.to_json() | {"p_holm": adjusted[name], "verdict": self.verdict(name)}
                       for name, one in self.rivals.items()},
        }  # fmt: skip


def fit_weights(
    parts: Mapping[str, LowRank], ready: OpenedBase, examples: Sequence[Example], max_length: int, batch_size: int,
    resamples: int, seed: int, reporter: Reporter,
) -> Fit:  # fmt: skip
    """The weights in [-2, 2] of the least loss on one half of the rows, judged on the other half.

    Rows with the same prompt are all in one half. Raises: DataError for too few rows; AdapterError for adapters whose
    change is not between an A and a B of linear layers.
    """
    _require_linear(parts)
    halves = [_encoded(ready, half, max_length) for half in _halves(examples)]
    count = len(parts)
    simple = {f"{name} alone": row for name, row in zip(parts, torch.eye(count).double(), strict=True)}
    if count > 1:
        simple |= {"sum": torch.ones(count).double(), "mean": torch.full((count,), 1 / count).double()}
    model = ready.with_adapter(state_of(summed([(1.0, part) for part in parts.values()])))
    with weighted_blocks(model, list(parts.values())) as set_weights:
        objective = Objective(model, ready, halves[0].tokens, batch_size, set_weights)
        reporter.stage(f"fitting {count} weights on {len(halves[0].examples)} rows")
        reporter.start(len(simple) + MOST_EVALUATIONS, 0, "evaluation")
        try:
            before, best, weights_K = least_loss(
                objective, simple, lambda done, loss: reporter.progress(done, {"loss": loss})
            )
        finally:
            reporter.end()
        reporter.stage(f"judging the fitted weights on {len(halves[1].examples)} other rows")
        fitted = _statistics(model, ready, halves[1], batch_size, set_weights, weights_K)
        pairs = {
            name: (_statistics(model, ready, halves[1], batch_size, set_weights, row), fitted, LOSS_METRICS["loss"])
            for name, row in simple.items()
        }
    found = compare_scores(pairs, resamples=resamples, seed=seed, level=_LEVEL)
    weights = dict(zip(parts, weights_K.tolist(), strict=True))
    return Fit(weights, len(halves[0].examples), len(halves[1].examples), best, before, found)


class Objective:
    """Loss of the weighted sum over all rows, and its gradient in the weights."""

    def __init__(
        self, model: Any, ready: OpenedBase, tokens: TokenSet, batch_size: int, set_weights: Callable[[Tensor], None]
    ) -> None:
        self._model, self._ready, self._tokens, self._set = model, ready, tokens, set_weights
        shares = micro_batches(range(len(tokens)), tokens.lengths, batch_size)
        self._shares = list(batch_groups(model).apart(shares, tokens.lengths))

    def __call__(self, weights_K: Tensor) -> tuple[float, Tensor]:
        """(loss a trained token, (K,) its gradient), summed over batches before the one division."""
        ready, total, size = self._ready, 0.0, 0.0
        leaf_K = weights_K.detach().clone().requires_grad_(True)
        self._set(leaf_K)
        for rows in self._shares:
            batch = ready.task.batch(self._tokens, rows, ready.encoder.pad_id, ready.device)
            with torch.enable_grad(), autocast(ready.device, ready.autocast_dtype):
                found = ready.task.loss(self._model, batch)
            found.sum_B.sum().backward()  # type: ignore[no-untyped-call]
            total += float(found.sum_B.detach().double().sum())
            size += float(found.weight_B.double().sum())
        assert leaf_K.grad is not None
        return total / size, leaf_K.grad / size


def least_loss(
    objective: LossAndGradient, simple: Mapping[str, Tensor], progress: Callable[[int, float], None]
) -> tuple[dict[str, float], float, Tensor]:
    """(loss of each simple choice, least loss found, its weights), by L-BFGS from the best simple choice.

    The best of all evaluated weights is kept, so no simple choice has a lower loss.
    """
    before = {}
    for name, row in simple.items():
        before[name] = objective(row)[0]
        progress(len(before), before[name])
    start = min(before, key=lambda name: before[name])
    best: tuple[float, Tensor] = (before[start], simple[start])
    # w = 2 sin(u): inside the box for every u, and no bound needs a special case
    angle_K = (simple[start] / LARGEST).clamp(-1, 1).asin().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [angle_K], lr=1.0, max_iter=MOST_EVALUATIONS, max_eval=MOST_EVALUATIONS, line_search_fn="strong_wolfe",
        tolerance_grad=1e-7, tolerance_change=1e-9,
    )  # fmt: skip
    done = len(before)

    def closure() -> Tensor:
        nonlocal best, done
        weights_K = LARGEST * angle_K.detach().sin()
        loss, gradient_K = objective(weights_K)
        angle_K.grad = gradient_K.to(angle_K) * LARGEST * angle_K.detach().cos()
        best = min(best, (loss, weights_K), key=lambda one: one[0])
        done += 1
        progress(min(done, len(before) + MOST_EVALUATIONS), loss)
        return torch.tensor(loss, dtype=torch.float64)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return before, best[0], best[1]


@contextlib.contextmanager
def weighted_blocks(peft_model: Any, parts: Sequence[LowRank]) -> Iterator[Callable[[Tensor], None]]:
    """Inside, each adapter's block of the summed adapter on the model is multiplied by its weight.

    Gives a function that sets the (K,) weights.
    """
    held: list[Tensor] = []

    def scaled(parts_R: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            return output * held[0].to(output)[parts_R.to(output.device)]

        return hook

    handles = []
    for path, layer in lora_layers(peft_model):
        parts_R = torch.cat([torch.full((part.factors[path].rank,), n)
                             for n, part in enumerate(parts) if path in part.factors])  # fmt: skip
        for down in layer.lora_A.values():
            # PEFT fills up ranks with zeros where it cannot take unequal ones
            padded_R = torch.nn.functional.pad(parts_R, (0, len(down.weight) - len(parts_R)))
            handles.append(down.register_forward_hook(scaled(padded_R)))

    def set_weights(weights_K: Tensor) -> None:
        held[:] = [weights_K]

    set_weights(torch.ones(len(parts)))
    try:
        yield set_weights
    finally:
        for handle in handles:
            handle.remove()


def _require_linear(parts: Mapping[str, LowRank]) -> None:
    for name, part in parts.items():
        if part.embeddings or part.biases or part.weight_targets:
            # PEFT never calls the layers of a weight that it is given by target_parameters
            router = f"the weight of {min(part.weight_targets)}" if part.weight_targets else ""
            what = "an embedding" if part.embeddings else "biases" if part.biases else router
            raise AdapterError(
                f"{name}: changes {what}, for which weights cannot be fitted. Give the weights yourself."
            )


def _halves(examples: Sequence[Example]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(rows to fit, rows to judge)"""
    fit, judge = by_content(examples, 0.5) if len(examples) > 1 else ([], [])
    if not fit or not judge:
        raise DataError(f"--fit: {len(examples)} rows with one prompt cannot be cut into two halves. Give more rows.")
    return tuple(examples[n] for n in fit), tuple(examples[n] for n in judge)


def _encoded(ready: OpenedBase, examples: Sequence[Example], max_length: int) -> EvalSet:
    """The rows of which something is left to score. Raises: DataError where there are none."""
    found = held_out(examples, ready.encoder, max_length, ready.data.overlong, ())
    kept = set(found.tokens.examples.tolist())
    if not kept:
        raise DataError(f"--fit: all rows of one half are longer than {max_length} tokens. Give shorter rows.")
    if len(kept) == len(examples):
        return found
    left = tuple(example for n, example in enumerate(examples) if n in kept)
    return held_out(left, ready.encoder, max_length, ready.data.overlong, ())


def _statistics(
    model: Any,
    ready: OpenedBase,
    rows: EvalSet,
    batch_size: int,
    set_weights: Callable[[Tensor], None],
    weights_K: Tensor,
) -> Array:
    """(N, S) summed loss and weight of each row."""
    set_weights(weights_K)
    shares = micro_batches(range(len(rows.tokens)), rows.tokens.lengths, batch_size)
    shares = batch_groups(model).apart(shares, rows.tokens.lengths)
    found = ready.task.score_rows(
        model, rows.tokens, shares, ready.encoder.pad_id, ready.device, ready.autocast_dtype
    ).numpy()  # fmt: skip
    totals = np.zeros((len(rows.examples), 2))
    np.add.at(totals, rows.tokens.examples, found.T)
    return totals
