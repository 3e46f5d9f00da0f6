"""One call of train: which run it is, what must be true before it begins, the training, and the verdict."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.render import as_yaml, explicit_values
from inlay.config.sections.data import TrainFile
from inlay.errors import ConfigError, InlayError, Interrupted, RunError, TrainingError
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.record import FAILED, FINISHED, INTERRUPTED, RUNNING, RunRecord, Status
from inlay.runs.reporter import Figures, LoggedReporter, Reporter
from inlay.storage import (
    LOCK,
    OWNER,
    is_staging,
    owned,
    path_exists,
    require_space,
    require_writable,
    sweep_staging,
    write_file,
)
from inlay.training.launcher import launch, require_data_parallel
from inlay.training.signals import StopRequest, save_on_signal, stop_on_signals, stop_with_stdin

if TYPE_CHECKING:
    from inlay.data.types import Example
    from inlay.training.job import AdapterJob
    from inlay.training.process_group import ProcessGroup
    from inlay.workflows.train_process import Attempt

Confirm = Callable[[str], bool]
_FREE_TO_CHANGE = ("output.", "track.", "preset")  # settings that a resumed run does not read from its own config


@dataclass(frozen=True, slots=True)
class RunSelection:
    """Which run is meant, and what to do about what lies there."""

    run: Run
    goes_on: bool = False
    """From its newest checkpoint; finished runs go nowhere."""
    moves_aside: bool = False
    """What lies there now makes room first."""


def train(
    config: Config, resume: bool, fresh: bool, reporter: Reporter, confirm: Confirm | None, extend: str | None = None,
    profile: bool = False,
) -> Run:  # fmt: skip
    """See `inlay.api.train`."""
    if resume and fresh:
        raise ConfigError("train: --resume and --fresh exclude each other. Give one.")
    if fresh and extend:
        raise ConfigError("train: --extend and --fresh exclude each other. Give one.")
    longer = parse_extension(extend) if extend else {}
    began = time.perf_counter()
    stop_with_stdin()
    with contextlib.ExitStack() as held:
        stop = held.enter_context(save_on_signal())
        # decided before torch is imported: who is refused learns it at once
        claim, refused = _early(config, resume or bool(extend), fresh, reporter, confirm, held)
        from inlay.training.process_group import join_process_group

        group = join_process_group(config.model.device)
        reporter = reporter if group.is_first else _Silent()
        with group.failing_together():
            if refused:
                raise refused
            run, attempt, begin = _prepared(config, claim, longer, group, stop, reporter, held, began)
        if attempt:
            attempt.train(begin, profile)
    return run


def _early(
    config: Config, goes_on: bool, fresh: bool, reporter: Reporter, confirm: Confirm | None, held: contextlib.ExitStack
) -> tuple[RunSelection, InlayError | None]:
    """(which run is meant, why it cannot be): of several processes the others must learn it too.

    Raises: the reason, where there is one process.
    """
    started, claim = launch(), RunSelection(Run(Path()))
    try:
        require_data_parallel(os.environ)
        _refuse_early(config)
        if started.rank == 0:
            claim = _claim(config, goes_on, fresh, confirm, reporter, held)
            reporter.stage("loading torch")
    except InlayError as error:
        if started.size == 1:
            raise
        return claim, error
    return claim, None


def _prepared(
    config: Config, claim: RunSelection, longer: dict[str, Any], group: ProcessGroup, stop: StopRequest, reporter: Reporter,
    held: contextlib.ExitStack, began: float,
) -> tuple[Run, Attempt | None, Callable[[], None] | None]:  # fmt: skip
    """(the run, with its folder; all its parts, None where it is finished; what takes them to where the run goes on)."""
    from inlay.evaluation.compare import primary_metric
    from inlay.training.agreement import require_same
    from inlay.training.branch import begin as begin_branch
    from inlay.training.branch import origin
    from inlay.training.loop import TrainingLoop
    from inlay.training.setup import set_up
    from inlay.workflows.train_process import Attempt

    primary_metric(config.eval.metric)
    run = Run(Path(group.broadcast_text(str(claim.run.path))))
    goes_on = bool(group.broadcast_text("resumed" if claim.goes_on else ""))
    if longer and not goes_on:
        raise RunError(f"{run.path}: nothing to extend: no checkpoint of an earlier start. Leave --extend out.")
    effective = _stored_config(run, config, longer) if goes_on else config
    if goes_on and run.status == FINISHED and effective.train == run.config.train:
        reporter.note(f"{run.path}: already finished at step {run.result.steps}; nothing to do.")
        return run, None, None
    reporter = logged = LoggedReporter(reporter)
    machine = _machine(effective, group) if group.is_first else {}
    for warning in machine.get("warnings", ()):
        reporter.note(f"warning: {warning}")
    job = set_up(effective, reporter, group, run.base_revision if goes_on else None)
    has_answers = any(e.messages[0].role != "text" for e in job.data.heldout_examples)
    primary_metric(effective.eval.metric, has_answers=has_answers)
    require_same(job, config)
    branched = None
    if goes_on:
        _refuse_other_inputs(run, job)
    else:
        branched = origin(job)
    held.enter_context(stop_on_signals(stop))
    if group.is_first:
        require_space(run.path, _space_needed_bytes(job))
        run = _open_folder(claim, job, reporter, held, named=config.output.name is not None or group.size > 1)
        run.write_record(replace(run.record, machine=machine))
        logged.opened(run)
        held.enter_context(_recorded(run))
    run = job.run = Run(Path(group.broadcast_text(str(run.path))))  # from here on the folder is there
    attempt = Attempt(job, TrainingLoop([job], stop, reporter), began)
    if branched:
        return run, attempt, partial(begin_branch, job, *branched)
    return run, attempt, attempt.restore if goes_on else None


def _refuse_early(config: Config) -> None:
    """Raises for data and folders that cannot work, before torch is loaded and anything is computed."""
    from inlay.data.reading.folders import is_several
    from inlay.data.reading.read import stream_examples
    from inlay.data.reading.sources import is_data_name

    require_writable(Path(config.output.folder))
    files = [*config.data.train_files, *([TrainFile(path=config.data.eval)] if config.data.eval else [])]
    for file in files:
        path, columns = file.path, config.data.columns if file.columns is None else file.columns
        if path and (path_exists(Path(path)) or is_several(path) or is_data_name(path)):
            _, examples = stream_examples(
                path, file.format or config.data.format, columns, role_weights=config.data.weights_of_roles
            )
            next(examples, None)  # the first row shows whether the format fits


def _machine(config: Config, group: ProcessGroup) -> dict[str, Any]:
    """A quick `inlay doctor` for run.json. A machine that cannot be examined is no reason to stop."""
    from inlay.workflows.doctor import machine_record

    try:
        return machine_record(True, Path(config.output.folder), group.device(config.model.device)).to_json()
    except OSError as error:
        return {"warnings": [f"this machine cannot be looked at: {error}"]}


def _claim(
    config: Config, resume: bool, fresh: bool, confirm: Confirm | None, reporter: Reporter, held: contextlib.ExitStack
) -> RunSelection:
    """What is meant by the name and the flags; a run that lies there is locked. Raises: RunError when undecided."""
    if config.output.name is None:
        earlier = runs.numbered(config)
        if not resume or not earlier:
            unfinished = [r for r in earlier if r.status != FINISHED and r.has_checkpoint() and _is_free(r)]
            if unfinished and not fresh:
                last = unfinished[-1]
                if confirm and confirm(f"{last.path} is unfinished. Go on with it? (no starts a new run)"):
                    held.enter_context(owned(last.path))
                    return RunSelection(last, goes_on=True)
                if not confirm:
                    reporter.note(f"{last.path} is unfinished; --resume would go on with it. This is a new run.")
            return RunSelection(runs.next_numbered(config))
        run = earlier[-1]
    else:
        run = Run(Path(config.output.folder) / config.output.name)
    if not run.path.exists():
        return RunSelection(run)
    if not run.path.is_dir():
        raise RunError(f"{run.path}: a file, not the folder of a run. Give another --name.")
    if all(
        path.name in (LOCK, OWNER) or is_staging(path) for path in run.path.iterdir()
    ):  # a start that was killed at once
        held.enter_context(owned(run.path))
        return RunSelection(run, moves_aside=True)
    if not run.is_recorded and not (run.path / "config.yaml").exists():
        raise RunError(f"{run.path}: a folder, but not one of a run. Give another --name.")
    held.enter_context(owned(run.path))
    finished, started = run.status == FINISHED, run.has_checkpoint()
    if fresh:
        return RunSelection(run, moves_aside=True)
    if resume and (finished or started):
        return RunSelection(run, goes_on=True)
    if finished:
        raise RunError(f"{run.path}: this run is finished. Give another --name, or --fresh to move it aside.")
    if started:
        if confirm is None:
            raise RunError(f"{run.path}: has checkpoints of an earlier start. Give --resume to go on, or --fresh.")
        if confirm(f"{run.path} has checkpoints of an earlier start. Go on from there? (no starts anew)"):
            return RunSelection(run, goes_on=True)
    return RunSelection(run, moves_aside=True)


def _is_free(run: Run) -> bool:
    try:
        with owned(run.path):
            return True
    except RunError:
        return False


def anchored(config: Config) -> Config:
    """The config with every file and folder that is here named from the root: a run is of use from anywhere."""
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


def parse_extension(text: str) -> dict[str, Any]:
    """`600` (steps in all) or `5epochs`, as settings of the train section. Raises: ConfigError."""
    number = text.lower().removesuffix("epochs").removesuffix("epoch").strip()
    if not number.isdigit() or int(number) == 0:
        raise ConfigError(f"--extend: not a length (got {text!r}). Give the steps in all, as 600, or 5epochs.")
    steps = number == text.strip()
    return {"max_steps": int(number)} if steps else {"epochs": int(number), "max_steps": None}


def _stored_config(run: Run, wanted: Config, longer: dict[str, Any]) -> Config:
    """The config that the run began with, as long as `longer` says.

    Raises: ConfigError listing what was now asked to be otherwise.
    """
    stored = run.config
    before, now = explicit_values(stored, everything=True), explicit_values(wanted)
    differing = [
        f"  {path}: {before.get(path)!r} then, {value!r} now"
        for path, value in now.items()
        if value != "auto"
        and before.get(path) != value
        and not path.startswith(_FREE_TO_CHANGE)
        and path not in PLACES
        and not (longer and path in ("train.epochs", "train.max_steps"))
    ]
    if differing:
        raise ConfigError(
            f"{run.path}: was started with other settings:\n" + "\n".join(differing) + "\n"
            "Leave them out to resume, or start anew with --fresh or another --name."
        )
    changes: dict[str, Any] = {"track": wanted.track} if "track" in wanted.model_fields_set else {}
    for name in ("model", "data", "adapter"):
        moved = {path.partition(".")[2]: now[path] for path in PLACES if path.startswith(name) and path in now}
        changes[name] = getattr(stored, name).model_copy(update=moved)
    if longer:
        changes["train"] = stored.train.model_copy(update=longer)
    return stored.model_copy(update=changes)


_INPUTS = {
    "settings_hash": "a setting in its config.yaml",
    "data_hash": "the data file",
    "base_digest": "the base model",
    "tokenizer_hash": "the tokenizer",
    "chat_template_hash": "the chat template",
}


def _refuse_other_inputs(run: Run, job: AdapterJob) -> None:
    from inlay.evaluation.score import read_held_out

    record = run.record
    base = job.recognise(record)
    then, now = record.inputs, job.inputs
    other = [key for key in now if then[key] != now[key]]
    changed = [_INPUTS[key] + (f" ({base})" if key == "base_digest" else "") for key in other]
    digests = "".join(f"\n  {key}: {then[key][:12]} then, {now[key][:12]} now" for key in other)
    if not changed:
        kept, drawn = _wherever_it_lies(read_held_out(run.heldout)), _wherever_it_lies(job.data.heldout_examples)
        changed = [] if kept == drawn else ["the held-out rows"]
    if changed:
        raise RunError(
            f"{run.path}: {' and '.join(changed)} changed since this run began; going on would mix two runs. "
            f"Put it back, or start anew with --fresh or another --name.{digests}"
        )


def _wherever_it_lies(examples: Iterable[Example]) -> list[Example]:
    """The rows with the names of their files only: a file may be elsewhere by now, or be named from elsewhere."""
    return [replace(e, source=replace(e.source, file=Path(e.source.file).name)) for e in examples]


def _open_folder(
    claim: RunSelection, job: AdapterJob, reporter: Reporter, held: contextlib.ExitStack, *, named: bool
) -> Run:
    """The run's folder, locked and with its first files in it."""
    from inlay.data.reading.read import as_lines
    from inlay.hardware.facts import library_versions
    from inlay.hardware.probe import dtype_name

    run = claim.run
    if claim.goes_on:
        resumed_at = datetime.now(UTC).isoformat(timespec="seconds")
        run.write_record(replace(run.record, status=RUNNING, error=None, failed_step=None, resumed_at=resumed_at))
        if job.config.train != run.config.train:  # extended
            write_file(run.path / "config.yaml", as_yaml(anchored(job.config), job.reasons))
        sweep_staging(run.path)
        sweep_staging(run.checkpoints)
        sweep_staging(run.reports)
        return run
    if claim.moves_aside:
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
        **(job.inputs | job.base_record),
    )
    run.write_record(begun)
    return run


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Leaves the way the run ended in run.json, and a traceback in log.txt for what nobody foresaw."""
    try:
        yield
    except KeyboardInterrupt:  # a second Ctrl+C, which waits for nothing
        from inlay.training.loop import resume_hint

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
                from inlay.training import finish

                finish.report(run, run.record)
        raise
    except BaseException as error:
        with contextlib.suppress(InlayError):
            run.write_record(replace(run.record, status=FAILED, error=f"{type(error).__name__}: {error}"))
            run.log(traceback.format_exc())
            error.add_note(f"traceback in {run.path / 'log.txt'}")
        raise


def _space_needed_bytes(job: AdapterJob) -> int:
    from inlay.training import escape

    checkpoints = job.config.train.keep_checkpoints + 2
    if job.config.train.on_plateau == "escape":
        checkpoints += len(escape.needed(job.total_steps, job.save_every, job.eval_every))
    return job.trainable * (12 * checkpoints + 4) + 20_000_000


class _Silent:
    """The reporter of the ranks that do not speak."""

    def stage(self, text: str) -> None: ...
    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def start(self, total: int, done: int, unit: str) -> None: ...
    def progress(self, done: int, values: Figures) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
