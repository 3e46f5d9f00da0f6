"""The checkpoints of a run for its user: look, pin, clean up, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from inlay.errors import RunError, StorageError
from inlay.runs.folder import Run
from inlay.storage import FileEntry, owned
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Checkpoint, checkpoint_at
from inlay.typed_json import JsonObject


class CheckpointRow(TypedDict):
    """One line of `inlay checkpoints list`; losses and size are None where the files are damaged."""

    step: int
    path: str
    valid: bool
    fault: str | None
    """The reason where it is not valid."""
    train_loss: float | None
    eval_loss: float | None
    size_bytes: int | None
    pinned: bool
    best: bool


class CheckpointDetails(TypedDict):
    """The contents of one checkpoint, as `inlay checkpoints show` has them."""

    path: str
    step: int
    train_loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    epoch: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_seen: int
    trained_tokens_seen: int
    pinned: bool
    inputs: dict[str, str]
    versions: dict[str, str | None]
    files: dict[str, FileEntry]


def rows(run: Run) -> list[CheckpointRow]:
    """Every checkpoint, oldest first: step, losses, bytes, whether it is complete, the best, pinned."""
    listed: list[CheckpointRow] = []
    best_step, pins = None, checkpoints.pinned(run.checkpoints)
    for checkpoint in checkpoints.listed(run.checkpoints):
        row: CheckpointRow = {
            "step": checkpoint.step, "path": str(checkpoint.path), "valid": True, "fault": None, "train_loss": None,
            "eval_loss": None, "size_bytes": None, "pinned": checkpoint.step in pins, "best": False,
        }  # fmt: skip
        try:
            about = checkpoint.verified()
            row["train_loss"], row["eval_loss"] = about.get("train_loss"), about.get("eval_loss")
            row["size_bytes"] = sum(f["size"] for f in about["files"].values())
            best_step = about.get("best_step")
        except StorageError as error:
            row["valid"], row["fault"] = False, str(error)
        listed.append(row)
    for row in listed:
        row["best"] = row["step"] == best_step
    return listed


def details(run: Run, step: int) -> CheckpointDetails:
    """The contents of one checkpoint: progress, digests of what it was made from, files, and its line of metrics."""
    checkpoint = checkpoint_at(run, step)
    about = checkpoint.about
    _, _, _, progress = checkpoints.load(checkpoint)
    line: JsonObject = next((m for m in reversed(run.metrics) if m.get("step") == step), {})
    return {
        "path": str(checkpoint.path), "step": step, "train_loss": about.get("train_loss"),
        "eval_loss": about.get("eval_loss"), "best_eval_loss": progress.best_eval_loss, "best_step": progress.best_step,
        "epoch": line.get("epoch"), "learning_rate": line.get("learning_rate"), "grad_norm": line.get("grad_norm"),
        "tokens_seen": progress.tokens_seen, "trained_tokens_seen": progress.trained_tokens_seen,
        "pinned": step in checkpoints.pinned(run.checkpoints), "inputs": about.get("inputs", {}),
        "versions": about.get("versions", {}), "files": about["files"],
    }  # fmt: skip


def clean(run: Run, keep: int, *, dry_run: bool = False) -> list[CheckpointRow]:
    """Deletes all complete checkpoints but the newest `keep`, the best, the pinned ones and those of `train.keep_every`.

    Damaged ones are left where they are. Returns the rows of what went, or would go. Raises: RunError when somebody
    trains here.
    """
    with owned(run.path):
        there = rows(run)
        whole = [row for row in there if row["valid"]]
        every = run.config.train.keep_every
        going = [
            row
            for row in (whole[:-keep] if keep else whole[:-1])
            if not (row["best"] or row["pinned"] or (every and row["step"] % every == 0))
        ]
        for row in [] if dry_run else going:
            checkpoints.delete(Checkpoint(Path(row["path"])))
    return going


def remove(run: Run, step: int) -> CheckpointRow:
    """Deletes one checkpoint, damaged or not.

    Raises: RunError when it is the newest whole one, the best, or pinned, when there is none, or somebody trains here.
    """
    with owned(run.path):
        there = {row["step"]: row for row in rows(run)}
        if step not in there:
            known = f"There are {', '.join(map(str, sorted(there)))}" if there else "It has none"
            raise RunError(f"{run.path}: no checkpoint of step {step}. {known}.")
        row = there[step]
        whole = [s for s, r in there.items() if r["valid"]]
        for reason, holds in (
            ("the newest whole one, from which the run goes on", row["valid"] and step == max(whole)),
            ("the best one", row["best"]),
            ("pinned; take the pin away first", row["pinned"]),
        ):
            if holds:
                raise RunError(f"{run.path}: the checkpoint of step {step} is {reason}. It stays.")
        checkpoints.delete(Checkpoint(Path(row["path"])))
    return row


def pin(run: Run, step: int, keep: bool) -> None:
    """Pins a checkpoint, so that retention never deletes it, or takes the pin away. Raises: RunError."""
    if keep:
        checkpoint_at(run, step)
    checkpoints.set_pinned(run.checkpoints, step, keep)
