"""The loop. Every variation of training is a function that it calls.

A step sums the weighted loss over all its rows, on all ranks, and divides once by their whole weight. It has two
halves: the optimizer's, then evaluation, metrics and checkpoint. A stop between them is resumed between them.
"""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from inlay.config import Config
from inlay.data.batches import Batch, collate, dealt, epochs_done, micro_batches, step_rows
from inlay.data.curriculum import Curriculum
from inlay.data.encoding.token_arrays import TokenSet
from inlay.engine.autograd import Engine
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import counted, score_rows
from inlay.engine.memory import peak_bytes, trim_allocator
from inlay.engine.profile import timed
from inlay.errors import Interrupted
from inlay.methods.adapter import AdapterState, adapter_disabled
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.training import checkpoint as checkpoints
from inlay.training import escape, guards, plateau
from inlay.training.checkpoint import Progress
from inlay.training.nonfinite_recovery import recover
from inlay.training.optimizer import set_learning_rate
from inlay.training.out_of_memory import EVALUATION, TRAINING, OutOfMemoryEvent, run_with_oom_retry
from inlay.training.process_group import ProcessGroup
from inlay.training.saver import Saver
from inlay.training.schedule import learning_rate, warmup_steps
from inlay.training.shares import share_of
from inlay.training.signals import StopRequest
from inlay.training.trackers import Tracker

_LOSS_SCALE = 1024.0  # of float16, whose small gradients would vanish
_SHOWN = {"loss": "loss", "lr": "learning_rate", "norm": "grad_norm", "tok/s": "tokens_per_s", "memory": "memory_bytes"}


@dataclass
class Job:
    """One adapter being trained over a frozen base."""

    config: Config
    run: Run
    model: Any
    """PeftModel; its trainable parameters are the adapter."""
    parameters: list[torch.nn.Parameter]
    engine: Engine
    """What computes loss and gradient of a micro batch."""
    optimizer: Optimizer
    train: TokenSet
    heldout: TokenSet
    pad_id: int
    device: str
    micro_batch_size: int
    eval_batch_size: int
    peak_learning_rate: float
    total_steps: int
    eval_every: int
    save_every: int
    autocast_dtype: torch.dtype | None = None
    has_dropout: bool = False
    """Whether a pass draws numbers, of the adapter or of the base: then they belong to the micro batch."""
    max_memory_bytes: int | None = None
    """What a pass may hold; beyond it is out of memory."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of data, base, tokenizer and template; every checkpoint carries them."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Of the libraries that decide what a run computes; every checkpoint carries them."""
    saver: Saver = field(default_factory=Saver)
    progress: Progress = field(default_factory=Progress)
    curriculum: Curriculum | None = None
    """How the first epochs are ordered; None where the order is random."""
    out_of_memory_events: list[OutOfMemoryEvent] = field(default_factory=list)
    """Where memory ran out, and what a batch has held since."""
    most_tokens: int = 0
    """Of the largest micro batch yet."""
    own_tokens: int = 0
    """What this process has computed the gradient of since it started, with padding where that is computed too."""
    # of each training row: tokens, summed weight, trained tokens
    lengths: np.ndarray = field(init=False)
    row_weights: np.ndarray = field(init=False)
    trained_counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.lengths, self.row_weights = self.train.lengths, self.train.row_weights
        self.trained_counts = self.train.trained_counts

    @property
    def is_over(self) -> bool:
        return self.progress.step >= self.total_steps or self.progress.stopped_early

    @property
    def loss_scale(self) -> float:
        return _LOSS_SCALE if self.autocast_dtype == torch.float16 else 1.0


def run_job(job: Job, world: ProcessGroup, stop: StopRequest, reporter: Reporter, trackers: list[Tracker]) -> None:
    """Trains until the last step, an early stop, or a signal; progress, metrics and checkpoints are in `job.run`.

    Raises: NonFinite where `train.on_nonfinite` stops, naming step and rows; Interrupted after a signal, with a
    checkpoint of the last whole step on the disk.
    """
    progress = job.progress
    reporter.start(job.total_steps, progress.step, "step")
    try:
        config = job.config.train
        if job.progress.step == 0 and (config.on_nonfinite == "rollback" or config.on_plateau == "escape"):
            _evaluate_base(job, world, stop, reporter)
            _save(job, world)  # so that there is a place to go back to
        while job.progress.unfinished is not None or not job.is_over:
            try:
                if job.progress.unfinished is None:
                    job.progress.unfinished = _optimizer_step(job, world, stop, reporter)
                _finish_step(job, world, stop, reporter, trackers, job.progress.unfinished)
            except guards.NonFinite as found:
                _evaluate_base(job, world, stop, reporter)  # it says so if the base itself is at fault
                recover(job, world, found, reporter, lambda: _save(job, world))
        job.saver.wait()
    finally:
        reporter.end()


