"""Skip or roll back after a non-finite number: `train.on_nonfinite`.

The decision is part of the checkpoint, so a run that is killed and resumed decides the same.
"""

from __future__ import annotations

from collections.abc import Callable

from inlay.data.batches import epochs_done
from inlay.errors import TrainingError
from inlay.runs.record import Rollback
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Checkpoint
from inlay.training.guards import NonFinite
from inlay.training.job import AdapterJob

LOWERED = 0.5
"""Factor on the learning rate of each rollback."""


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
        learning_rate_factor=failed.learning_rate_factor * LOWERED,
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
