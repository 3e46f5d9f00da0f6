"""The rows of a step that a rank computes, and their gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inlay.data.batches import Batch, assign_to_ranks, micro_batches, split_across_ranks
from inlay.engine.memory import trim_allocator
from inlay.engine.profile import timed
from inlay.tasks.task import task_of
from inlay.training.job import AdapterJob
from inlay.training.process_group import share_size
from inlay.training.signals import StopRequest


def share_of(job: AdapterJob, rows: list[int], at_once: int, rank: int, size: int) -> list[list[int]]:
    """The micro batches of a step that this rank computes: a function of the rows alone."""
    if not job.has_dropout:
        return split_across_ranks(rows, job.lengths, at_once, size, padded=job.engine.name == "autograd")[rank]
    # whole ones, so that the same numbers are drawn for them whatever the number of processes; where there are too few,
    # two for each process, of which one is short where the other is long
    enough = share_size(len(rows), at_once) >= size
    groups = micro_batches(rows, job.lengths, at_once if enough else share_size(len(rows), 2 * size))
    return assign_to_ranks(groups, job.lengths, size)[rank]


def accumulate(
    job: AdapterJob, step: int, groups: list[list[int]], step_weight: float, stop: StopRequest
) -> tuple[Tensor, list[int]]:
    """Leaves the gradient of this rank's micro batches, `groups` of rows, in the job's parameters.

    Returns their part of the step's mean loss, and the rows of the first micro batch whose loss is not finite.
    """
    total, bad_rows = torch.zeros((), device=job.device), []
    for rows in groups:
        if stop.requested:
            break
        _seed_draws(job.device, job.config.train.seed, step, rows[0])
        tokens = int(job.lengths[rows].sum())
        if tokens > job.most_tokens:  # too large for the holes that those before it have left
            trim_allocator(job.device)
            job.most_tokens = tokens
        batch = _batch(job, rows)
        nll_B = job.engine.add_gradient(batch, job.loss_scale / step_weight)
        loss = nll_B.sum() / step_weight
        total += loss
        if step:  # 0 is a calibration
            job.own_tokens += batch.input_ids.numel() if job.engine.name == "autograd" else tokens
        if not torch.isfinite(loss):
            finite_B = torch.isfinite(nll_B).tolist()
            bad_rows = [row for row, finite in zip(rows, finite_B, strict=True) if not finite] or rows
            break
    if job.loss_scale != 1.0:
        for parameter in job.parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(job.loss_scale)
    return total, bad_rows


@timed("data")
def _batch(job: AdapterJob, rows: list[int]) -> Batch:
    return task_of(job.config).batch(job.train, rows, job.pad_id, job.device)


def _seed_draws(device: str, *key: int) -> None:
    # Dropout of a micro batch depends on what it holds and on nothing before it: there is no generator state to
    # save, and a resumed run or another number of ranks draws the same.
    low, high = np.random.SeedSequence(key).generate_state(2)
    seed = int(low) | int(high) << 32
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for every device not in use
    if device.startswith("cuda"):
        torch.cuda.manual_seed(seed)
    elif device == "mps":
        torch.mps.manual_seed(seed)