def _optimizer_step(job: Job, world: ProcessGroup, stop: StopRequest, reporter: Reporter) -> dict[str, Any]:
    """Makes the step after `job.progress.step` and returns its metrics. Raises: NonFinite."""
    config, progress = job.config.train, job.progress
    began = time.perf_counter()
    step = progress.step + 1
    position = progress.position(step)
    rows = step_rows(position, config.seed, job.train.shares, config.batch_size, job.curriculum)
    weight = float(job.row_weights[rows].sum())

    def gradient(micro_batch_size: int) -> tuple[Tensor, list[int]]:
        shares = share_of(job, rows, micro_batch_size, world.rank, world.size)
        return accumulate(job, step, batch_groups(job.model).apart(shares, job.lengths), weight, stop)

    (loss, bad_rows), micro_batch_size = run_with_oom_retry(job, world, TRAINING, step, reporter, gradient)
    raise_if_interrupted(job, world, stop)
    rate, norm = _update(job, world, step, rows, bad_rows, loss)
    spike = guards.spike(float(norm), progress.recent_norms)
    progress.recent_norms = [*progress.recent_norms, float(norm)][-guards.SPIKE_WINDOW :]
    progress.recent_losses = [*progress.recent_losses, float(loss)][-plateau.WINDOW :]
    progress.spikes += spike is not None
    took_s = time.perf_counter() - began
    progress.step, progress.train_loss = step, float(loss)
    progress.tokens_seen += int(job.lengths[rows].sum())
    progress.trained_tokens_seen += int(job.trained_counts[rows].sum())
    progress.train_time_s += took_s
    return {
        "step": step,
        "epoch": round(epochs_done(position, job.train.drawn, config.batch_size), 4),
        "loss": float(loss),
        "learning_rate": rate,
        "grad_norm": float(norm),
        **({} if spike is None else {"spike": round(spike, 1)}),
        "micro_batch_size": micro_batch_size,
        "tokens_per_s": float(job.lengths[rows].sum() / took_s),
        "memory_bytes": float(peak_bytes(job.device)),
        "time_s": round(progress.train_time_s, 3),
    }


@timed("optimizer")
def _update(
    job: Job, world: ProcessGroup, step: int, rows: list[int], bad_rows: list[int], loss: Tensor
) -> tuple[float, Tensor]:
    """(learning rate, norm of the gradient): sums the gradients of all ranks, and applies them. Raises: NonFinite."""
    config, progress = job.config.train, job.progress
    world.sum(loss)
    world.sum_gradients(job.parameters)
    norm = torch.nn.utils.clip_grad_norm_(job.parameters, config.max_grad_norm)
    guards.require_finite(world, job.train, step, rows, bad_rows, float(loss), float(norm))
    rate = progress.learning_rate_factor * learning_rate(config, job.peak_learning_rate, step, job.total_steps)
    set_learning_rate(job.optimizer, rate)
    before = guards.BeforeFirstStep.of(job.model) if progress.train_loss is None else None
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    guards.require_finite_update(world, job.parameters, job.optimizer, step)
    if before is not None:
        before.require_moved()
    return rate, norm


def _finish_step(
    job: Job,
    world: ProcessGroup,
    stop: StopRequest,
    reporter: Reporter,
    trackers: list[Tracker],
    values: dict[str, Any],
) -> None:
    """Evaluation, metrics and checkpoint of a step that the optimizer has made, where they are due."""
    progress, step = job.progress, job.progress.step
    _evaluate_base(job, world, stop, reporter)
    evaluated = _evaluate_if_due(job, world, stop, reporter)
    progress.unfinished = None
    if world.is_first:
        evaluated |= _shortages_at(job, step)
        noteworthy = evaluated or "event" in values or "spike" in values
        if step % job.config.train.log_steps == 0 or noteworthy or step == job.total_steps:
            job.run.log_metrics(values | evaluated)
            for tracker in trackers:
                tracker.log(step, values | evaluated)
        shown = {name: values.get(key) for name, key in _SHOWN.items()} | {"eval": progress.eval_loss}
        reporter.progress(step, {k: v for k, v in shown.items() if v is not None})
    improved, last = evaluated.get("best", False), step == job.total_steps or progress.stopped_early
    asked, due = world.any(stop.save), step % job.save_every == 0 or improved or last
    if due:
        progress.saved_step = step
    if due or asked:
        stop.save = False
        _save(job, world)
    if asked:
        job.saver.wait()
        reporter.note(f"saved a checkpoint of step {step}, as asked")


def _save(job: Job, world: ProcessGroup) -> None:
    if world.is_first:
        save_checkpoint(job)
    world.barrier()


