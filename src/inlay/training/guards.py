"""What must hold while training, or the run stops: finite numbers, and a gradient that reaches every matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.data.tokens import TokenSet
from inlay.errors import TrainingError
from inlay.training.world import World

_NAMED_ROWS = 16


def require_finite(
    world: World, train: TokenSet, step: int, rows: Sequence[int], bad: Sequence[int], loss: float, norm: float
) -> None:
    """Raises: TrainingError, on every rank alike, naming the rows whose loss is not finite: `bad` on this rank."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    found = world.sum(torch.tensor([float(row in bad) for row in rows])).tolist()
    culprits = [row for row, flag in zip(rows, found, strict=True) if flag] or list(rows)
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm} (loss {loss:.4f})"
    raise TrainingError(
        f"step {step}: {what} on {named(train, culprits)}. Look at these rows, or lower train.learning_rate."
    )


def named(tokens: TokenSet, rows: Sequence[int]) -> str:
    """`rows data.jsonl:3, data.jsonl:8`."""
    shown = ", ".join(str(tokens.sources[i]) for i in rows[:_NAMED_ROWS])
    return f"rows {shown}" + (f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else "")


def require_finite_base(loss: float) -> None:
    """Raises: TrainingError when the base cannot even be measured."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"before step 1: the base's own held-out loss is {loss}. Its weights or dtype are at fault; "
            "try --set model.dtype=float32."
        )


def adapter_outputs(model: Any) -> dict[str, tuple[torch.nn.Parameter, Tensor]]:
    """Every matrix B with a copy of its values."""
    named_parameters = model.named_parameters()
    return {n: (p, p.detach().clone()) for n, p in named_parameters if p.requires_grad and "lora_B" in n}


def require_moved(before: dict[str, tuple[torch.nn.Parameter, Tensor]]) -> None:
    """Raises: TrainingError when an optimizer step has left a matrix of `before` as it was."""
    still = [name for name, (parameter, old) in before.items() if torch.equal(parameter.detach(), old)]
    if still:
        raise TrainingError(
            f"after step 1 {len(still)} of {len(before)} adapter matrices B have not moved, first {still[0]}: "
            "no gradient reaches them. Leave them out of adapter.target_modules."
        )
