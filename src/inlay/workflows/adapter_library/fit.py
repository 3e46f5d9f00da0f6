"""Weights of a sum of adapters, fitted to rows and judged on other rows.

The factors of all adapters are on the base once, as one adapter of the summed rank; the weights multiply its rank blocks
between A and B. So the gradient of the weights is exact, and nothing else is trained. Blocks of layers may have weights of
their own.

Shapes: K adapters, C weights (K for each block of layers), R summed rank of a module, N rows, S statistics.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from inlay.adapters.lowrank import Factors, LowRank, state_of, summed
from inlay.data.batches import micro_batches
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.splits import by_content
from inlay.data.types import Example
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, ConfigError, DataError
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
_LAYER: Final = re.compile(r"\.(\d+)\.")
LossAndGradient = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True, slots=True)
class LayerBlocks:
    """The layers of a decoder in blocks of consecutive ones, each with weights of its own."""

    count: int = 1
    layers: int = 1

    @staticmethod
    def of(parts: Iterable[LowRank], count: int) -> LayerBlocks:
        """So many blocks of the layers that the adapters change. Raises: ConfigError for more blocks than layers."""
        numbers = [int(found[1]) for part in parts for module in part.factors if (found := _LAYER.search(module))]
        layers = 1 + max(numbers, default=0)
        if not 1 <= count <= layers:
            raise ConfigError(f"--blocks {count}: the adapters change {layers} layers. Give 1 to {layers} blocks.")
        return LayerBlocks(count, layers)

    def of_module(self, module: str) -> int:
        """The block of a module, from 0; the last one for what lies behind the layers."""
        found = _LAYER.search(module)
        return self.count - 1 if found is None else min(int(found[1]) * self.count // self.layers, self.count - 1)

    def scaled(self, part: LowRank, weights: Sequence[float]) -> LowRank:
        """The adapter with each block multiplied by its weight."""
        factors = {
            module: Factors(each.A_RI, each.B_OR * weights[self.of_module(module)])
            for module, each in part.factors.items()
        }
        return replace(part, factors=factors)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted weights, and the loss of the sum that they make against that of simpler choices."""

    weights: Mapping[str, tuple[float, ...]]
    """Of each adapter, one for each block of layers."""
    blocks: LayerBlocks
    fitted_rows: int
    judged_rows: int
    fit_loss: float
    """On the rows that the weights were fitted to."""
    rival_fit_losses: Mapping[str, float]
    """Of each simpler choice, on the same rows."""
    rivals: Mapping[str, Difference]
    """Fitted minus simpler choice, on the rows that the weights were not fitted to: `A alone`, `sum`, `mean`, and where
    blocks have weights of their own, `fitted, same in all layers`."""

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
            "weights": {name: row[0] if self.blocks.count == 1 else list(row) for name, row in self.weights.items()},
            "fitted_rows": self.fitted_rows, "judged_rows": self.judged_rows,
            "fit_loss": self.fit_loss, "rival_fit_losses": dict(self.rival_fit_losses),
            "rivals": {name: one.to_json() | {"p_holm": adjusted[name], "verdict": self.verdict(name)}
                       for name, one in self.rivals.items()},
        }  # fmt: skip


def fit_weights(
    parts: Mapping[str, LowRank], ready: OpenedBase, examples: Sequence[Example], max_length: int, batch_size: int,
    resamples: int, seed: int, reporter: Reporter, block_count: int = 1,
) -> Fit:  # fmt: skip
    """The weights in [-2, 2] of the least loss on one half of the rows, judged on the other half.

    Several blocks of layers begin with the weights that are best when all layers share them. Rows with the same prompt are
    all in one half. Raises: DataError for too few rows; ConfigError for more blocks than layers; AdapterError for adapters
    whose change is not between an A and a B of linear layers.
    """
    _require_linear(parts)
    blocks = LayerBlocks.of(parts.values(), block_count)
    halves = [_encoded(ready, half, max_length) for half in _halves(examples)]
    count = len(parts)
    simple = {f"{name} alone": row for name, row in zip(parts, torch.eye(count).double(), strict=True)}
    if count > 1:
        simple |= {"sum": torch.ones(count).double(), "mean": torch.full((count,), 1 / count).double()}
    model = ready.with_adapter(state_of(summed([(1.0, part) for part in parts.values()])))
    with weighted_blocks(model, list(parts.values()), blocks) as set_weights:
        objective = Objective(model, ready, halves[0].tokens, batch_size, set_weights)
        rows = f"{len(halves[0].examples)} rows"
        before, best, weights_C = _shown(
            _same_in_all(objective, blocks), simple, f"fitting {count} weights on {rows}", reporter
        )
        if blocks.count > 1:
            simple |= {"fitted, same in all layers": weights_C}
            start = {"fitted, same in all layers": weights_C.repeat(blocks.count)}
            stage = f"fitting {count} weights for each of {blocks.count} blocks of layers on {rows}"
            shared, best, weights_C = _shown(objective, start, stage, reporter)
            before |= shared
        reporter.stage(f"judging the fitted weights on {len(halves[1].examples)} other rows")
        fitted = _statistics(model, ready, halves[1], batch_size, set_weights, weights_C)
        pairs = {
            name: (_statistics(model, ready, halves[1], batch_size, set_weights, row.repeat(blocks.count)), fitted,
                   LOSS_METRICS["loss"])
            for name, row in simple.items()
        }  # fmt: skip
    found = compare_scores(pairs, resamples=resamples, seed=seed, level=_LEVEL)
    weights = dict(zip(parts, map(tuple, weights_C.view(blocks.count, count).T.tolist()), strict=True))
    return Fit(weights, blocks, len(halves[0].examples), len(halves[1].examples), best, before, found)


