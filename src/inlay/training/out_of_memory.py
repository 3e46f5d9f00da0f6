"""Out of memory: the same rows again in smaller batches, and from then on.

What a batch holds is a pure function of the step and of the shortages that run.json keeps, so a resumed run computes
every step as the first time. The rows of a step, their order and their gradient do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from inlay.engine.memory import first_line, is_out_of_memory, limited, release
from inlay.errors import TrainingError
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.training.process_group import ProcessGroup
from inlay.training.shares import share_size

if TYPE_CHECKING:
    from inlay.training.loop import Job

T = TypeVar("T")
TRAINING, EVALUATION = "training", "evaluation"
_RECORD = "out_of_memory"


@dataclass(frozen=True, slots=True)
class OutOfMemoryEvent:
    """From `step` on a batch of this phase holds at most `batch_size` rows."""

    phase: str
    step: int
    batch_size: int
    error: str


def recorded(run: Run) -> list[OutOfMemoryEvent]:
    """The shortages of the run so far."""
    return [OutOfMemoryEvent(**entry) for entry in run.record.get(_RECORD, [])]


def batch_size_at(job: Job, phase: str, step: int) -> int:
    """Rows of one forward pass: as configured, or as few as a shortage up to this step has left."""
    wanted = job.micro_batch_size if phase == TRAINING else job.eval_batch_size
    return min([wanted, *(s.batch_size for s in job.out_of_memory_events if s.phase == phase and s.step <= step)])


def run_with_oom_retry(
    job: Job, world: ProcessGroup, phase: str, step: int, reporter: Reporter, compute: Callable[[int], T]
) -> tuple[T, int]:
    """(`compute` of a batch size, that size): the first that this rank and all others have memory for.

    Raises: what the allocator raised once a single row is too much.
    """
    while True:
        size, failed = batch_size_at(job, phase, step), ""
        try:
            with limited(job.device, job.max_memory_bytes):
                result = compute(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or (size == 1 and world.size == 1):
                raise
            failed = first_line(error)
        if not world.any(bool(failed)):
            return result, size
        if size == 1:
            raise TrainingError(f"step {step}: out of memory with a single row ({failed or 'on another process'}).")
        # outside of the except clause, whose traceback holds every tensor of the pass
        job.optimizer.zero_grad(set_to_none=True)
        release(job.device)
        held = share_size(job.config.train.batch_size, world.size) if phase == TRAINING else len(job.heldout)
        smaller = (min(size, held) + 1) // 2
        job.out_of_memory_events.append(OutOfMemoryEvent(phase, step, smaller, failed or "on another process"))
        if world.is_first:
            job.run.update(**{_RECORD: [asdict(shortage) for shortage in job.out_of_memory_events]})
        reporter.note(
            f"step {step}: out of memory in {phase} ({job.out_of_memory_events[-1].error}); the same rows again, "
            f"{smaller} at a time from here on"
        )