def accumulate(
    job: Job, step: int, shares: list[list[int]], step_weight: float, stop: StopRequest
) -> tuple[Tensor, list[int]]:
    """Leaves the gradient of this rank's rows in the parameters.

    Returns their part of the step's mean loss, and the rows of the first micro batch whose loss is not finite.
    """
    total, bad_rows = torch.zeros((), device=job.device), []
    for rows in shares:
        if stop.asked:
            break
        _seed_draws(job.device, job.config.train.seed, step, rows[0])
        tokens = int(job.lengths[rows].sum())
        if tokens > job.most_tokens:  # too large for the holes that those before it have left
            trim_allocator(job.device)
            job.most_tokens = tokens
        batch = _batch(job, rows)
        nll_B = job.engine.add_gradient(batch, job.loss_scale / step_weight)
        loss = nll_B.sum() / step_weight
        total += loss
        if step:  # 0 is a calibration
            job.own_tokens += batch.input_ids.numel() if job.engine.name == "plain" else tokens
        if not torch.isfinite(loss):
            finite_B = torch.isfinite(nll_B).tolist()
            bad_rows = [row for row, finite in zip(rows, finite_B, strict=True) if not finite] or rows
            break
    if job.loss_scale != 1.0:
        for parameter in job.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(job.loss_scale)
    return total, bad_rows


@timed("data")
def _batch(job: Job, rows: list[int]) -> Batch:
    return collate(job.train, rows, job.pad_id).to(job.device)


def _seed_draws(device: str, *key: int) -> None:
    # Dropout of a micro batch depends on what it holds and on nothing before it: there is no generator state to
    # save, and a resumed run or another number of ranks draws the same.
    low, high = np.random.SeedSequence(key).generate_state(2)
    seed = int(low) | int(high) << 32
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for every device not in use
    if device.startswith("cuda"):
        torch.cuda.manual_seed(seed)
    elif device == "mps":
        torch.mps.manual_seed(seed)


