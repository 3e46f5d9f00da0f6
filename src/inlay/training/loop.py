"""The loop. Every variation of training is a function that it calls.

A step sums the weighted loss over all its rows, on all ranks, and divides once by their whole weight. It has two
halves: the optimizer's, then evaluation, metrics and checkpoint. A stop between them is resumed between them.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inlay.data.batches import Batch, assign_to_ranks, epochs_done, micro_batches, split_across_ranks, step_rows
from inlay.data.encoding.token_arrays import TokenSet
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import counted
from inlay.engine.memory import peak_bytes, trim_allocator
from inlay.engine.profile import timed
from inlay.errors import Interrupted, TrainingError
from inlay.methods.adapter import adapter_disabled, only
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.tasks.task import task_of
from inlay.training import guards
from inlay.training.checkpoint import StepMetrics
from inlay.training.guards import recover
from inlay.training.job import EVALUATION, TRAINING, AdapterJob
from inlay.training.memory import run_with_oom_retry
from inlay.training.optimizer import learning_rate, set_learning_rate
from inlay.training.plateau.diagnose import WINDOW, diagnosis_of, respond
from inlay.training.process import StopRequest
from inlay.training.process_group import share_size

_SHOWN = {"loss": "loss", "lr": "learning_rate", "norm": "grad_norm", "tok/s": "tokens_per_s", "memory": "memory_bytes"}


class TrainingLoop:
    """Trains the adapters of one or several jobs over one base; an ordinary run has one job.

    Several jobs make their steps in turn. Progress, guards, metrics and checkpoints are each job's own, so that it ends
    as it would alone.
    """

    def __init__(self, jobs: Sequence[AdapterJob], stop: StopRequest, reporter: Reporter) -> None:
        self.jobs, self.stop, self.reporter = list(jobs), stop, reporter
        self.group = self.jobs[0].base.group
        self.failures: dict[str, TrainingError] = {}
        """Of jobs that cannot be trained further, by the names of their adapters."""

    @property
    def sound_jobs(self) -> list[AdapterJob]:
        """The jobs that have not failed."""
        return [job for job in self.jobs if job.name not in self.failures]

    def run(self) -> None:
        """Trains until each job's last step or early stop; progress, metrics and checkpoints are in its run folder.

        A job that fails leaves the others to end as they would alone; then its error is raised.

        Raises: NonFinite where `train.on_nonfinite` stops, naming step and rows; Interrupted after a signal, with a
        checkpoint of the last whole step on the disk.
        """
        self.reporter.start(sum(job.total_steps for job in self.jobs), self._steps_done(), "step")
        try:
            for job in self.jobs:
                with self.active(job):
                    self._save_place_to_go_back_to(job)
            while training := [job for job in self.sound_jobs if not job.is_over]:
                for job in training:
                    try:
                        with self.active(job):
                            self._advance(job)
                    except TrainingError as failure:
                        self.failures[job.name] = failure
            for job in self.sound_jobs:
                job.saver.wait()
            if self.failures:
                first, *others = self.failures.values()
                for other in others:
                    self.reporter.note(str(other))
                raise first
        finally:
            self.reporter.end()

    def active(self, job: AdapterJob) -> contextlib.AbstractContextManager[None]:
        """Inside, the job's adapter alone acts on the model."""
        return only(job.model, job.name) if len(job.base.names) > 1 else contextlib.nullcontext()

    def note(self, job: AdapterJob, text: str) -> None:
        """Tells the reporter a line about one job, with the name of its run where there are several."""
        self.reporter.note(text if len(self.jobs) == 1 else f"{job.run.name}: {text}")

    def _steps_done(self) -> int:
        return sum(job.progress.step for job in self.jobs)

    def _save_place_to_go_back_to(self, job: AdapterJob) -> None:
        config = job.config.train
        if job.progress.step == 0 and (config.on_nonfinite == "rollback" or config.on_plateau == "escape"):
            self._evaluate_base(job)
            self._save(job)

    def _advance(self, job: AdapterJob) -> None:
        """Makes the job's next step, or finishes the one that is unfinished."""
        try:
            if job.progress.unfinished is None:
                job.progress.unfinished = self._optimizer_step(job)
            self._finish_step(job, job.progress.unfinished)
        except guards.NonFinite as found:
            self._evaluate_base(job)  # it says so if the base itself is at fault
            recover(job, found, partial(self.note, job), partial(self._save, job))

    def _optimizer_step(self, job: AdapterJob) -> StepMetrics:
        """Makes the step after `job.progress.step` and returns its metrics. Raises: NonFinite."""
        config, progress = job.config.train, job.progress
        began = time.perf_counter()
        step = progress.step + 1
        position = progress.position(step)
        rows = step_rows(position, config.seed, job.train.shares, config.batch_size, job.curriculum)
        weight = float(job.row_weights[rows].sum())

        def gradient(micro_batch_size: int) -> tuple[Tensor, list[int]]:
            own = share_of(job, rows, micro_batch_size, self.group.rank, self.group.size)
            return accumulate(job, step, batch_groups(job.model).apart(own, job.lengths), weight, self.stop)

        (loss, bad_rows), micro_batch_size = run_with_oom_retry(job, TRAINING, step, partial(self.note, job), gradient)
        self.raise_if_interrupted()
        rate, norm = self._update(job, step, rows, bad_rows, loss)
        spike = guards.spike(float(norm), progress.recent_norms)
        progress.recent_norms = [*progress.recent_norms, float(norm)][-guards.SPIKE_WINDOW :]
        progress.recent_losses = [*progress.recent_losses, float(loss)][-WINDOW:]
        progress.spikes += spike is not None
        took_s = time.perf_counter() - began
        progress.step, progress.train_loss = step, float(loss)
        progress.tokens_seen += int(job.lengths[rows].sum())
        progress.trained_tokens_seen += int(job.trained_counts[rows].sum())
        progress.train_time_s += took_s
        spiked: StepMetrics = {} if spike is None else {"spike": round(spike, 1)}
        return {
            "step": step,
            "epoch": round(epochs_done(position, job.train.drawn, config.batch_size), 4),
            "loss": float(loss),
            "learning_rate": rate,
            "grad_norm": float(norm),
            **spiked,
            "micro_batch_size": micro_batch_size,
            "tokens_per_s": float(job.lengths[rows].sum() / took_s),
            "memory_bytes": float(peak_bytes(job.device)),
            "time_s": round(progress.train_time_s, 3),
        }

    @timed("optimizer")
    def _update(
        self, job: AdapterJob, step: int, rows: list[int], bad_rows: list[int], loss: Tensor
    ) -> tuple[float, Tensor]:
        """(learning rate, norm of the gradient): sums the gradients of all ranks and applies them. Raises: NonFinite."""
        config, progress = job.config.train, job.progress
        self.group.sum(loss)
        parameters = list(job.parameters.values())
        self.group.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        guards.require_finite(self.group, job.train, step, rows, bad_rows, float(loss), float(norm))
        rate = progress.learning_rate_factor * learning_rate(config, job.peak_learning_rate, step, job.total_steps)
        guards.require_gradient(
            step, float(loss), float(norm), base_loss=progress.base_eval_loss, rate=job.peak_learning_rate,
            vocabulary=job.model.get_input_embeddings().num_embeddings,
        )  # fmt: skip
        set_learning_rate(job.optimizer, rate)
        before = guards.BeforeFirstStep.of(job.model, job.name) if progress.train_loss is None else None
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
        guards.require_finite_update(self.group, parameters, job.optimizer, step)
        if before is not None:
            before.require_moved()
        return rate, norm

    def _finish_step(self, job: AdapterJob, values: StepMetrics) -> None:
        """Evaluation, metrics and checkpoint of a step that the optimizer has made, where they are due."""
        progress, step = job.progress, job.progress.step
        self._evaluate_base(job)
        evaluated = self._evaluate_if_due(job)
        progress.unfinished = None
        if self.group.is_first:
            evaluated |= job.out_of_memory_at(step)
            noteworthy = evaluated or "event" in values or "spike" in values
            if step % job.config.train.log_steps == 0 or noteworthy or step == job.total_steps:
                job.run.log_metrics(values | evaluated)
                for tracker in job.trackers:
                    tracker.log(step, values | evaluated)
            shown = {name: values.get(key) for name, key in _SHOWN.items()} | {"eval": progress.eval_loss}
            figures = {name: value for name, value in shown.items() if isinstance(value, int | float)}
            self.reporter.progress(self._steps_done(), figures)
        improved, last = evaluated.get("best", False), step == job.total_steps or progress.stopped_early
        requested, due = self.group.any(self.stop.save), step % job.save_every == 0 or improved or last
        if due:
            progress.saved_step = step
        if due and not requested:
            self._save(job)
        if requested:
            self.stop.save = False
            self._save_all()

    def _save_all(self) -> None:
        """Writes the checkpoint of each job's last whole step, on the disk when this returns."""
        for job in self.sound_jobs:
            if job.progress.step > 0:
                self._save(job)
                job.saver.wait()
                self.note(job, f"saved a checkpoint of step {job.progress.step}, as asked")

    def _save(self, job: AdapterJob) -> None:
        if self.group.is_first:
            job.save_checkpoint()
        self.group.barrier()

    @timed("evaluation")
    def heldout_nll(
        self, job: AdapterJob, reached: Callable[[int], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`nll_of` the held-out sequences."""
        return self.nll_of(job, job.heldout, reached)

    def nll_of(
        self, job: AdapterJob, tokens: TokenSet, reached: Callable[[int], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) summed nll in nats and (N,) weight of each sequence, computed by all ranks together.

        `reached` is called with the number of rows that this rank has done. The result is incomplete once a stop was
        requested.
        """

        def scores(batch_size: int) -> Tensor:
            # whole ones: a row's bits then do not depend on the number of ranks
            groups = batch_groups(job.model).apart(
                micro_batches(range(len(tokens)), tokens.lengths, batch_size), tokens.lengths
            )
            own = self._until_stopped(assign_to_ranks(groups, tokens.lengths, self.group.size)[self.group.rank])
            task = task_of(job.config)
            return task.score_rows(
                job.model, tokens, counted(own, reached), job.pad_id, job.device, job.base.autocast_dtype
            )

        trim_allocator(job.device)  # its batches are of other sizes than what training has left
        own, _ = run_with_oom_retry(job, EVALUATION, job.progress.step, partial(self.note, job), scores)
        trim_allocator(job.device)
        nll, weight = self.group.sum(own).numpy()
        return nll, weight

    def _until_stopped(self, batches: Iterable[list[int]]) -> Iterator[list[int]]:
        for rows in batches:
            if self.stop.requested:
                return
            yield rows

    def _evaluate_base(self, job: AdapterJob) -> None:
        """Measures the base's own held-out loss, once a run: behind the first step, which shows sooner what is wrong or
        too large."""
        if job.progress.base_eval_loss is not None:
            return
        with adapter_disabled(job.model):
            nll, weight = self.heldout_nll(job)
        self.raise_if_interrupted()
        loss = float(nll.sum() / weight.sum())
        guards.require_finite_base(loss, job.model)
        job.progress.base_eval_loss = loss
        if self.group.is_first:
            job.run.log_metrics({"step": 0, "eval_loss": loss} | job.out_of_memory_at(0))

    def _evaluate_if_due(self, job: AdapterJob) -> StepMetrics:
        progress, step = job.progress, job.progress.step
        if step % job.eval_every and step != job.total_steps:
            return {}
        nll, weight = self.heldout_nll(job)
        self.raise_if_interrupted()
        loss = float(nll.sum() / weight.sum())
        if not math.isfinite(loss):
            raise guards.NonFinite(
                f"step {step}: held-out loss is {loss}. Lower train.learning_rate.", step, before_update=False
            )
        progress.eval_loss, progress.eval_step = loss, step
        best = progress.best_eval_loss is None or loss < progress.best_eval_loss
        if best:
            progress.best_eval_loss, progress.best_step, progress.evals_without_gain = loss, step, 0
        else:
            progress.evals_without_gain += 1
        note = partial(self.note, job)
        found = diagnosis_of(job, step, loss, note)
        patience = job.config.train.early_stopping_patience
        waited = patience is not None and progress.evals_without_gain >= patience
        progress.stopped_early = waited
        if waited and step < job.total_steps:
            note(
                f"step {step}: early stop: the held-out loss did not fall below the {progress.best_eval_loss:.4f} of step "
                f"{progress.best_step} in {progress.evals_without_gain} evaluations (train.early_stopping_patience)"
            )
        values: StepMetrics = {"eval_loss": loss, "best": best}
        if found is None:
            return values
        done = respond(job, step, found, note)
        return values | {"diagnosis": found.kind, "reason": found.reason, "done": done}

    def raise_if_interrupted(self) -> None:
        """Raises: Interrupted when a stop was requested on any rank, with a checkpoint of each job's last step on the disk."""
        if not self.group.any(self.stop.requested):
            return
        for job in self.sound_jobs:
            job.optimizer.zero_grad(set_to_none=True)
            if self.group.is_first and job.progress.step > 0:
                job.save_checkpoint()
                job.saver.wait()
        self.group.barrier()
        reached = " and ".join(f"step {job.progress.step} of {job.total_steps}" for job in self.jobs)
        hints = " ".join(resume_hint(job.run) for job in self.jobs)
        raise Interrupted(f"interrupted after {reached}. {hints}", self.stop.signal or 15)


def resume_hint(run: Run) -> str:
    """The command that resumes a run that was stopped."""
    if not run.has_checkpoint():
        return "Nothing was trained yet: start it again with the same command."
    return (
        "A checkpoint is saved. Go on with the same command and --resume, or with: "
        f"inlay checkpoints resume {shlex.quote(str(run.path))}"
    )


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
