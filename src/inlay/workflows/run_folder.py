"""The folder of a run: made with its first files, and the way the run ended."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.render import as_yaml
from inlay.config.sections.data import TrainFile
from inlay.data.reading.read import as_lines
from inlay.errors import InlayError, Interrupted, RunError, TrainingError
from inlay.hardware.facts import library_versions
from inlay.hardware.probe import dtype_name
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.record import FAILED, INTERRUPTED, RUNNING, RunRecord, Status
from inlay.runs.reporter import Reporter
from inlay.storage import owned, path_exists, sweep_staging, write_file
from inlay.training import finish
from inlay.training.job import AdapterJob
from inlay.training.loop import resume_hint
from inlay.training.plateau import escape
from inlay.workflows.resume import RunSelection


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
                finish.report(run, run.record)
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
        checkpoints += len(escape.needed(job.total_steps, job.save_every, job.eval_every))
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
