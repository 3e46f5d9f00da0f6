"""Out of memory: the same rows again in smaller batches, and from then on.

The rows of a batch are a pure function of the step and of the events that run.json keeps, so a resumed run computes
every step as the first time. The rows of a step, their order and their gradient do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from inlay.engine.memory import first_line, is_out_of_memory, limited, release
from inlay.errors import TrainingError
from inlay.runs.record import OutOfMemoryEvent
from inlay.training.job import TRAINING, AdapterJob
from inlay.training.process_group import share_size

T = TypeVar("T")


def run_with_oom_retry(
    job: AdapterJob, phase: str, step: int, note: Callable[[str], None], compute: Callable[[int], T]
) -> tuple[T, int]:
    """(`compute` of a batch size, that size): the first that this rank and all others have memory for.

    Raises: what the allocator raised once a single row is too much.
    """
    group = job.base.group
    while True:
        size, failed = job.batch_size_at(phase, step), ""
        try:
            with limited(job.device, job.base.max_memory_bytes):
                result = compute(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or (size == 1 and group.size == 1):
                raise
            failed = first_line(error)
        if not group.any(bool(failed)):
            return result, size
        if size == 1:
            raise TrainingError(
                f"step {step}: out of memory with a single row ({failed or 'on another process'}).", step=step
            )
        # outside of the except clause, whose traceback holds every tensor of the pass
        job.optimizer.zero_grad(set_to_none=True)
        release(job.device)
        held = share_size(job.config.train.batch_size, group.size) if phase == TRAINING else len(job.heldout)
        smaller = (min(size, held) + 1) // 2
        job.out_of_memory_events.append(OutOfMemoryEvent(phase, step, smaller, failed or "on another process"))
        if group.is_first:
            job.run.write_record(replace(job.run.record, out_of_memory=tuple(job.out_of_memory_events)))
        note(
            f"step {step}: out of memory in {phase} ({job.out_of_memory_events[-1].error}); the same rows again, "
            f"{smaller} at a time from here on"
        )