def _shown(
    objective: LossAndGradient, simple: Mapping[str, Tensor], stage: str, reporter: Reporter
) -> tuple[dict[str, float], float, Tensor]:
    """`least_loss` under a bar."""
    reporter.stage(stage)
    reporter.start(len(simple) + MOST_EVALUATIONS, 0, "evaluation")
    try:
        return least_loss(objective, simple, lambda done, loss: reporter.progress(done, {"loss": loss}))
    finally:
        reporter.end()


def _same_in_all(objective: LossAndGradient, blocks: LayerBlocks) -> LossAndGradient:
    """The objective of K weights that all blocks share."""

    def shared(weights_K: Tensor) -> tuple[float, Tensor]:
        loss, gradient_C = objective(weights_K.repeat(blocks.count))
        return loss, gradient_C.view(blocks.count, -1).sum(0)

    return shared


class Objective:
    """Loss of the weighted sum over all rows, and its gradient in the weights."""

    def __init__(
        self, model: Any, ready: OpenedBase, tokens: TokenSet, batch_size: int, set_weights: Callable[[Tensor], None]
    ) -> None:
        self._model, self._ready, self._tokens, self._set = model, ready, tokens, set_weights
        shares = micro_batches(range(len(tokens)), tokens.lengths, batch_size)
        self._shares = list(batch_groups(model).apart(shares, tokens.lengths))

    def __call__(self, weights_C: Tensor) -> tuple[float, Tensor]:
        """(loss a trained token, (C,) its gradient), summed over batches before the one division."""
        ready, total, size = self._ready, 0.0, 0.0
        leaf_C = weights_C.detach().clone().requires_grad_(True)
        self._set(leaf_C)
        for rows in self._shares:
            batch = ready.task.batch(self._tokens, rows, ready.encoder.pad_id, ready.device)
            with torch.enable_grad(), autocast(ready.device, ready.autocast_dtype):
                found = ready.task.loss(self._model, batch)
            found.sum_B.sum().backward()  # type: ignore[no-untyped-call]
            total += float(found.sum_B.detach().double().sum())
            size += float(found.weight_B.double().sum())
        assert leaf_C.grad is not None
        return total / size, leaf_C.grad / size


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
def weighted_blocks(
    peft_model: Any, parts: Sequence[LowRank], blocks: LayerBlocks = LayerBlocks()
) -> Iterator[Callable[[Tensor], None]]:
    """Inside, each adapter's block of the summed adapter on the model is multiplied by its weight.

    Gives a function that sets the (C,) weights: those of all adapters in the first block of layers, then in the next.
    """
    held: list[Tensor] = []

    def scaled(parts_R: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            return output * held[0].to(output)[parts_R.to(output.device)]

        return hook

    handles = []
    for path, layer in lora_layers(peft_model):
        first = blocks.of_module(path) * len(parts)
        parts_R = torch.cat([torch.full((part.factors[path].rank,), first + n)
                             for n, part in enumerate(parts) if path in part.factors])  # fmt: skip
        for down in layer.lora_A.values():
            # PEFT fills up ranks with zeros where it cannot take unequal ones
            padded_R = torch.nn.functional.pad(parts_R, (0, len(down.weight) - len(parts_R)))
            handles.append(down.register_forward_hook(scaled(padded_R)))

    def set_weights(weights_C: Tensor) -> None:
        held[:] = [weights_C]

    set_weights(torch.ones(len(parts) * blocks.count))
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
    weights_C: Tensor,
) -> Array:
    """(N, S) summed loss and weight of each row."""
    set_weights(weights_C)
    shares = micro_batches(range(len(rows.tokens)), rows.tokens.lengths, batch_size)
    shares = batch_groups(model).apart(shares, rows.tokens.lengths)
    found = ready.task.score_rows(
        model, rows.tokens, shares, ready.encoder.pad_id, ready.device, ready.autocast_dtype
    ).numpy()  # fmt: skip
    totals = np.zeros((len(rows.examples), 2))
    np.add.at(totals, rows.tokens.examples, found.T)
    return totals
