"""Everything a run needs to go on as if it had never stopped, in one folder that appears whole or not at all.

`step-000120/`: adapter.safetensors optimizer.safetensors rng.safetensors state.json manifest.json. No pickle.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from inlay.errors import StorageError
from inlay.models.adapter import AdapterState
from inlay.storage import explained, read_manifest, verified, write_folder
from inlay.training.optimizer import restore_state, state_tensors


@dataclass
class Progress:
    """Where the run is. The step number is the data cursor: order is a pure function of seed and step."""

    step: int = 0
    best_step: int | None = None
    best_eval_loss: float | None = None
    base_eval_loss: float | None = None
    evals_without_gain: int = 0
    tokens_seen: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    stopped_early: bool = False
    train_time_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


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


def rng_state() -> dict[str, Tensor]:
    """Every generator that training may draw from."""
    version, words, gauss = random.getstate()
    assert gauss is None
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937"
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "numpy": torch.tensor([*(int(k) for k in keys), position, has_gauss], dtype=torch.int64),  # type: ignore[arg-type, unused-ignore]
        "numpy_cached": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state |= {f"cuda.{n}": s for n, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_cached"][0])
    np.random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, cached))
    devices = sorted((k for k in state if k.startswith("cuda.")), key=lambda k: int(k.partition(".")[2]))
    if devices and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state[k] for k in devices])


def write(
    folder: Path, adapter: AdapterState, optimizer: Optimizer, progress: Progress, rng: dict[str, Tensor]
) -> Checkpoint:
    """The checkpoint of `progress.step`. Nothing is done when it is there already."""
    final = folder / f"step-{progress.step:06d}"
    if final.exists():
        return Checkpoint(final)
    tensors, values = state_tensors(optimizer)

    def fill(staging: Path) -> None:
        save_file({k: v.contiguous() for k, v in adapter.tensors.items()}, staging / "adapter.safetensors")
        save_file(tensors, staging / "optimizer.safetensors")
        save_file(rng, staging / "rng.safetensors")
        state = {"progress": asdict(progress), "optimizer": values, "adapter": adapter.settings}
        (staging / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False), encoding="utf-8")

    about = {"step": progress.step, "eval_loss": progress.eval_loss, "train_loss": progress.train_loss}
    write_folder(final, fill, about)
    return Checkpoint(final)


def listed(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first, unverified."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return [Checkpoint(p) for p in sorted(found, key=lambda p: int(p.name.removeprefix("step-")))]


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are all what its manifest says, and what was wrong with newer ones."""
    faults = []
    for checkpoint in reversed(listed(folder)):
        try:
            verified(checkpoint.path)
        except StorageError as error:
            faults.append(str(error))
            continue
        return checkpoint, faults
    return None, faults


def load(checkpoint: Checkpoint) -> tuple[AdapterState, dict[str, Tensor], dict[str, Any], Progress, dict[str, Tensor]]:
    """(adapter, optimizer tensors, optimizer values, progress, rng). Raises: StorageError when it is damaged."""
    path = checkpoint.path
    verified(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        adapter = AdapterState(state["adapter"], load_file(path / "adapter.safetensors"))
        optimizer, rng = load_file(path / "optimizer.safetensors"), load_file(path / "rng.safetensors")
        return adapter, optimizer, state["optimizer"], Progress(**state["progress"]), rng
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read ({error}).") from None


def restore(optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any], rng: dict[str, Tensor]) -> None:
    restore_state(optimizer, tensors, values)
    restore_rng(rng)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Deletes all but the newest `keep` and the best. A delete that a kill cuts short leaves no half checkpoint."""
    for checkpoint in listed(folder)[:-keep]:
        if checkpoint.step != best_step:
            doomed = checkpoint.path.with_name(f".staging-delete-{checkpoint.path.name}")
            with explained(checkpoint.path):
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed)