@timed("evaluation")
def heldout_nll(
    job: Job,
    world: ProcessGroup,
    stop: StopRequest,
    reporter: Reporter,
    reached: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:
    """`nll_of` the held-out sequences."""
    return nll_of(job.heldout, job, world, stop, reporter, reached)


def nll_of(
    tokens: TokenSet, job: Job, world: ProcessGroup, stop: StopRequest, reporter: Reporter,
    reached: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(N,) summed nll in nats and (N,) weight of each sequence, computed by all ranks together. `reached` is told how many
    rows this rank has done.

    What it returns after a stop was asked for is incomplete.
    """

    def scores(batch_size: int) -> Tensor:
        # whole ones: a row's bits then do not depend on the number of ranks
        groups = batch_groups(job.model).apart(
            micro_batches(range(len(tokens)), tokens.lengths, batch_size), tokens.lengths
        )
        until = _until_asked(dealt(groups, tokens.lengths, world.size)[world.rank], stop)
        return score_rows(job.model, tokens, counted(until, reached), job.pad_id, job.device, job.autocast_dtype)

    trim_allocator(job.device)  # its batches are of other sizes than what training has left
    own, _ = run_with_oom_retry(job, world, EVALUATION, job.progress.step, reporter, scores)
    trim_allocator(job.device)
    nll, weight = world.sum(own).numpy()
    return nll, weight


def _until_asked(shares: Iterable[list[int]], stop: StopRequest) -> Iterator[list[int]]:
    for rows in shares:
        if stop.asked:
            return
        yield rows


def _evaluate_base(job: Job, world: ProcessGroup, stop: StopRequest, reporter: Reporter) -> None:
    """The base's own held-out loss, once a run: behind the first step, which shows sooner what is wrong or too large."""
    if job.progress.base_eval_loss is not None:
        return
    with adapter_disabled(job.model):
        nll, weight = heldout_nll(job, world, stop, reporter)
    raise_if_interrupted(job, world, stop)
    loss = float(nll.sum() / weight.sum())
    guards.require_finite_base(loss, job.model)
    job.progress.base_eval_loss = loss
    if world.is_first:
        job.run.log_metrics({"step": 0, "eval_loss": loss} | _shortages_at(job, 0))


def _shortages_at(job: Job, step: int) -> dict[str, Any]:
    found = [asdict(one) for one in job.out_of_memory_events if one.step == step]
    return {"out_of_memory": found} if found else {}


def _evaluate_if_due(job: Job, world: ProcessGroup, stop: StopRequest, reporter: Reporter) -> dict[str, Any]:
    progress, step = job.progress, job.progress.step
    if step % job.eval_every and step != job.total_steps:
        return {}
    nll, weight = heldout_nll(job, world, stop, reporter)
    raise_if_interrupted(job, world, stop)
    loss = float(nll.sum() / weight.sum())
    if not math.isfinite(loss):
        raise guards.NonFinite(
            f"step {step}: held-out loss is {loss}. Lower train.learning_rate.", step, before_update=False
        )
    progress.eval_loss, progress.eval_step = loss, step
    best = progress.best_eval_loss is None or loss < progress.best_eval_loss
    if best:
        progress.best_eval_loss, progress.best_step, progress.evals_without_gain = loss, step, 0
    else:
        progress.evals_without_gain += 1
    found = _diagnosed(job, step, loss, reporter)
    config = job.config.train
    patience = config.early_stopping_patience
    waited = patience is not None and progress.evals_without_gain >= patience
    values = {"eval_loss": loss, "best": best}
    progress.stopped_early = waited
    if waited and step < job.total_steps:
        reporter.note(
            f"step {step}: early stop: the held-out loss did not fall below the {progress.best_eval_loss:.4f} of step "
            f"{progress.best_step} in {progress.evals_without_gain} evaluations (train.early_stopping_patience)"
        )
    if found is None:
        return values
    policy, done = config.on_overfitting if found.kind == "overfitting" else config.on_plateau, "noted"
    if policy == "stop":
        progress.stopped_early, done = True, "the run was stopped"
        if step < job.total_steps:
            setting = "on_overfitting" if found.kind == "overfitting" else "on_plateau"
            reporter.note(f"step {step}: early stop by train.{setting}, {job.total_steps - step} steps before the end")
    elif policy == "escape" and progress.plateau is None and escape.is_over(step, job.save_every) < job.total_steps:
        progress.plateau = {"step": step, "back_to": escape.start(step, job.save_every)} | asdict(found)
        done = f"after the run's end other ways go from step {progress.plateau['back_to']}"
        reporter.note(f"step {step}: {done}")
    return values | {"diagnosis": found.kind, "reason": found.reason, "done": done}


def _diagnosed(job: Job, step: int, eval_loss: float, reporter: Reporter) -> plateau.Diagnosis | None:
    """What the curve up to this evaluation says, which is told where it is news."""
    config, progress = job.config.train, job.progress
    losses, progress.recent_losses = progress.recent_losses or [eval_loss], []
    if step <= warmup_steps(config, job.total_steps):
        return None
    steady = 2 * learning_rate(config, job.peak_learning_rate, step, job.total_steps) >= job.peak_learning_rate
    progress.curve = [*progress.curve, [step, statistics.median(losses), eval_loss, steady]][-plateau.WINDOW :]
    assert progress.base_eval_loss is not None
    found = plateau.diagnose(plateau.points_of(progress.curve), progress.base_eval_loss)
    known, progress.diagnosis = progress.diagnosis, asdict(found) if found else None
    if found and (known is None or known["kind"] != found.kind):
        reporter.note(f"step {step}: {found.kind}: {found.reason}")
    return found


@timed("checkpoint")
def save_checkpoint(job: Job) -> None:
    """Begins to write the checkpoint of the last whole step, and then to forget those that retention gives up.

    `job.saver` knows when it is done.
    """
    folder, settings = job.run.checkpoints, job.config.train
    needed = {job.progress.best_step, job.progress.saved_step, *_for_escape(job)}
    job.progress.metrics_seal = job.run.seal_metrics()
    snapshot = checkpoints.snapshot(AdapterState.of(job.model), job.optimizer, job.progress, job.inputs, job.versions)

    def write() -> None:
        checkpoints.write(folder, snapshot)
        checkpoints.prune(folder, settings.keep_checkpoints, needed, settings.keep_every)

    job.saver.save(write)


def _for_escape(job: Job) -> set[int]:
    if job.progress.plateau is not None:
        return {job.progress.plateau["back_to"]}
    wanted = job.config.train.on_plateau == "escape"
    return escape.needed(job.progress.step, job.save_every, job.eval_every) if wanted else set()


def raise_if_interrupted(job: Job, world: ProcessGroup, stop: StopRequest) -> None:
    """Raises: Interrupted when any rank was asked to stop, with a checkpoint of the last step on the disk."""
    if not world.any(stop.asked):
        return
    job.optimizer.zero_grad(set_to_none=True)
    step = job.progress.step
    if world.is_first and step > 0:
        save_checkpoint(job)
        job.saver.wait()
    world.barrier()
    raise Interrupted(f"interrupted after step {step} of {job.total_steps}. {resume_hint(job.run)}", stop.signal or 15)


def resume_hint(run: Run) -> str:
    """What the user can do with a run that was stopped."""
    if not run.has_checkpoint():
        return "Nothing was trained yet: start it again with the same command."
    return (
        "A checkpoint is saved. Go on with the same command and --resume, or with: "
        f"inlay checkpoints resume {shlex.quote(str(run.path))}"
    )
