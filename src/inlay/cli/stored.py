"""checkpoints: what a run has kept."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Folder, Json, Measuring, RunName
from inlay.cli.outcome import Output
from inlay.cli.train import Extend

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")]
Step = Annotated[int, typer.Argument(metavar="STEP", help="The step of the checkpoint; the list has them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def add_to(app: typer.Typer) -> None:
    checkpoints = group("The checkpoints of a run: list, show, test and keep them, or go on from the newest.")
    for name, function in (
        ("list", listed), ("show", show), ("test", against_base), ("resume", resume), ("pin", pin), ("unpin", unpin),
        ("clean", clean), ("delete", delete),
    ):  # fmt: skip
        verb(checkpoints, name=name)(function)
    app.add_typer(checkpoints, name="checkpoints", rich_help_panel="Train")


def listed(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Every checkpoint with its step, losses, size, and whether its files are whole."""
    from inlay import api
    from inlay.cli import view

    rows = api.checkpoints(run, folder=output)
    return Output(rows, view.checkpoints_text(rows))


def show(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """What one checkpoint holds: progress, metrics, files, and what it was made from."""
    from inlay import api
    from inlay.cli import view

    details = api.checkpoint(run, step, folder=output)
    return Output(details, view.checkpoint_text(details))


def against_base(
    run: Run,
    step: Step,
    settings: Measuring = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Compare a checkpoint with the base on the held-out rows, as `inlay compare RUN@STEP` does."""
    from inlay import api
    from inlay.cli import progress, view

    comparison = api.compare(f"{run}@{step}", settings=settings, reporter=progress.reporter(), folder=output)
    return Output(comparison.to_json(), view.comparisons_text(comparison, view.width()))


def resume(run: RunName = None, extend: Extend = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Go on with a run from its newest complete checkpoint."""
    from inlay import api
    from inlay.cli import progress, view

    finished = api.resume(run, extend=extend, reporter=progress.reporter(), folder=output)
    return Output(finished.result.to_json(), view.after_training(finished))


def pin(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """Keep a checkpoint whatever retention says."""
    from inlay import api

    return Output(api.pin(run, step, folder=output), f"step {step} is pinned")


def unpin(run: Run, step: Step, output: Folder = "results", as_json: Json = False) -> Output:
    """Leave a checkpoint to retention again."""
    from inlay import api

    return Output(api.pin(run, step, keep=False, folder=output), f"step {step} is no longer pinned")


def clean(
    run: RunName = None,
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Newest complete checkpoints to keep.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    yes: Yes = False,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Delete checkpoints but the newest, the best and the pinned ones. Asks first."""
    from inlay import api
    from inlay.cli import progress, view

    going = api.clean_checkpoints(run, keep=keep, dry_run=True, folder=output)
    if going and not dry_run:
        progress.require_yes(f"delete {view.steps_text(going)}?", yes, as_json)
        going = api.clean_checkpoints(run, keep=keep, folder=output)
    verb_text = "would delete" if dry_run else "deleted"
    return Output(going, f"{verb_text} {view.steps_text(going)}" if going else "nothing to delete")


def delete(run: Run, step: Step, yes: Yes = False, output: Folder = "results", as_json: Json = False) -> Output:
    """Delete one checkpoint. Asks first; the newest whole one, the best and pinned ones stay."""
    from inlay import api
    from inlay.cli import progress

    progress.require_yes(f"delete the checkpoint of step {step}?", yes, as_json)
    gone = api.delete_checkpoint(run, step, folder=output)
    return Output(gone, f"deleted {gone['path']}")
