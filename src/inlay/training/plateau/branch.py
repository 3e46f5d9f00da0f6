"""A run that goes on from the checkpoint of another as if it were its own: `train.branch_from`."""

from __future__ import annotations

from inlay.errors import ConfigError, RunError
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.storage import write_file
from inlay.training.checkpoint import Checkpoint
from inlay.training.checkpoint_commands import checkpoint_at
from inlay.training.job import AdapterJob

_SAME = (
    "batch_size", "seed", "optimizer", "lora_plus_ratio", "order", "order_column", "order_first", "order_epochs", "order_pool",
    "order_pacing",
)  # fmt: skip


def origin(job: AdapterJob) -> tuple[Run, Checkpoint] | None:
    """(run, checkpoint) that `train.branch_from` names, None where it names none.

    Raises: ConfigError, RunError, StorageError when there is no such checkpoint or it cannot be gone on from.
    """
    reference = job.config.train.branch_from
    if reference is None:
        return None
    name, step = runs.split_step(reference)
    if step is None:
        raise ConfigError(f"train.branch_from {reference}: names no step. Write RUN@STEP.")
    run = runs.find(name, job.config.output.folder)
    checkpoint = checkpoint_at(run, step)
    job.recognise(run.record)
    made_from, then, now = checkpoint.about["inputs"], run.config, job.config
    other = [key for key, digest in job.inputs.items() if key != "settings_hash" and made_from.get(key) != digest]
    other += [f"train.{key}" for key in _SAME if getattr(then.train, key) != getattr(now.train, key)]
    one, two = (config.adapter.model_dump(exclude={"start_from"}) for config in (then, now))
    other += [f"adapter.{key}" for key in one if one[key] != two[key]]
    if other:
        raise RunError(f"train.branch_from {reference}: differs in {', '.join(other)}. A branch goes on with the same.")
    if step >= job.total_steps:
        raise RunError(
            f"train.branch_from {reference}: this run ends at step {job.total_steps} already. Raise train.max_steps."
        )
    return run, checkpoint


def begin(job: AdapterJob, run: Run, checkpoint: Checkpoint) -> None:
    """Puts the checkpoint and what led to it into the job and its run folder, which then needs the other no more."""
    job.restore(checkpoint)
    progress = job.progress
    # what is best, and what the curve says, counts from here on: the earlier checkpoints stay with the other run
    progress.best_step = progress.best_eval_loss = progress.diagnosis = progress.plateau = None
    progress.evals_without_gain, progress.curve, progress.stopped_early = 0, [], False
    progress.planned_steps, progress.saved_step = job.total_steps, progress.step
    if job.base.group.is_first:
        write_file(job.run.path / "metrics.jsonl", (run.path / "metrics.jsonl").read_bytes())
        job.run.truncate_metrics(progress.step - (progress.unfinished is not None), progress.rollbacks)
        job.save_checkpoint()
        job.saver.wait()
    job.base.group.barrier()
