"""One process at a run: from its start or its newest checkpoint to the end, the proofs, and the verdict."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inlay.data.batches import epochs_done
from inlay.engine.memory import enough_memory
from inlay.engine.profile import profiled
from inlay.errors import Interrupted, RunError, TrainingError
from inlay.evaluation.compare import loss_difference
from inlay.methods.adapter import adapter_disabled
from inlay.methods.state import AdapterState
from inlay.proof.verify import Start, prove_trained
from inlay.runs.record import FINISHED, Diagnosis, Plateau, ProcessShare, Result
from inlay.runs.reporter import LateBar, Reporter
from inlay.training import checkpoint as checkpoints
from inlay.training import finish
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop, resume_hint
from inlay.training.loss_curriculum import by_loss
from inlay.training.pre_flight import look_ahead, pre_flight
from inlay.training.process_group import ProcessGroup
from inlay.training.schedule import learning_rate
from inlay.training.trackers import open_trackers
from inlay.typed_json import decode, encode

_SMALLER = "set train.gradient_checkpointing=true, or quantize the base."


@dataclass(frozen=True, slots=True)
class Attempt:
    """What all its parts look at."""

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
        """Where progress goes; silent on all ranks but the first."""
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

    def restore(self) -> None:
        """Puts the newest complete checkpoint into the job; damaged newer ones are moved aside."""
        job, group, reporter = self.job, self.group, self.reporter
        chosen, settings = "", job.config.train
        if group.is_first:
            newest, faults = checkpoints.newest_valid(job.run.checkpoints, job.inputs)
            if newest is None:
                told = "".join(f"\n  {fault}" for _, fault in faults)
                raise RunError(f"{job.run.path}: no checkpoint can be read. Start anew with --fresh.{told}")
            for damaged, fault in faults:
                reporter.note(f"passed over a damaged checkpoint, now {checkpoints.set_aside(damaged).name}: {fault}")
            chosen = str(newest.path)
        newest = checkpoints.Checkpoint(Path(group.broadcast_text(chosen)))
        if other := _other_versions(newest.about.get("versions", {}), job.versions):
            reporter.note(
                f"{newest.path.name} was computed with other versions ({other}): bits may differ from here on"
            )
        job.restore(newest)
        record, progress = job.run.record, job.progress
        job.out_of_memory_events = list(record.out_of_memory)
        job.eval_batch_size = record.eval_batch_size  # as it was planned then
        if group.is_first:
            last_logged = progress.step - (progress.unfinished is not None)
            if progress.metrics_seal and (said := job.run.mend_metrics(progress.metrics_seal)):
                reporter.note(said)
            job.run.truncate_metrics(last_logged, progress.rollbacks)
        if progress.step > job.total_steps:
            raise RunError(
                f"{job.run.path}: is at step {progress.step} already, past {job.total_steps}. Extend it further."
            )
        if progress.stopped_early and job.total_steps > progress.planned_steps:
            progress.stopped_early = False  # extended since
        progress.planned_steps = job.total_steps
        rate = learning_rate(settings, job.peak_learning_rate, min(progress.step + 1, job.total_steps), job.total_steps)
        reporter.note(
            f"going on after step {progress.step} of {job.total_steps} "
            f"(epoch {epochs_done(progress.position(progress.step), job.train.drawn, settings.batch_size):.2f}, learning rate "
            f"{rate * progress.learning_rate_factor:.3g}, {progress.step * min(settings.batch_size, job.train.drawn):,} rows seen) from {newest.path}"
        )

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
            diagnosis=Diagnosis(**progress.diagnosis) if progress.diagnosis else None,
            plateau=Plateau(**progress.plateau) if progress.plateau else None,
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
        """Where each process ran and how many tokens it computed since it started; nothing where there is one."""
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
        if self.group.any(self.loop.stop.asked):
            raise Interrupted(
                f"interrupted after the last step, before the verdict. {resume_hint(self.job.run)}",
                self.loop.stop.signal or 15,
            )


def _other_versions(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> str:
    """What differs, for a reader; empty where nothing does, or where the checkpoint does not say."""
    return ", ".join(f"{name} {then[name]} then, {now.get(name)} now" for name in then if then[name] != now.get(name))
