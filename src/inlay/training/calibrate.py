"""How fast this job runs here, before it runs."""

from __future__ import annotations

import time

import numpy as np
import torch

from inlay.models.probe import synchronize
from inlay.training.loop import Job, accumulate
from inlay.training.signals import StopRequest

_ENOUGH_TOKENS = 256  # for a CPU to multiply matrices nearly as fast as it ever does


def seconds_per_token(job: Job, micro_batch_size: int, stop: StopRequest) -> float:
    """Seconds per token of one forward and backward over a micro batch of middling length; on a CPU over some of its rows.

    Leaves no gradient and no changed weight behind.
    """
    by_length = np.argsort(job.lengths, kind="stable")
    middle = len(by_length) // 2
    rows = [int(i) for i in by_length[middle : middle + micro_batch_size]]
    if job.device == "cpu":
        rows = rows[: max(1, int((job.lengths[rows].cumsum() <= _ENOUGH_TOKENS).sum()))]
    times_s = []
    for _ in range(2):  # the first also pays for warming up
        began = time.perf_counter()
        accumulate(job, 0, [rows], float(job.row_weights[rows].sum()), stop)
        synchronize(torch.device(job.device))
        times_s.append(time.perf_counter() - began)
    job.optimizer.zero_grad(set_to_none=True)
    return min(times_s) / int(job.lengths[rows].sum())
