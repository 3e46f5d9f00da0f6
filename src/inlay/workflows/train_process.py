"""One process at a run: its folder, its start, checkpoint or branch point, the steps, the proofs, the verdict and how it ended."""

from __future__ import annotations

import contextlib
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inlay.adapters.identity import start_held
from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.render import as_yaml
from inlay.config.sections.base import Assignments
from inlay.config.sections.data import TrainFile
from inlay.data.reading.read import as_lines
from inlay.engine.memory import enough_memory
from inlay.engine.profile import profiled
from inlay.errors import ConfigError, InlayError, Interrupted, RunError, TrainingError
from inlay.evaluation.task_metrics import primary_metric
from inlay.evaluation.verdict import loss_difference
from inlay.hardware.facts import library_versions
from inlay.hardware.machine import machine_record
from inlay.hardware.probe import dtype_name
from inlay.methods.adapter import adapter_disabled
from inlay.methods.adapter_state import AdapterState
from inlay.proof.verify import Start, prove_trained
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.record import FAILED, FINISHED, INTERRUPTED, RUNNING, ProcessShare, Result, RunRecord, Status
from inlay.runs.report import report
from inlay.runs.reporter import LateBar, LoggedReporter, Reporter, change_shown
from inlay.runs.trackers import open_trackers
from inlay.storage import owned, path_exists, require_space, sweep_staging, write_file
from inlay.training.checkpoint import Checkpoint, checkpoint_at
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop, resume_hint
from inlay.training.loss_curriculum import by_loss
from inlay.training.plateau import escape
from inlay.training.pre_flight import look_ahead, pre_flight
from inlay.training.process import StopRequest, stop_on_signals
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job, require_same
from inlay.typed_json import JsonObject, decode, encode
from inlay.workflows.resume import RunSelection, refuse_other_inputs, restore, stored_config

_SMALLER = "set train.gradient_checkpointing=true, or quantize the base."


@dataclass(frozen=True, slots=True)
class RunProcess:
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
        """Trains to the end and judges what came out. `begin` takes the job from step 0 to where this process begins,
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
            step = job.export() if group.is_first else 0
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
            reason=difference.reason,
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
            opens_in=job.base.named.opened_in if job.base.named else "",
        )
        ended = replace(
            job.run.record, status=FINISHED, error=None, result=result, processes=processes or job.run.record.processes
        )
        report(job.run, ended)
        job.run.write_record(ended)
        self.reporter.note(
            f"held-out loss {difference.base:.4f} → {difference.other:.4f}: "
            f"{change_shown(difference, '{:+.4f}'.format)} {difference.verdict}; {difference.reason}"
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
) -> tuple[Run, RunProcess | None, Callable[[], None] | None]:  # fmt: skip
    """(the run, with its folder; all its parts, None where it is finished; what takes them to where the run goes on)."""
    if config.eval.metric != "auto":
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
    if not resumes and effective.adapter.start_from:
        held.enter_context(start_held(effective))
    job = make_single_job(effective, reporter, group, run.base_revision if resumes else None)
    if effective.eval.metric != "auto":
        has_answers = any(e.messages[0].role != "text" for e in job.data.heldout_examples)
        primary_metric(effective.eval.metric, has_answers=has_answers)
    require_same(job, config)
    branched = None
    if resumes:
        refuse_other_inputs(run, job)
    else:
        branched = branch_origin(job)
    held.enter_context(stop_on_signals(stop))
    if group.is_first:
        require_space(run.path, space_needed_bytes(job))
        run = open_folder(selection, job, reporter, held, named=config.output.name is not None or group.size > 1)
        run.write_record(replace(run.record, machine=machine))
        logged.opened(run)
        held.enter_context(recorded(run))
    run = job.run = Run(Path(group.broadcast_text(str(run.path))))  # from here on the folder is there
    process = RunProcess(job, TrainingLoop([job], stop, reporter), began)
    if branched:
        return run, process, partial(begin_branch, job, *branched)
    return run, process, partial(restore, job, reporter.note) if resumes else None


def _machine(config: Config, group: ProcessGroup) -> JsonObject:
    """A quick `inlay doctor` for run.json. A machine that cannot be examined is no reason to stop."""
    try:
        return machine_record(Path(config.output.folder), group.device(config.model.device)).to_json()
    except OSError as error:
        return {"warnings": [f"this machine cannot be looked at: {error}"]}


def open_folder(
    selection: RunSelection, job: AdapterJob, reporter: Reporter, held: contextlib.ExitStack, *, named: bool
) -> Run:
    """The run's folder, locked and with its first files in it."""
    run = selection.run
    if selection.resumes:
        resumed_at = datetime.now(UTC).isoformat(timespec="seconds")
        run.write_record(replace(run.record, status=RUNNING, error=None, failed_step=None, resumed_at=resumed_at))
        if job.config.train != run.config.train:  # extended
            write_file(run.path / "config.yaml", as_yaml(anchored(job.config), job.reasons))
        sweep_staging(run.path)
        sweep_staging(run.checkpoints)
        sweep_staging(run.reports)
        return run
    if selection.moves_aside:
        reporter.note(f"moved what was at {run.path} to {runs.start_fresh(run)}")
    while not runs.created(run):
        if named:
            raise RunError(f"{run.path}: another process made this run just now. Give another --name.")
        run = runs.next_numbered(job.config)
    held.enter_context(owned(run.path))
    write_file(run.path / "config.yaml", as_yaml(anchored(job.config), job.reasons))
    write_file(run.heldout, as_lines(job.data.heldout_examples))
    begun = RunRecord(
        status=RUNNING,
        started_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        seed=job.config.train.seed,
        versions=library_versions(),
        device=job.device,
        dtype=dtype_name(job.base.dtype),
        quantization=job.base.precision.quantization,
        heldout_available=job.data.heldout_available,
        max_length=job.data.max_length,
        eval_batch_size=job.eval_batch_size,
        trainable_parameters=job.trainable,
        total_parameters=job.base.total_parameters,
        error=None,
        **(job.base_record | job.inputs),
    )
    run.write_record(begun)
    return run


