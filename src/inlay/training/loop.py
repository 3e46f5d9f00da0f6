"""The loop. Every variation of training is a function that it calls.

A step sums the weighted loss over all its rows, on all ranks, and divides once by their whole weight.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from inlay.config import Config
from inlay.data.batches import collate, micro_batches, step_rows
from inlay.data.tokens import TokenSet
from inlay.engine.loss import autocast, score_rows, weighted_nll
from inlay.errors import Interrupted, TrainingError
from inlay.events import Reporter
from inlay.models.adapter import AdapterState, base_view
from inlay.run import Run
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Progress
from inlay.training.schedule import learning_rate
from inlay.training.signals import StopRequest
from inlay.training.trackers import Tracker
from inlay.training.world import World

_LOSS_SCALE = 1024.0  # of float16, whose small gradients would vanish


@dataclass
class Job:
    """One adapter being trained over a frozen base."""

    config: Config
    run: Run
    model: Any
    """PeftModel; its trainable parameters are the adapter."""
    parameters: list[torch.nn.Parameter]
    optimizer: Optimizer
    train: TokenSet
    heldout: TokenSet
    pad_id: int
    device: str
    micro_batch_size: int
    peak_learning_rate: float
    total_steps: int
    eval_every: int
    save_every: int
    autocast_dtype: torch.dtype | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def loss_scale(self) -> float:
        return _LOSS_SCALE if self.autocast_dtype == torch.float16 else 1.0


def run_job(job: Job, world: World, stop: StopRequest, reporter: Reporter, trackers: list[Tracker]) -> None:
    """Trains until the last step, an early stop, or a signal; progress, metrics and checkpoints are in `job.run`.

    Raises: TrainingError on a non-finite loss or gradient, naming its rows; Interrupted after a signal, with a
    checkpoint of the last whole step on the disk.
    """
    progress = job.progress
    lengths, row_weights = job.train.lengths, job.train.row_weights()
    reporter.start(job.total_steps, progress.step, "step")
    try:
        if progress.step == 0 and progress.base_eval_loss is None:
            _evaluate_base(job, world)
        while progress.step < job.total_steps and not progress.stopped_early:
            _one_step(job, world, stop, reporter, trackers, lengths, row_weights)
    finally:
        reporter.end()


def _one_step(
    job: Job,
    world: World,
    stop: StopRequest,
    reporter: Reporter,
    trackers: list[Tracker],
    lengths: np.ndarray,
    row_weights: np.ndarray,
) -> None:
    config, progress = job.config.train, job.progress
    began, rng = time.perf_counter(), checkpoints.rng_state()
    step = progress.step + 1
    rows = step_rows(step, config.seed, len(job.train), config.batch_size)
    shares = micro_batches(rows, lengths, job.micro_batch_size, world.rank, world.size)
    loss = accumulate(job, shares, float(row_weights[rows].sum()), stop)
    if world.any(stop.signal is not None):
        _save_and_leave(job, world, rng, stop.signal or 15)
    world.sum(loss)
    world.sum_gradients(job.parameters)
    norm = torch.nn.utils.clip_grad_norm_(job.parameters, config.max_grad_norm)
    _require_finite(job, step, rows, float(loss), float(norm))
    rate = learning_rate(config, job.peak_learning_rate, step, job.total_steps)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    before = _adapter_outputs(job) if step == 1 else {}
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    _require_moved(before)
    progress.step, progress.train_loss = step, float(loss)
    progress.tokens_seen += int(lengths[rows].sum())
    took = time.perf_counter() - began
    progress.train_time_s += took
    values = {
        "step": step,
        "epoch": round(step * config.batch_size / len(job.train), 4),
        "loss": float(loss),
        "learning_rate": rate,
        "grad_norm": float(norm),
        "tokens_per_s": float(lengths[rows].sum() / took),
        "memory_bytes": float(memory_bytes(job.device)),
        "time_s": round(progress.train_time_s, 3),
    }
    evaluated = _evaluate_if_due(job, world, step)
    if world.is_first:
        if step % config.log_steps == 0 or evaluated or step == job.total_steps:
            job.run.log_metrics(values | evaluated)
            for tracker in trackers:
                tracker.log(step, values | evaluated)
        shown = {"loss": values["loss"], "eval": progress.eval_loss, "lr": rate, "norm": values["grad_norm"]}
        shown |= {"tok/s": values["tokens_per_s"], "memory": values["memory_bytes"]}
        reporter.progress(step, {k: v for k, v in shown.items() if v is not None})
    _save_if_due(job, world, step, improved=evaluated.get("best", False))


def accumulate(job: Job, shares: list[list[int]], step_weight: float, stop: StopRequest) -> Tensor:
    """Leaves the gradient of this rank's rows in the parameters and returns their part of the step's mean loss."""
    total = torch.zeros((), device=job.device)
    for rows in shares:
        if stop.signal is not None:
            break
        batch = collate(job.train, rows, job.pad_id).to(job.device)
        with autocast(job.device, job.autocast_dtype):
            nll_B, _ = weighted_nll(job.model, batch)
        loss = nll_B.sum() / step_weight
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {job.progress.step + 1}: loss is {float(loss)} on {_named(job, rows)}. "
                "Look at these rows, or lower train.learning_rate."
            )
        (loss * job.loss_scale).backward()
        total += loss.detach()
    if job.loss_scale != 1.0:
        for parameter in job.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(job.loss_scale)
    return total


def heldout_nll(job: Job, world: World) -> tuple[np.ndarray, np.ndarray]:
    """(N,) summed nll in nats and (N,) weight of each held-out sequence, computed by all ranks together."""
    rows = range(len(job.heldout))
    shares = micro_batches(rows, job.heldout.lengths, job.config.eval.batch_size, world.rank, world.size)
    scores = score_rows(job.model, job.heldout, shares, job.pad_id, job.device, job.autocast_dtype)
    nll, weight = world.sum(scores if job.device == "mps" else scores.to(job.device)).cpu().numpy()
    return nll, weight


def _evaluate_base(job: Job, world: World) -> None:
    with base_view(job.model):
        nll, weight = heldout_nll(job, world)
    loss = float(nll.sum() / weight.sum())
    if not math.isfinite(loss):
        raise TrainingError(
            f"before step 1: the base's own held-out loss is {loss}. Its weights or dtype are at fault; "
            "try --set model.dtype=float32."
        )
    job.progress.base_eval_loss = loss
    if world.is_first:
        job.run.log_metrics({"step": 0, "eval_loss": loss})


def _evaluate_if_due(job: Job, world: World, step: int) -> dict[str, Any]:
    if step % job.eval_every and step != job.total_steps:
        return {}
    nll, weight = heldout_nll(job, world)
    progress, loss = job.progress, float(nll.sum() / weight.sum())
    if not math.isfinite(loss):
        raise TrainingError(f"step {step}: held-out loss is {loss}. Lower train.learning_rate.")
    progress.eval_loss = loss
    best = progress.best_eval_loss is None or loss < progress.best_eval_loss
    if best:
        progress.best_eval_loss, progress.best_step, progress.evals_without_gain = loss, step, 0
    else:
        progress.evals_without_gain += 1
    patience = job.config.train.early_stopping_patience
    progress.stopped_early = patience is not None and progress.evals_without_gain >= patience
    return {"eval_loss": loss, "best": best}


def _save_if_due(job: Job, world: World, step: int, *, improved: bool) -> None:
    if step % job.save_every and not improved and step != job.total_steps and not job.progress.stopped_early:
        return
    if world.is_first:
        save_checkpoint(job, checkpoints.rng_state())
    world.barrier()


def save_checkpoint(job: Job, rng: dict[str, Tensor]) -> None:
    """Writes the checkpoint of the last whole step and forgets those that retention does not keep."""
    state = AdapterState.of(job.model)
    checkpoints.write(job.run.checkpoints, state, job.optimizer, job.progress, rng)
    checkpoints.prune(job.run.checkpoints, job.config.train.keep_checkpoints, job.progress.best_step)


def _save_and_leave(job: Job, world: World, rng: dict[str, Tensor], signal_number: int) -> None:
    job.optimizer.zero_grad(set_to_none=True)
    step = job.progress.step
    if world.is_first and step > 0:
        save_checkpoint(job, rng)
    world.barrier()
    kept = f"checkpoint of step {step} saved" if step else "nothing was trained yet"
    raise Interrupted(f"interrupted at step {step + 1} of {job.total_steps}; {kept}.", signal_number)


def _require_finite(job: Job, step: int, rows: list[int], loss: float, norm: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"step {step}: loss {loss}, gradient norm {norm} on {_named(job, rows)}. "
            "Lower train.learning_rate, or look at these rows."
        )


def _adapter_outputs(job: Job) -> dict[str, tuple[torch.nn.Parameter, Tensor]]:
    named = job.model.named_parameters()
    return {n: (p, p.detach().clone()) for n, p in named if p.requires_grad and "lora_B" in n}


def _require_moved(before: dict[str, tuple[torch.nn.Parameter, Tensor]]) -> None:
    still = [name for name, (parameter, old) in before.items() if torch.equal(parameter.detach(), old)]
    if still:
        raise TrainingError(
            f"after step 1 {len(still)} of {len(before)} adapter matrices B have not moved, first {still[0]}: "
            "no gradient reaches them. Leave them out of adapter.target_modules."
        )


def _named(job: Job, rows: list[int]) -> str:
    return "rows " + ", ".join(str(job.train.sources[i]) for i in rows)


def memory_bytes(device: str) -> int:
    """Peak memory of this process: on the device where it has its own, else resident."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
