"""How fast this job runs here, before it runs."""

from __future__ import annotations

import time

import numpy as np

from inlay.training import checkpoint as checkpoints
from inlay.training.loop import Job, accumulate
from inlay.training.signals import StopRequest


def seconds_per_token(job: Job) -> float:
    """Seconds per token of one forward and backward over a micro batch of middling length.

    Leaves the job as it was: no gradient, no random number drawn, no weight changed.
    """
    rng = checkpoints.rng_state()
    by_length = np.argsort(job.train.lengths, kind="stable")
    middle = len(by_length) // 2
    rows = [int(i) for i in by_length[middle : middle + job.micro_batch_size]]
    weight = float(job.train.row_weights()[rows].sum())
    times_s = []
    for _ in range(2):  # the first also pays for warming up
        began = time.perf_counter()
        accumulate(job, [rows], weight, StopRequest())
        times_s.append(time.perf_counter() - began)
    job.optimizer.zero_grad(set_to_none=True)
    checkpoints.restore_rng(rng)
    return min(times_s) / int(job.train.lengths[rows].sum())
