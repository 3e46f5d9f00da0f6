"""One process at a run: from its start or its newest checkpoint to the end, the proofs, and the verdict."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from inlay.config import Config
from inlay.config.sections.base import Assignments
from inlay.engine.memory import enough_memory
from inlay.engine.profile import profiled
from inlay.errors import Interrupted, RunError, TrainingError
from inlay.evaluation.bootstrap import loss_difference
from inlay.evaluation.task_metrics import primary_metric
from inlay.methods.adapter import adapter_disabled
from inlay.methods.state import AdapterState
from inlay.proof.verify import Start, prove_trained
from inlay.runs.folder import Run
from inlay.runs.record import FINISHED, ProcessShare, Result
from inlay.runs.reporter import LateBar, LoggedReporter, Reporter
from inlay.storage import require_space
from inlay.training import finish
from inlay.training.agreement import require_same
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop, resume_hint
from inlay.training.loss_curriculum import by_loss
from inlay.training.plateau.branch import begin as begin_branch
from inlay.training.plateau.branch import origin
from inlay.training.pre_flight import look_ahead, pre_flight
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import set_up
from inlay.training.signals import StopRequest, stop_on_signals
from inlay.training.trackers import open_trackers
from inlay.typed_json import JsonObject, decode, encode
from inlay.workflows.doctor import machine_record
from inlay.workflows.resume import RunSelection, refuse_other_inputs, restore, stored_config
from inlay.workflows.run_folder import open_folder, recorded, space_needed_bytes

_SMALLER = "set train.gradient_checkpointing=true, or quantize the base."


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process at a run, from its start or checkpoint to proofs and verdict."""

    job: AdapterJob
    loop: TrainingLoop
    began: float
    """When the process was called, of `time.perf_counter`."""

    @property
    def group(self) -> ProcessGroup:
        """The processes at this run."""
        return self.loop.group

    @property
    def reporter(self) -> Reporter:
        """Receives the progress; silent on all ranks but the first."""
        return self.loop.reporter

    def train(self, begin: Callable[[], None] | None, profile: bool) -> None:
        """Trains to the end and judges what came out. `begin` takes the job from step 0 to where this attempt begins,
        None where that is step 0."""
        job, group, reporter = self.job, self.group, self.reporter
        way_out = f"Lower train.micro_batch_size (now {job.micro_batch_size}) or eval.batch_size, {_SMALLER}"
        with job.saver, enough_memory(way_out):
            start = Start.of(job)
            if begin:
                with group.failing_together():
                    begin()
                    group.agree()
            if job.config.train.order == "loss":
                job.curriculum = by_loss(self.loop, job)
            reporter.block("pre-flight", pre_flight(job, look_ahead(self.loop, job)).block())
            self._steps(profile)
            self.loop.raise_if_interrupted()
            reporter.stage("saving the adapter and checking that it is what was trained")
            self._conclude(self._exported(start))
            group.barrier()

    def _steps(self, profile: bool) -> None:
        """The steps that are left, with the trackers that follow them; `profile` says where their time went."""
        job, run = self.job, self.job.run
        if self.group.is_first:
            job.trackers = open_trackers(job.config, run.path, run.name, job.progress.step)
        try:
            with profiled(job.device) if profile else contextlib.nullcontext() as seen:
                self.loop.run()
        finally:
            for tracker in job.trackers:
                tracker.close()
        if seen is None:
            return
        self.reporter.block("where the time went", seen.rows())
        if self.group.is_first:
            spent = {part: round(seconds, 6) for part, seconds in seen.seconds.items()}
            run.write_record(replace(run.record, profile=spent))

    def _exported(self, start: Start) -> int:
        """The step whose adapter now lies in `adapter/` and in the model of every rank: the first one writes and proves.

        Raises: TrainingError when a proof fails.
        """
        group, job = self.group, self.job
        with group.failing_together():
            step = finish.export(job) if group.is_first else 0
            step = int(group.broadcast_text(str(step)))
        if step != job.progress.step:
            AdapterState.broadcast(group.copy, job.model, job.name)
        with group.failing_together():
            if group.is_first:
                self._prove(step, start)
            group.agree()
        return step

    def _prove(self, step: int, start: Start) -> None:
        found = prove_trained(self.job, step, start)
        failed = [f"  {one.name}: {one.found}" for one in found if one.passed is False]
        if failed:
            raise TrainingError(
                f"{self.job.run.path}: {len(failed)} of {len(found)} proofs failed, so this adapter is not what training "
                "promises:\n" + "\n".join(failed)
            )
        self.reporter.note(f"proofs: {len(found)} of {len(found)} hold: {', '.join(one.name for one in found)}")

    def _conclude(self, step: int) -> None:
        """Judges the exported adapter, which is the one in the model, and finishes the run."""
        job, settings, group = self.job, self.job.config, self.group
        base = self._judged(adapter_disabled(job.model))
        adapter = self._judged(contextlib.nullcontext())
        self._leave_finished()
        processes = self._processes()
        if not group.is_first:
            return
        examples = job.data.heldout.examples
        difference = loss_difference(base, adapter, settings.eval.resamples, settings.train.seed, examples=examples)
        progress = job.progress
        result = Result(
            run=str(job.run.path),
            status=FINISHED,
            steps=progress.step,
            adapter_step=step,
            best_step=progress.best_step,
            train_loss=progress.train_loss,
            eval_loss=difference.other,
            base_eval_loss=difference.base,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
            verdict=difference.verdict,
            stopped_early=progress.stopped_early,
            diagnosis=progress.diagnosis,
            plateau=progress.plateau,
            skipped_steps=len(progress.skipped),
            trained_batches=progress.trained_batches(),
            rollbacks=len(progress.rollbacks),
            gradient_spikes=progress.spikes,
            out_of_memory=len(job.out_of_memory_events),
            tokens_seen=progress.tokens_seen,
            trained_tokens_seen=progress.trained_tokens_seen,
            train_time_s=round(progress.train_time_s, 3),
            time_s=round(time.perf_counter() - self.began, 3),
            adapter=str(job.run.trained),
        )
        ended = replace(job.run.record, status=FINISHED, error=None, result=result, processes=processes)
        finish.report(job.run, ended)
        job.run.write_record(ended)
        self.reporter.note(
            f"held-out loss {difference.base:.4f} → {difference.other:.4f}: {difference.difference:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}] {difference.verdict}"
        )

    def _processes(self) -> tuple[ProcessShare, ...]:
        """Device and tokens of each process since it started; empty for a single process."""
        if self.group.size == 1:
            return ()
        own = ProcessShare(device=self.job.device, host=platform.node(), tokens=self.job.own_tokens)
        every = tuple(decode(ProcessShare, json.loads(text)) for text in self.group.gather(json.dumps(encode(own))))
        total = max(1, sum(one.tokens for one in every))
        shares = ", ".join(f"{one.tokens / total:.1%}" for one in every)
        self.reporter.note(f"processes: {len(every)} computed {shares} of the tokens")
        return every

    def _judged(self, view: contextlib.AbstractContextManager[None]) -> tuple[np.ndarray, np.ndarray]:
        """See `heldout_nll`."""
        job, share = self.job, -(-len(self.job.heldout) // self.group.size)
        with view, LateBar(self.reporter, share, "held-out row") as bar:
            return self.loop.heldout_nll(job, bar.reached)

    def _leave_finished(self) -> None:
        """Like `raise_if_interrupted` after the last step, whose checkpoint is on the disk while the model holds the best one."""
        if self.group.any(self.loop.stop.requested):
            raise Interrupted(
                f"interrupted after the last step, before the verdict. {resume_hint(self.job.run)}",
                self.loop.stop.signal or 15,
            )


def prepare(
    config: Config, selection: RunSelection, longer: Assignments, group: ProcessGroup, stop: StopRequest, reporter: Reporter,
    held: contextlib.ExitStack, began: float,
) -> tuple[Run, Attempt | None, Callable[[], None] | None]:  # fmt: skip
    """(the run, with its folder; all its parts, None where it is finished; what takes them to where the run goes on)."""
    primary_metric(config.eval.metric)
    run = Run(Path(group.broadcast_text(str(selection.run.path))))
    resumes = bool(group.broadcast_text("resumed" if selection.resumes else ""))
    if longer and not resumes:
        raise RunError(f"{run.path}: nothing to extend: no checkpoint of an earlier start. Leave --extend out.")
    effective = stored_config(run, config, longer) if resumes else config
    if resumes and run.status == FINISHED and effective.train == run.config.train:
        reporter.note(f"{run.path}: already finished at step {run.result.steps}; nothing to do.")
        return run, None, None
    reporter = logged = LoggedReporter(reporter)
    machine = _machine(effective, group) if group.is_first else {}
    for warning in machine.get("warnings", ()):
        reporter.note(f"warning: {warning}")
    job = set_up(effective, reporter, group, run.base_revision if resumes else None)
    has_answers = any(e.messages[0].role != "text" for e in job.data.heldout_examples)
    primary_metric(effective.eval.metric, has_answers=has_answers)
    require_same(job, config)
    branched = None
    if resumes:
        refuse_other_inputs(run, job)
    else:
        branched = origin(job)
    held.enter_context(stop_on_signals(stop))
    if group.is_first:
        require_space(run.path, space_needed_bytes(job))
        run = open_folder(selection, job, reporter, held, named=config.output.name is not None or group.size > 1)
        run.write_record(replace(run.record, machine=machine))
        logged.opened(run)
        held.enter_context(recorded(run))
    run = job.run = Run(Path(group.broadcast_text(str(run.path))))  # from here on the folder is there
    attempt = Attempt(job, TrainingLoop([job], stop, reporter), began)
    if branched:
        return run, attempt, partial(begin_branch, job, *branched)
    return run, attempt, partial(restore, job, reporter.note) if resumes else None


def _machine(config: Config, group: ProcessGroup) -> JsonObject:
    """A quick `inlay doctor` for run.json. A machine that cannot be examined is no reason to stop."""
    try:
        return machine_record(True, Path(config.output.folder), group.device(config.model.device)).to_json()
    except OSError as error:
        return {"warnings": [f"this machine cannot be looked at: {error}"]}
