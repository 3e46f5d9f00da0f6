"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all.

`step-000120/`: adapter.safetensors optimizer.safetensors state.json manifest.json. No pickle. The learning rate,
the order of rows and dropout are pure functions of seed and step, so the step number is all that they need.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from inlay.errors import StorageError
from inlay.models.adapter import AdapterState
from inlay.storage import explained, move_aside, read_manifest, replace_folder, verified
from inlay.training.guards import require_finite_state
from inlay.training.optimizer import state_tensors

ADAPTER, OPTIMIZER = "adapter.safetensors", "optimizer.safetensors"


@dataclass
class Progress:
    """Where the run is, as of its last optimizer step."""

    step: int = 0
    best_step: int | None = None
    best_eval_loss: float | None = None
    base_eval_loss: float | None = None
    evals_without_gain: int = 0
    tokens_seen: int = 0
    trained_tokens_seen: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    """Of the last evaluation, which was after `eval_step`."""
    eval_step: int | None = None
    stopped_early: bool = False
    train_time_s: float = 0.0
    saved_step: int = 0
    """Of the last checkpoint that was due; one that a signal caused is no place to roll back to."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose batch was not finite and changed nothing."""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """Their lines in metrics.jsonl, which name what has held since."""
    recent_norms: list[float] = field(default_factory=list)
    spikes: int = 0
    metrics_seal: list[Any] | None = None
    """[bytes, sha256] of metrics.jsonl as of this checkpoint."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    curve: list[list[Any]] = field(default_factory=list)
    """The points of `plateau.points_of`."""
    diagnosis: dict[str, str] | None = None
    """What the curve said at the last evaluation."""
    unfinished: dict[str, Any] | None = None
    """Metrics of the last step while its evaluation and its line in metrics.jsonl are still to come."""

    def position(self, step: int) -> int:
        """Which batch of the data order a step takes: its own, or a later one where rollbacks have passed some."""
        last = next((r for r in reversed(self.rollbacks) if r["step"] < step), None)
        return step + (last["batches_passed"][1] - last["step"] if last else 0)

    def trained_batches(self) -> list[list[int]]:
        """[first, last] of every stretch of the data order that the weights have seen."""
        stretches: list[list[int]] = []
        for step in sorted({*range(1, self.step + 1)} - {*self.skipped}):
            batch = self.position(step)
            if stretches and stretches[-1][1] == batch - 1:
                stretches[-1][1] = batch
            else:
                stretches.append([batch, batch])
        return stretches

    @property
    def learning_rate_factor(self) -> float:
        return float(self.rollbacks[-1]["learning_rate_factor"]) if self.rollbacks else 1.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A written checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    @property
    def about(self) -> dict[str, Any]:
        return read_manifest(self.path)


def write(folder: Path, adapter: AdapterState, optimizer: Optimizer, progress: Progress) -> Checkpoint:
    """The checkpoint of `progress.step`.

    One that is there already stays when it says the same, gives way when the step had not been finished in it, and is
    moved aside when it is damaged.
    """
    final = folder / f"step-{progress.step:06d}"
    tensors, values = state_tensors(optimizer)
    require_finite_state({**adapter.tensors, **{f"optimizer state {k}": v for k, v in tensors.items()}})
    state = {"progress": asdict(progress), "optimizer": values, "adapter": adapter.settings}
    text = json.dumps(state, indent=2, allow_nan=False)
    if final.exists():
        try:
            verified(final)
        except StorageError:
            set_aside(Checkpoint(final))
        else:
            if (final / "state.json").read_text(encoding="utf-8") == text:
                return Checkpoint(final)

    def fill(staging: Path) -> None:
        save_file({k: v.contiguous() for k, v in adapter.tensors.items()}, staging / ADAPTER)
        save_file(tensors, staging / OPTIMIZER)
        (staging / "state.json").write_text(text, encoding="utf-8")

    evaluated = progress.eval_loss if progress.eval_step == progress.step else None
    about = {"step": progress.step, "eval_loss": evaluated, "train_loss": progress.train_loss}
    about |= {"best_step": progress.best_step}
    replace_folder(final, fill, about)
    return Checkpoint(final)


def set_aside(checkpoint: Checkpoint) -> Path:
    """Renames a damaged checkpoint to `step-N.damaged-K`, where nothing looks for it and nothing deletes it."""
    return move_aside(checkpoint.path, "damaged")


def listed(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first, unverified."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return [Checkpoint(p) for p in sorted(found, key=lambda p: int(p.name.removeprefix("step-")))]


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[tuple[Checkpoint, str]]]:
    """The newest checkpoint whose files are all what its manifest says, and the newer ones with what is wrong."""
    faults = []
    for checkpoint in reversed(listed(folder)):
        try:
            verified(checkpoint.path)
        except StorageError as error:
            faults.append((checkpoint, str(error)))
            continue
        return checkpoint, faults
    return None, faults


def load(checkpoint: Checkpoint) -> tuple[AdapterState, dict[str, Tensor], dict[str, Any], Progress]:
    """(adapter, optimizer tensors, optimizer values, progress). Raises: StorageError when it is damaged."""
    path = checkpoint.path
    verified(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        # copies: what safetensors hands out is the file itself, mapped, and dies with it
        adapter, optimizer = (
            {k: v.clone() for k, v in load_file(path / name).items()} for name in (ADAPTER, OPTIMIZER)
        )
        return AdapterState(state["adapter"], adapter), optimizer, state["optimizer"], Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read ({error}).") from None


def prune(folder: Path, keep: int, kept_steps: set[int | None]) -> None:
    """Deletes all but the newest `keep` and those of `kept_steps`."""
    for checkpoint in listed(folder)[:-keep]:
        if checkpoint.step not in kept_steps:
            delete(checkpoint)


def delete(checkpoint: Checkpoint) -> None:
    """A delete that a kill cuts short leaves no half checkpoint."""
    doomed = checkpoint.path.with_name(f".staging-delete-{checkpoint.path.name}")
    with explained(checkpoint.path):
        checkpoint.path.rename(doomed)
        shutil.rmtree(doomed)
