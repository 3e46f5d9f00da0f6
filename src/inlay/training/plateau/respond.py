"""The answer to an evaluation: the diagnosis of the curve, and what the settings make of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from inlay.runs.record import Diagnosis, Plateau
from inlay.training.job import AdapterJob
from inlay.training.plateau import diagnose, escape
from inlay.training.schedule import learning_rate, warmup_steps


def diagnosis_of(job: AdapterJob, step: int, eval_loss: float, note: Callable[[str], None]) -> Diagnosis | None:
    """The diagnosis of the curve up to this evaluation, noted where it is news; None during the warmup."""
    config, progress = job.config.train, job.progress
    losses, progress.recent_losses = progress.recent_losses or [eval_loss], []
    if step <= warmup_steps(config, job.total_steps):
        return None
    steady = 2 * learning_rate(config, job.peak_learning_rate, step, job.total_steps) >= job.peak_learning_rate
    progress.curve = [*progress.curve, [step, statistics.median(losses), eval_loss, steady]][-diagnose.WINDOW :]
    assert progress.base_eval_loss is not None
    found = diagnose.diagnose(diagnose.points_of(progress.curve), progress.base_eval_loss)
    known, progress.diagnosis = progress.diagnosis, found
    if found and (known is None or known.kind != found.kind):
        note(f"step {step}: {found.kind}: {found.reason}")
    return found


def respond(job: AdapterJob, step: int, found: Diagnosis, note: Callable[[str], None]) -> str:
    """Does what `train.on_overfitting` or `train.on_plateau` says; returns it as metrics.jsonl has it."""
    config, progress = job.config.train, job.progress
    setting = "on_overfitting" if found.kind == "overfitting" else "on_plateau"
    policy = getattr(config, setting)
    if policy == "stop":
        progress.stopped_early = True
        if step < job.total_steps:
            note(f"step {step}: early stop by train.{setting}, {job.total_steps - step} steps before the end")
        return "the run was stopped"
    if policy == "escape" and progress.plateau is None and escape.is_over(step, job.save_every) < job.total_steps:
        back_to = escape.start(step, job.save_every)
        progress.plateau = Plateau(step=step, back_to=back_to, kind=found.kind, reason=found.reason)
        done = f"after the run's end other ways go from step {back_to}"
        note(f"step {step}: {done}")
        return done
    return "noted"
