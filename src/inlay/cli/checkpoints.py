"""inlay checkpoints: list, show, test, resume, pin, unpin, clean, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import TRAIN, Extend, Folder, Json, Measuring, RunName
from inlay.cli.render.outcome import Output

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]
Step = Annotated[int, typer.Argument(metavar="STEP", help="Step of the checkpoint, as listed.")]
Yes = Annotated[bool, typer.Option("--yes", help="Delete without asking.")]


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    checkpoints = group("Checkpoints of a run: list, show, compare, pin and delete them, or resume from the newest.")
    verb(checkpoints, ["inlay checkpoints list news"], name="list")(listed)
    verb(checkpoints, ["inlay checkpoints show news 120"])(show)
    verb(checkpoints, ["inlay checkpoints test news 120 --set eval.max_rows=50"], name="test")(against_base)
    verb(checkpoints, ["inlay checkpoints resume news", "inlay checkpoints resume news --extend 5epochs"])(resume)
    verb(checkpoints, ["inlay checkpoints pin news 120"])(pin)
    verb(checkpoints, ["inlay checkpoints unpin news 120"])(unpin)
    verb(checkpoints, ["inlay checkpoints clean news --keep 3 --dry-run"])(clean)
    verb(checkpoints, ["inlay checkpoints delete news 120"])(delete)
    app.add_typer(checkpoints, name="checkpoints", rich_help_panel=TRAIN)


def listed(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """List the checkpoints: step, losses, size, and whether the files are complete."""
    rows = api.checkpoints(run, folder=output)
    return Output(rows, render.checkpoints.checkpoints_text(rows))


def show(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """Show one checkpoint: progress, metrics, files, and the digests of data and base."""
    details = api.checkpoint(run, step, folder=output)
    return Output(details, render.checkpoints.checkpoint_text(details))


def against_base(
    run: Run,
    step: Step,
    settings: Measuring = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Compare a checkpoint with the base on the held-out rows, as `inlay compare RUN@STEP` does."""
    comparison = api.compare(f"{run}@{step}", settings=settings, reporter=render.progress.reporter(), folder=output)
    return Output(comparison.to_json(), render.comparison.comparisons_text(comparison, render.terminal.width()))


def resume(run: RunName = None, extend: Extend = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Resume a run from its newest complete checkpoint."""
    finished = api.resume(run, extend=extend, reporter=render.progress.reporter(), folder=output)
    return Output(finished.result.to_json(), render.run.after_training(finished))


def pin(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """Protect a checkpoint from deletion."""
    return Output(api.pin(run, step, folder=output), f"step {step} is pinned")


def unpin(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """Allow a pinned checkpoint to be deleted again."""
    return Output(api.pin(run, step, keep=False, folder=output), f"step {step} is no longer pinned")


def clean(
    run: RunName = None,
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Number of newest complete checkpoints to keep.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted, delete nothing.")] = False,
    yes: Yes = False,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Delete all checkpoints but the newest, the best and the pinned ones. Asks first."""
    going = api.clean_checkpoints(run, keep=keep, dry_run=True, folder=output)
    if going and not dry_run:
        render.progress.require_yes(f"delete {render.checkpoints.steps_text(going)}?", yes, as_json)
        going = api.clean_checkpoints(run, keep=keep, folder=output)
    verb_text = "would delete" if dry_run else "deleted"
    return Output(going, f"{verb_text} {render.checkpoints.steps_text(going)}" if going else "nothing to delete")


def delete(run: Run, step: Step, yes: Yes = False, output: Folder = "results", as_json: Json = False) -> Output:
    """Delete one checkpoint. Asks first; the newest complete one, the best and pinned ones are refused."""
    render.progress.require_yes(f"delete the checkpoint of step {step}?", yes, as_json)
    gone = api.delete_checkpoint(run, step, folder=output)
    return Output(gone, f"deleted {gone['path']}")
