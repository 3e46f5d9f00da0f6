"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all.

`step-000120/`: adapter.safetensors optimizer.safetensors state.json manifest.json; beside them `pinned.json`. No pickle. The learning rate,
the order of rows and dropout are pure functions of seed and step, so the step number is all that they need.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from inlay.errors import RunError, StorageError, TrainingError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.runs.record import Diagnosis, Plateau, Rollback
from inlay.storage import (
    FileEntry,
    explained,
    move_aside,
    read_manifest,
    replace_folder,
    require_space,
    verified,
    write_json,
)
from inlay.training.optimizer import state_tensors
from inlay.typed_json import JsonObject, decode

ADAPTER, OPTIMIZER = "adapter.safetensors", "optimizer.safetensors"
_PINS = "pinned.json"


class StepMetrics(TypedDict, total=False):
    """The line of a step in metrics.jsonl. A step that was skipped or not evaluated lacks some of it."""

    step: int
    epoch: float
    event: str
    error: str
    loss: float
    learning_rate: float
    grad_norm: float
    spike: float
    """Robust deviations above the median of the earlier gradient norms."""
    micro_batch_size: int
    tokens_per_s: float
    memory_bytes: float
    time_s: float
    eval_loss: float
    best: bool
    diagnosis: str
    reason: str
    done: str
    """The answer to the diagnosis."""
    out_of_memory: list[JsonObject]


@dataclass
class Progress:
    """State of the run after its last optimizer step."""

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
    planned_steps: int = 0
    """Steps in all that the run was to make."""
    train_time_s: float = 0.0
    saved_step: int = 0
    """Of the last checkpoint that was due; one that a signal caused is no place to roll back to."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose batch was not finite and changed nothing."""
    rollbacks: list[Rollback] = field(default_factory=list)
    recent_norms: list[float] = field(default_factory=list)
    spikes: int = 0
    metrics_seal: list[Any] | None = None
    """[bytes, sha256] of metrics.jsonl as of this checkpoint."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    curve: list[list[Any]] = field(default_factory=list)
    """The points of `plateau.points_of`."""
    diagnosis: Diagnosis | None = None
    """Of the curve at the last evaluation."""
    plateau: Plateau | None = None
    """The one that `train.on_plateau: escape` is to escape from."""
    unfinished: StepMetrics | None = None
    """Metrics of the last step while its evaluation and its line in metrics.jsonl are still to come."""

    def position(self, step: int) -> int:
        """Number of the batch of the data order that a step takes: its own, or a later one after rollbacks."""
        last = next((r for r in reversed(self.rollbacks) if r.step < step), None)
        return step + (last.batches_passed[1] - last.step if last else 0)

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
        """Factor on the scheduled learning rate since the last rollback."""
        return self.rollbacks[-1].learning_rate_factor if self.rollbacks else 1.0

    @staticmethod
    def from_json(value: JsonObject) -> Progress:
        """The progress in a state.json. Raises: ValueError naming the key at fault."""
        if unknown := value.keys() - {one.name for one in fields(Progress)}:
            raise ValueError(f"progress has unknown keys: {', '.join(sorted(unknown))}")
        return decode(Progress, value, "progress")


class CheckpointAbout(TypedDict, total=False):
    """The part of a checkpoint's manifest.json besides its files. Stored checkpoints may lack any of it."""

    step: int
    eval_loss: float | None
    """None where the step was not evaluated."""
    train_loss: float | None
    best_step: int | None
    inputs: dict[str, str]
    """Digests of everything that decides the numbers of the run."""
    versions: dict[str, str | None]
    """Of the libraries that computed it."""


class CheckpointManifest(CheckpointAbout):
    """The manifest.json of a checkpoint."""

    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A written checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        """The optimizer step that it was written after."""
        return int(self.path.name.removeprefix("step-"))

    @property
    def about(self) -> CheckpointManifest:
        """Its manifest; the files are not looked at. Raises: StorageError."""
        return cast(CheckpointManifest, read_manifest(self.path))

    def verified(self) -> CheckpointManifest:
        """Its manifest, once all files agree with it. Raises: StorageError."""
        return cast(CheckpointManifest, verified(self.path))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of everything that a checkpoint holds: training may go on while they are written."""

    adapter: AdapterState
    optimizer: dict[str, Tensor]
    state: JsonObject
    """Content of state.json."""
    about: CheckpointAbout

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.adapter.tensors.values(), *self.optimizer.values()))


def snapshot(
    adapter: AdapterState,
    optimizer: Optimizer,
    progress: Progress,
    inputs: Mapping[str, str] = MappingProxyType({}),
    versions: Mapping[str, str | None] = MappingProxyType({}),
) -> Snapshot:
    """The checkpoint of `progress.step`; `inputs` are the digests of what the run was made from, `versions` those of
    the libraries that computed it.

    Raises: TrainingError when a value is not finite: it never reaches the disk.
    """
    tensors, values = state_tensors(optimizer)
    require_finite_state({**adapter.tensors, **{f"optimizer state {k}": v for k, v in tensors.items()}})
    state = {"progress": asdict(progress), "optimizer": values, "adapter": adapter.settings}
    evaluated = progress.eval_loss if progress.eval_step == progress.step else None
    about: CheckpointAbout = {
        "step": progress.step, "eval_loss": evaluated, "train_loss": progress.train_loss,
        "best_step": progress.best_step, "inputs": dict(inputs), "versions": dict(versions),
    }  # fmt: skip
    return Snapshot(adapter, tensors, state, about)


def require_finite_state(tensors: Mapping[str, Tensor]) -> None:
    """Raises: TrainingError: what is not finite never reaches the disk."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{name} is not finite: nothing was written. Lower train.learning_rate.")


