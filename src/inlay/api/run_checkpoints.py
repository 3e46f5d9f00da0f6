"""The checkpoints of a run: listed, shown, pinned, deleted."""

from __future__ import annotations

from inlay.runs.folder import RunLike, find
from inlay.training import checkpoint_commands
from inlay.training.checkpoint_commands import CheckpointDetails, CheckpointRow
from inlay.typed_json import JsonObject


def checkpoints(run: RunLike = None, *, folder: str = "results") -> list[CheckpointRow]:
    """Every checkpoint of a run, oldest first: step, losses, bytes, whether it is valid, best, pinned."""
    return checkpoint_commands.rows(find(run, folder))


def checkpoint(run: RunLike, step: int, *, folder: str = "results") -> CheckpointDetails:
    """Contents of the checkpoint of a step. Raises: RunError when there is none; StorageError when it is damaged."""
    return checkpoint_commands.details(find(run, folder), step)


def pin(run: RunLike, step: int, *, keep: bool = True, folder: str = "results") -> JsonObject:
    """{"step", "pinned"}, after the checkpoint was pinned, so that nothing deletes it, or unpinned (`keep=False`)."""
    checkpoint_commands.pin(find(run, folder), step, keep)
    return {"step": step, "pinned": keep}


def clean_checkpoints(
    run: RunLike = None, *, keep: int = 1, dry_run: bool = False, folder: str = "results"
) -> list[CheckpointRow]:
    """The rows of the complete checkpoints that were deleted: all but the newest `keep`, the best and the pinned."""
    return checkpoint_commands.clean(find(run, folder), keep, dry_run=dry_run)


def delete_checkpoint(run: RunLike, step: int, *, folder: str = "results") -> CheckpointRow:
    """The row of the one checkpoint that was deleted. Raises: RunError for the newest valid one, the best, a pinned one."""
    return checkpoint_commands.remove(find(run, folder), step)
