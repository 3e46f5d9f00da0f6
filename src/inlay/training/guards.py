"""Conditions that stop a run when they fail: finite numbers, and a gradient that reaches every matrix.

After a number that is not finite `train.on_nonfinite` may have the run go on: `recover` skips the step or rolls back. The
decision is part of the checkpoint, so a run that is killed and resumed decides the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inlay.data.batches import epochs_done
from inlay.data.encoding.token_arrays import TokenSet
from inlay.errors import TrainingError
from inlay.methods.adapter import trained_parameters
from inlay.methods.method import TRAINED
from inlay.methods.table import adapters_on
from inlay.runs.record import Rollback
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Checkpoint
from inlay.training.job import AdapterJob
from inlay.training.process_group import ProcessGroup

_NAMED_ROWS = 16
SPIKE_WINDOW = 50
"""Earlier gradient norms that a norm is held against."""
_SPIKE_NEEDS, _SPIKE_DEVIATIONS = 20, 8.0

_RATE_AFTER_ROLLBACK = 0.5
"""Factor on the learning rate at each rollback."""


class NonFinite(TrainingError):
    """A loss, gradient, weight or optimizer state that is not finite, on every rank alike."""

    step: int

    def __init__(self, message: str, step: int, *, before_update: bool) -> None:
        super().__init__(message, step=step)
        self.before_update = before_update
        """The weights are still those of the step before."""


def require_finite(
    group: ProcessGroup, train: TokenSet, step: int, rows: Sequence[int], bad: Sequence[int], loss: float, norm: float
) -> None:
    """Raises: NonFinite naming the rows whose loss is not finite: `bad` on this rank."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    found = group.sum(torch.tensor([float(row in bad) for row in rows])).tolist()
    culprits = [row for row, flag in zip(rows, found, strict=True) if flag] or list(rows)
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm} (loss {loss:.4f})"
    raise NonFinite(
        f"step {step}: {what} on {named(train, culprits)}. Look at these rows, or lower train.learning_rate.",
        step,
        before_update=True,
    )


def require_gradient(
    step: int, loss: float, norm: float, *, base_loss: float | None, rate: float, vocabulary: int
) -> None:
    """Raises: TrainingError when the loss is above the base's and no gradient is left that could lower it."""
    if norm == 0 and base_loss is not None and loss > base_loss:
        raise TrainingError(
            f"step {step}: the loss is {loss:.4f}, above the base's {base_loss:.4f} (ln of its {vocabulary:,} tokens is "
            f"{math.log(vocabulary):.4f}), and its gradient is 0, so that no step can lower it again. train.learning_rate "
            f"{rate:g} is too high. Set it to auto, or lower it.",
            step=step,
        )


def require_finite_update(
    group: ProcessGroup, parameters: list[torch.nn.Parameter], optimizer: Optimizer, step: int
) -> None:
    """Raises: NonFinite when a step has left a weight or a number of the optimizer's state not finite on any rank."""
    held = [parameter.detach() for parameter in parameters]
    parts = {"a weight of the adapter": held, "the optimizer's state": _floats(optimizer.state)}
    # the largest magnitude: one fused pass, and it is NaN where one value is
    spoilt = [
        bool(tensors) and not math.isfinite(float(torch.nn.utils.get_total_norm(tensors, math.inf)))
        for tensors in parts.values()
    ]
    anywhere = group.sum(torch.tensor(spoilt, dtype=torch.float32)).tolist()  # one message for both
    for what, found in zip(parts, anywhere, strict=True):
        if found:
            raise NonFinite(
                f"step {step}: {what} is no longer finite. Lower train.learning_rate.", step, before_update=False
            )


def _floats(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state.detach().float()] if state.is_floating_point() and state.numel() else []
    return [tensor for inner in state.values() for tensor in _floats(inner)] if isinstance(state, Mapping) else []


def spike(norm: float, earlier: Sequence[float]) -> float | None:
    """Robust deviations of a gradient norm above the median of the earlier ones if it is a spike, else None.

    A spike is above 8 deviations and above twice the median. The first 20 norms are none: their spread is not known.

    The deviation is 1.4826 times the median absolute deviation, which equals the standard deviation of a normal.
    """
    if len(earlier) < _SPIKE_NEEDS:
        return None
    median = statistics.median(earlier)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in earlier)
    if norm <= 2 * median or norm - median <= _SPIKE_DEVIATIONS * deviation:
        return None
    return (norm - median) / max(deviation, 1e-3 * median)


def named(tokens: TokenSet, rows: Sequence[int]) -> str:
    """`rows data.jsonl:3, data.jsonl:8`."""
    shown = ", ".join(str(tokens.source(i)) for i in rows[:_NAMED_ROWS])
    return f"rows {shown}" + (f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else "")