def write(folder: Path, kept: Snapshot) -> Checkpoint:
    """Puts a snapshot on the disk, durably.

    One that is there already stays when it says the same, gives way when the step had not been finished in it, and is
    moved aside when it is damaged. Raises: StorageError.
    """
    final = folder / f"step-{kept.about['step']:06d}"
    text = json.dumps(kept.state, indent=2, allow_nan=False)
    if final.exists():
        try:
            verified(final)
        except StorageError:
            set_aside(Checkpoint(final))
        else:
            if (final / "state.json").read_text(encoding="utf-8") == text:
                return Checkpoint(final)
    require_space(folder, kept.bytes + 1_000_000)

    def fill(staging: Path) -> None:
        save_file({k: v.contiguous() for k, v in kept.adapter.tensors.items()}, staging / ADAPTER)
        save_file(kept.optimizer, staging / OPTIMIZER)
        (staging / "state.json").write_text(text, encoding="utf-8")

    replace_folder(final, fill, kept.about)
    return Checkpoint(final)


def set_aside(checkpoint: Checkpoint) -> Path:
    """Renames a damaged checkpoint to `step-N.damaged-K`, where nothing looks for it and nothing deletes it."""
    return move_aside(checkpoint.path, "damaged")


def listed(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first, unverified."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return [Checkpoint(p) for p in sorted(found, key=lambda p: int(p.name.removeprefix("step-")))]


def newest_valid(
    folder: Path, inputs: Mapping[str, str] = MappingProxyType({})
) -> tuple[Checkpoint | None, list[tuple[Checkpoint, str]]]:
    """The newest checkpoint whose files are all what its manifest says, and the newer ones with what is wrong.

    One that was made from other `inputs`, as far as it names them, came from another run, and is wrong too.
    """
    faults = []
    for checkpoint in reversed(listed(folder)):
        try:
            about = checkpoint.verified()
            if about.get("step") != checkpoint.step:
                raise StorageError(f"{checkpoint.path}: holds step {about.get('step')}.")
            made_from = about.get("inputs") or {}
            other = sorted(key for key, digest in inputs.items() if made_from.get(key, digest) != digest)
            if other:
                raise StorageError(f"{checkpoint.path}: is of another run ({', '.join(other)} differ).")
        except StorageError as error:
            faults.append((checkpoint, str(error)))
            continue
        return checkpoint, faults
    return None, faults


def load(checkpoint: Checkpoint) -> tuple[AdapterState, dict[str, Tensor], JsonObject, Progress]:
    """(adapter, optimizer tensors, optimizer values, progress). Raises: StorageError when it is damaged."""
    path = checkpoint.path
    verified(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        # copies: what safetensors hands out is the file itself, mapped, and dies with it
        adapter, optimizer = (
            {k: v.clone() for k, v in load_file(path / name).items()} for name in (ADAPTER, OPTIMIZER)
        )
        return (
            AdapterState(state["adapter"], adapter),
            optimizer,
            state["optimizer"],
            Progress.from_json(state["progress"]),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read ({error}).") from None


# Retention goes by step numbers alone: clocks have no say in it.


def checkpoint_at(run: Run, step: int) -> Checkpoint:
    """The complete checkpoint of that step. Raises: RunError naming the steps there are; StorageError when damaged."""
    there = {c.step: c for c in listed(run.checkpoints)}
    if step not in there:
        known = f"There are {', '.join(map(str, sorted(there)))}" if there else "It has none"
        raise RunError(f"{run.path}: no checkpoint of step {step}. {known}.")
    there[step].verified()
    return there[step]


def adapter_at(run: Run, step: int) -> AdapterState:
    """The adapter of a checkpoint, as one ordinary LoRA on the bare base. Raises: RunError, StorageError."""
    return load(checkpoint_at(run, step))[0].exported()


def pinned(folder: Path) -> set[int]:
    """Steps that the user wants kept."""
    path = folder / _PINS
    if not path.exists():
        return set()
    try:
        return {int(step) for step in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{path}: cannot be read ({error}). Delete the file and pin again.") from None


def set_pinned(folder: Path, step: int, keep: bool) -> None:
    """Pins a step, or takes its pin away."""
    steps = pinned(folder)
    write_json(folder / _PINS, sorted(steps | {step} if keep else steps - {step}))


def surplus(folder: Path, keep: int, needed: Collection[int | None], every: int | None = None) -> list[Checkpoint]:
    """The checkpoints that retention gives up: neither among the newest `keep`, nor of a step that is needed (such as
    the best) or that `every` divides, nor pinned."""
    kept = {*needed, *pinned(folder)}
    older = listed(folder)[:-keep]
    return [c for c in older if c.step not in kept and not (every and c.step % every == 0)]


def delete(checkpoint: Checkpoint) -> None:
    """Removes it. A delete that a kill cuts short leaves no half checkpoint."""
    doomed = checkpoint.path.with_name(f".staging-delete-{checkpoint.path.name}")
    with explained(checkpoint.path):
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.path.rename(doomed)
        shutil.rmtree(doomed)


def prune(folder: Path, keep: int, needed: Collection[int | None], every: int | None = None) -> None:
    """Deletes what retention gives up."""
    for checkpoint in surplus(folder, keep, needed, every):
        delete(checkpoint)


class Saver:
    """At most one save is under way. Its failure is raised where the next one begins, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "inlay-save")  # Python waits for it even when the program ends in a hurry
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()

    def save(self, write: Callable[[], None]) -> None:
        """Begins `write` once the save before it is on the disk. Raises: what that one raised."""
        self.wait()
        self._under_way = self._pool.submit(write)

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises: what the save raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