@contextlib.contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Leaves the way the run ended in run.json, and a traceback in log.txt for what nobody foresaw."""
    try:
        yield
    except KeyboardInterrupt:  # a second Ctrl+C, which waits for nothing
        message = f"stopped at once. {resume_hint(run)}"
        run.write_record(replace(run.record, status=INTERRUPTED, error=message))
        raise Interrupted(message, 2) from None
    except InlayError as error:
        with contextlib.suppress(InlayError):  # a full disk must not hide the first error
            sweep_staging(run.checkpoints)
            status: Status = INTERRUPTED if isinstance(error, Interrupted) else FAILED
            step = error.step if isinstance(error, TrainingError) else None
            run.write_record(replace(run.record, status=status, error=str(error), failed_step=step))
            run.log(f"ended: {error}")
            if isinstance(error, TrainingError):
                report(run, run.record)
        raise
    except BaseException as error:
        with contextlib.suppress(InlayError):
            run.write_record(replace(run.record, status=FAILED, error=f"{type(error).__name__}: {error}"))
            run.log(traceback.format_exc())
            error.add_note(f"traceback in {run.path / 'log.txt'}")
        raise


def space_needed_bytes(job: AdapterJob) -> int:
    """Bytes that the run may write: checkpoints that are kept at once, the adapter, and some room."""
    checkpoints = job.config.train.keep_checkpoints + 2
    if job.config.train.on_plateau == "escape":
        checkpoints += len(escape.branch_steps_to_keep(job.total_steps, job.save_every, job.eval_every))
    return job.trainable * (12 * checkpoints + 4) + 20_000_000


def anchored(config: Config) -> Config:
    """The config with every file and folder that is here as an absolute path: a run can be used from anywhere."""
    for path in PLACES:
        name, _, key = path.partition(".")
        section = getattr(config, name)
        given = getattr(section, key)
        here = [_anchored(file) for file in given] if isinstance(given, list) else _anchored(given)
        if here != given:
            config = config.model_copy(update={name: section.model_copy(update={key: here})})
    return config


def _anchored(given: Any) -> Any:
    if isinstance(given, TrainFile):
        return given.model_copy(update={"path": _anchored(given.path)})
    return str(Path(given).absolute()) if isinstance(given, str) and path_exists(Path(given)) else given


_SAME = (
    "batch_size", "seed", "optimizer", "lora_plus_ratio", "order", "order_column", "order_first", "order_epochs", "order_pool",
    "order_pacing",
)  # fmt: skip


def branch_origin(job: AdapterJob) -> tuple[Run, Checkpoint] | None:
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


def begin_branch(job: AdapterJob, run: Run, checkpoint: Checkpoint) -> None:
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
