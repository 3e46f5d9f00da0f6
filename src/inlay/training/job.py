"""One adapter being trained over a frozen base, and the checkpoint of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from inlay.config import Config
from inlay.data.curriculum import Curriculum
from inlay.data.encoding.token_arrays import TokenSet
from inlay.engine.autograd import Engine
from inlay.engine.profile import timed
from inlay.methods.state import AdapterState
from inlay.runs.folder import Run
from inlay.runs.record import OutOfMemoryEvent
from inlay.training import checkpoint as checkpoints
from inlay.training import escape
from inlay.training.checkpoint import Checkpoint, Progress
from inlay.training.optimizer import restore_state
from inlay.training.process_group import ProcessGroup
from inlay.training.saver import Saver
from inlay.training.trackers import Tracker

TRAINING, EVALUATION = "training", "evaluation"
"""Phases of a run that may run out of memory."""
_LOSS_SCALE = 1024.0  # of float16, whose small gradients would vanish


@dataclass
class AdapterJob:
    """One adapter being trained over a frozen base."""

    config: Config
    run: Run
    model: Any
    """PeftModel; its trainable parameters are the adapter."""
    parameters: list[torch.nn.Parameter]
    engine: Engine
    """Computes loss and gradient of a micro batch."""
    optimizer: Optimizer
    train: TokenSet
    heldout: TokenSet
    pad_id: int
    device: str
    group: ProcessGroup
    micro_batch_size: int
    eval_batch_size: int
    peak_learning_rate: float
    total_steps: int
    eval_every: int
    save_every: int
    autocast_dtype: torch.dtype | None = None
    has_dropout: bool = False
    """Whether a pass draws random numbers, for the adapter or the base: then they belong to the micro batch."""
    max_memory_bytes: int | None = None
    """Limit of what a pass may hold; beyond it is out of memory."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of data, base, tokenizer and template; every checkpoint carries them."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Versions of the libraries that decide what a run computes; every checkpoint carries them."""
    saver: Saver = field(default_factory=Saver)
    trackers: list[Tracker] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    curriculum: Curriculum | None = None
    """The order of the first epochs; None where it is random."""
    out_of_memory_events: list[OutOfMemoryEvent] = field(default_factory=list)
    """Where memory ran out, and the rows of a batch since."""
    most_tokens: int = 0
    """Tokens of the largest micro batch yet."""
    own_tokens: int = 0
    """Tokens that this process has computed gradients of since it started, with padding where that is computed too."""
    # of each training row: tokens, summed weight, trained tokens
    lengths: np.ndarray = field(init=False)
    row_weights: np.ndarray = field(init=False)
    trained_counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.lengths, self.row_weights = self.train.lengths, self.train.row_weights
        self.trained_counts = self.train.trained_counts

    @property
    def is_over(self) -> bool:
        """Whether no step is left to make; the last one may still be unfinished."""
        return self.progress.step >= self.total_steps or self.progress.stopped_early

    @property
    def loss_scale(self) -> float:
        """Factor on the loss before the backward pass."""
        return _LOSS_SCALE if self.autocast_dtype == torch.float16 else 1.0

    def batch_size_at(self, phase: str, step: int) -> int:
        """Rows of one forward pass: as configured, or fewer since an out-of-memory event up to this step."""
        wanted = self.micro_batch_size if phase == TRAINING else self.eval_batch_size
        return min([wanted, *(e.batch_size for e in self.out_of_memory_events if e.phase == phase and e.step <= step)])

    def out_of_memory_at(self, step: int) -> dict[str, Any]:
        """The events of that step as a part of its line in metrics.jsonl."""
        found = [asdict(event) for event in self.out_of_memory_events if event.step == step]
        return {"out_of_memory": found} if found else {}

    @timed("checkpoint")
    def save_checkpoint(self) -> None:
        """Begins to write the checkpoint of the last whole step, and then to forget those that retention gives up.

        `saver` knows when it is done.
        """
        folder, settings = self.run.checkpoints, self.config.train
        needed = {self.progress.best_step, self.progress.saved_step, *self._needed_for_escape()}
        self.progress.metrics_seal = self.run.seal_metrics()
        kept = checkpoints.snapshot(
            AdapterState.of(self.model), self.optimizer, self.progress, self.inputs, self.versions
        )

        def write() -> None:
            checkpoints.write(folder, kept)
            checkpoints.prune(folder, settings.keep_checkpoints, needed, settings.keep_every)

        self.saver.save(write)

    def _needed_for_escape(self) -> set[int]:
        if self.progress.plateau is not None:
            return {self.progress.plateau["back_to"]}
        wanted = self.config.train.on_plateau == "escape"
        return escape.needed(self.progress.step, self.save_every, self.eval_every) if wanted else set()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes weights, optimizer and progress from the checkpoint. Raises: StorageError when it is damaged."""
        adapter, tensors, values, progress = checkpoints.load(checkpoint)
        adapter.load_into(self.model)
        restore_state(self.optimizer, tensors, values)
        self.progress = progress