def require_finite_base(loss: float, model: torch.nn.Module) -> None:
    """Raises: TrainingError when the base cannot even be measured, naming the weights at fault where there are any."""
    if math.isfinite(loss):
        return
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    spoilt = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    narrow = any(weight.dtype != torch.float32 for weight in weights.values())
    why = "Its dtype is too narrow for it" if narrow else "It overflows in float32 already"
    if spoilt:
        first = spoilt[0].removeprefix("base_model.model.").replace(".base_layer.", ".")
        why = f"{len(spoilt)} of its weights hold NaN or infinity, first {first}"
    way_out = "Try --set model.dtype=float32" if narrow else "Get the base again, or take another"
    raise TrainingError(f"before step 1: the base's own held-out loss is {loss}. {why}. {way_out}.", step=1)


@dataclass(frozen=True, slots=True)
class BeforeFirstStep:
    """Trained parameters that the first step must move, with a copy of their values."""

    parameters: dict[str, tuple[torch.nn.Parameter, Tensor]]
    what: str
    remedy: str

    @staticmethod
    def of(model: Any, name: str = TRAINED) -> BeforeFirstStep:
        part, what, remedy = adapters_on(model)[name].first_to_move
        trained = trained_parameters(model, name).items()
        found = {n: (p, p.detach().clone()) for n, p in trained if part in n and p.dim() > 1}
        assert found, "nothing is trained"
        return BeforeFirstStep(found, what, remedy)

    def require_moved(self) -> None:
        """Raises: TrainingError when the step has left one as it was."""
        still = [name for name, (parameter, old) in self.parameters.items() if torch.equal(parameter.detach(), old)]
        if still:
            raise TrainingError(
                f"after step 1 {len(still)} of {len(self.parameters)} {self.what} have not moved, first {still[0]}: "
                f"no gradient reaches them. {self.remedy}",
                step=1,
            )


def recover(job: AdapterJob, found: NonFinite, note: Callable[[str], None], save: Callable[[], None]) -> None:
    """Skips or rolls back as configured. Raises: `found`, or TrainingError once it has happened too often."""
    train, progress = job.config.train, job.progress
    if train.on_nonfinite == "stop":
        raise found
    before = len(progress.skipped) + len(progress.rollbacks)
    if before >= train.max_nonfinite:
        raise TrainingError(
            f"{found} It was passed over {before} times before, as often as train.max_nonfinite allows.",
            step=found.step,
        )
    job.optimizer.zero_grad(set_to_none=True)
    if train.on_nonfinite == "rollback":
        _roll_back(job, found, note, save)
    elif found.before_update:
        _skip(job, found, note)
    else:
        raise TrainingError(
            f"{found} Skipping a batch cannot heal it; train.on_nonfinite=rollback can.", step=found.step
        )


def _skip(job: AdapterJob, found: NonFinite, note: Callable[[str], None]) -> None:
    """The step counts and changes nothing."""
    progress, config = job.progress, job.config.train
    progress.step, progress.skipped = found.step, [*progress.skipped, found.step]
    epoch = epochs_done(progress.position(found.step), job.train.drawn, config.batch_size)
    progress.unfinished = {"step": found.step, "epoch": round(epoch, 4), "event": "skipped", "error": str(found)}
    note(f"skipped {found}")


def _roll_back(job: AdapterJob, found: NonFinite, note: Callable[[str], None], save: Callable[[], None]) -> None:
    """Back to the last checkpoint that was due, past the rows since, with a lower learning rate."""
    failed, folder = job.progress, job.run.checkpoints
    job.saver.wait()
    back = Checkpoint(folder / f"step-{failed.saved_step:06d}")
    if job.base.group.is_first:  # before the older one changes: whoever resumes in between comes here again
        for checkpoint in reversed(checkpoints.listed(folder)):
            if checkpoint.step > back.step:
                checkpoints.delete(checkpoint)
    job.base.group.barrier()
    job.restore(back)
    progress = job.progress
    progress.train_time_s = failed.train_time_s
    rollback = Rollback(
        step=back.step,
        failed_step=found.step,
        error=str(found),
        learning_rate_factor=failed.learning_rate_factor * _RATE_AFTER_ROLLBACK,
        batches_passed=(failed.position(back.step) + 1, failed.position(found.step)),
    )
    progress.rollbacks = [*failed.rollbacks, rollback]
    if job.base.group.is_first:  # first the lines: the checkpoint seals them
        job.run.truncate_metrics(back.step, progress.rollbacks)
    save()
    job.saver.wait()
    note(
        f"rolled back to step {back.step} with {progress.learning_rate_factor:g} of the learning rate, past the "
        f"{found.step - back.step} batches since: {found}"
    )
