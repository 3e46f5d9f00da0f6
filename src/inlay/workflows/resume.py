"""Resuming a run: which run is meant, the config that it began with, inputs that must be the same, its newest checkpoint.

`select_run` locks the run before torch is imported; `stored_config`, `refuse_other_inputs` and `restore` follow in this order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.render import explicit_values
from inlay.config.sections.base import Assignments
from inlay.errors import ConfigError, RunError, count_shown
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.record import FINISHED
from inlay.runs.reporter import Reporter
from inlay.storage import LOCK, OWNER, is_staging, owned

if TYPE_CHECKING:
    from inlay.data.types import Example
    from inlay.training.job import AdapterJob

Confirm = Callable[[str], bool]
"""Puts a yes-or-no question to the user."""
_FREE_TO_CHANGE = ("output.", "track.", "preset")  # settings that a resumed run does not read from its own config


@dataclass(frozen=True, slots=True)
class RunSelection:
    """The run that is meant, and what is done about what lies there."""

    run: Run
    resumes: bool = False
    """Whether it starts at its newest checkpoint; a finished run has nothing to do."""
    moves_aside: bool = False
    """Whether what lies there now is moved aside first."""


def select_run(
    config: Config, resume: bool, fresh: bool, confirm: Confirm | None, reporter: Reporter, held: contextlib.ExitStack
) -> RunSelection:
    """The run that name and flags mean, locked where it is there already. Raises: RunError when undecided."""
    if config.output.name is None:
        earlier = runs.numbered(config)
        if not resume or not earlier:
            unfinished = [r for r in earlier if r.status != FINISHED and r.has_checkpoint() and _is_free(r)]
            if unfinished and not fresh:
                last = unfinished[-1]
                if confirm and confirm(f"{last.path} is unfinished. Go on with it? (no starts a new run)"):
                    held.enter_context(owned(last.path))
                    return RunSelection(last, resumes=True)
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
        return RunSelection(run, resumes=True)
    if finished:
        raise RunError(f"{run.path}: this run is finished. Give another --name, or --fresh to move it aside.")
    if started:
        if confirm is None:
            raise RunError(f"{run.path}: has checkpoints of an earlier start. Give --resume to go on, or --fresh.")
        if confirm(f"{run.path} has checkpoints of an earlier start. Go on from there? (no starts anew)"):
            return RunSelection(run, resumes=True)
    return RunSelection(run, moves_aside=True)


def _is_free(run: Run) -> bool:
    try:
        with owned(run.path):
            return True
    except RunError:
        return False


def parse_extension(text: str) -> Assignments:
    """`600` (steps in all) or `5epochs`, as settings of the train section. Raises: ConfigError."""
    number = text.lower().removesuffix("epochs").removesuffix("epoch").strip()
    if not number.isdigit() or int(number) == 0:
        raise ConfigError(f"--extend: not a length (got {text!r}). Give the steps in all, as 600, or 5epochs.")
    steps = number == text.strip()
    return {"max_steps": int(number)} if steps else {"epochs": int(number), "max_steps": None}


def stored_config(run: Run, wanted: Config, longer: Assignments) -> Config:
    """The config that the run began with, as long as `longer` says.

    Raises: ConfigError listing the settings that differ now.
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
    changes: dict[str, object] = {"track": wanted.track} if "track" in wanted.model_fields_set else {}
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


def refuse_other_inputs(run: Run, job: AdapterJob) -> None:
    """Raises: RunError when data, base, tokenizer, template or settings are not those that the run began with."""
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


def restore(job: AdapterJob, note: Callable[[str], None]) -> None:
    """Puts the newest complete checkpoint into the job; damaged newer ones are moved aside. Raises: RunError."""
    from inlay.data.batches import epochs_done
    from inlay.training import checkpoint as checkpoints
    from inlay.training.optimizer import learning_rate

    group = job.base.group
    chosen, settings = "", job.config.train
    if group.is_first:
        newest, faults = checkpoints.newest_valid(job.run.checkpoints, job.inputs)
        if newest is None:
            faults_text = "".join(f"\n  {fault}" for _, fault in faults)
            raise RunError(f"{job.run.path}: no checkpoint can be read. Start anew with --fresh.{faults_text}")
        for damaged, fault in faults:
            note(f"passed over a damaged checkpoint, now {checkpoints.set_aside(damaged).name}: {fault}")
        chosen = str(newest.path)
    newest = checkpoints.Checkpoint(Path(group.broadcast_text(chosen)))
    if other := _other_versions(newest.about.get("versions", {}), job.versions):
        note(f"{newest.path.name} was computed with other versions ({other}): bits may differ from here on")
    job.restore(newest)
    record, progress = job.run.record, job.progress
    job.out_of_memory_events = list(record.out_of_memory)
    job.eval_batch_size = record.eval_batch_size  # as it was planned then
    if group.is_first:
        last_logged = progress.step - (progress.unfinished is not None)
        if progress.metrics_seal and (warning := job.run.mend_metrics(progress.metrics_seal)):
            note(warning)
        job.run.truncate_metrics(last_logged, progress.rollbacks)
    if progress.step > job.total_steps:
        raise RunError(
            f"{job.run.path}: is at step {progress.step} already, past {job.total_steps}. Extend it further."
        )
    if progress.stopped_early and job.total_steps > progress.planned_steps:
        progress.stopped_early = False  # extended since
    progress.planned_steps = job.total_steps
    rate = learning_rate(settings, job.peak_learning_rate, min(progress.step + 1, job.total_steps), job.total_steps)
    seen = count_shown(progress.step * min(settings.batch_size, job.train.drawn), "row")
    note(
        f"going on after step {progress.step} of {job.total_steps} "
        f"(epoch {epochs_done(progress.position(progress.step), job.train.drawn, settings.batch_size):.2f}, learning rate "
        f"{rate * progress.learning_rate_factor:.3g}, {seen} seen) from {newest.path}"
    )


def _other_versions(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> str:
    """The versions that differ, as text; empty where nothing does, or where the checkpoint does not say."""
    return ", ".join(f"{name} {then[name]} then, {now.get(name)} now" for name in then if then[name] != now.get(name))
