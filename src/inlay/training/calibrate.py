"""Speed of a job on this machine, measured before it runs."""

from __future__ import annotations

import time

import numpy as np
import torch

from inlay.hardware.probe import synchronize
from inlay.training.gradient import accumulate
from inlay.training.job import AdapterJob
from inlay.training.signals import StopRequest

_ENOUGH_TOKENS = 256  # for a CPU to multiply matrices nearly as fast as it ever does
_BUDGET_S = 1.5
_MOST_PASSES = 6


def seconds_per_token(job: AdapterJob, micro_batch_size: int, stop: StopRequest) -> float:
    """Seconds per token of one forward and backward over a micro batch of middling length; on a CPU over some of its rows
    where all of them would take long. The quickest of a few passes: other work only ever slows one down.

    Leaves no gradient and no changed weight behind.
    """
    by_length = np.argsort(job.lengths, kind="stable")
    middle = len(by_length) // 2
    rows = [int(i) for i in by_length[middle : middle + micro_batch_size]]
    few = rows
    if job.device == "cpu":
        few = rows[: max(1, int((job.lengths[rows].cumsum() <= _ENOUGH_TOKENS).sum()))]
    pace_s = _quickest(job, few, stop)
    if len(few) < len(rows) and pace_s * int(job.lengths[rows].sum()) < _BUDGET_S:  # what a call costs counts for less
        pace_s = min(pace_s, _quickest(job, rows, stop))
    job.optimizer.zero_grad(set_to_none=True)
    return pace_s


def _quickest(job: AdapterJob, rows: list[int], stop: StopRequest) -> float:
    """Seconds per token, of two passes and of more while they are quick: the first also pays for warming up."""
    times_s: list[float] = []
    while len(times_s) < 2 or (sum(times_s) < _BUDGET_S / 2 and len(times_s) < _MOST_PASSES):
        began = time.perf_counter()
        accumulate(job, 0, [rows], float(job.row_weights[rows].sum()), stop)
        synchronize(torch.device(job.device))
        times_s.append(time.perf_counter() - began)
    return min(times_s) / int(job.lengths[rows].sum())
