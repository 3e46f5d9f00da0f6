"""Finds a plateau or overfitting in the losses of a run, and answers it as configured.

`diagnose` is a pure function of the curve so far; `respond` does what `train.on_plateau` and `train.on_overfitting` set.

Slopes are Theil-Sen's, the median of the slopes of all pairs; their 95% intervals are Sen's, from the distribution of
Kendall's rank correlation. Neither minds outliers. Source: Sen 1968, doi:10.1080/01621459.1968.10480934.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inlay.errors import count_shown
from inlay.runs.record import Diagnosis, Kind, Plateau
from inlay.training.job import AdapterJob
from inlay.training.optimizer import learning_rate, warmup_steps
from inlay.training.plateau import escape

WINDOW = 200
"""Step losses that one smoothed training loss is the median of, and points of the curve that are kept."""
_AFTER_BEST = 4  # evaluations after the best one, all of which must rise
_STAYS = 6  # such evaluations, where it does not rise any more but the training loss falls
_RISE = 0.02  # of the best held-out loss, by which it must have risen
_FLAT_POINTS, _NOISY_POINTS = 6, 10
_FLAT = 0.01  # of the loss: a smaller change over the window is none
_LEARNED = 0.05  # of the base's held-out loss: who has gained less has not learned
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Point:
    """The run at one evaluation."""

    step: int
    train_loss: float
    """Median of the step losses since the evaluation before."""
    eval_loss: float
    steady: bool
    """After warmup, with at least half of the peak learning rate: only then does a flat curve mean anything."""


@dataclass(frozen=True, slots=True)
class Change:
    """By how much a loss changed over a stretch of the curve, with its 95% interval."""

    value: float
    low: float
    high: float


def diagnose(points: Sequence[Point], base_eval_loss: float) -> Diagnosis | None:
    """None while the run improves, or while too little is known. `points` lie after the warmup, oldest first."""
    return _rising(points) or _flat(points, base_eval_loss)


def _rising(points: Sequence[Point]) -> Diagnosis | None:
    """The held-out loss rises since its best, or stays above while training goes on to gain. Decay explains neither."""
    if len(points) <= _AFTER_BEST:
        return None
    best = min(range(len(points)), key=lambda n: points[n].eval_loss)
    after = points[best + 1 :]
    if len(after) < _AFTER_BEST:
        return None
    lowest = points[best].eval_loss
    risen = float(np.median([p.eval_loss for p in after[-3:]])) - lowest
    margin = max(_RISE * lowest, 5 * _noise(points))
    if risen < margin:
        return None
    trained = change(points[best:], "train_loss")
    rises = change(after, "eval_loss").low > 0
    stays = len(after) >= _STAYS and all(p.eval_loss > lowest + margin for p in after) and trained.high < 0
    if not rises and not stays:
        return None
    rise = f"held-out loss rose by {risen:.4f} in {len(after)} evaluations since step {points[best].step}"
    if trained.low > 0:
        return Diagnosis("stalled", f"{rise}, and the training loss by {trained.value:.4f}: the learning rate is high")
    return Diagnosis("overfitting", f"{rise} while the training loss changed by {trained.value:+.4f}")


def _flat(points: Sequence[Point], base_eval_loss: float) -> Diagnosis | None:
    """Neither loss moves in the later half of the steady points, though the learning rate would let it."""
    steady = [p for p in points if p.steady]
    if not points or not points[-1].steady or len(steady) < _FLAT_POINTS:
        return None
    window = steady[-max(_FLAT_POINTS, len(steady) // 2) :]
    held, trained = change(window, "eval_loss"), change(window, "train_loss")
    loss = float(np.median([p.eval_loss for p in window]))
    train_loss = float(np.median([p.train_loss for p in window]))
    small, train_small = _FLAT * loss, _FLAT * train_loss
    if held.high < 0 or trained.high < 0 or held.low > 0 or trained.low > 0:
        return None if not _tiny(held, small) or not _tiny(trained, train_small) else _still(loss, base_eval_loss, held)
    if _tiny(held, small) and _tiny(trained, train_small):
        return _still(loss, base_eval_loss, held)
    if len(window) < _NOISY_POINTS:
        return None
    return Diagnosis(
        "noise-bound",
        f"in {len(window)} evaluations no trend stands out of the noise: held-out loss {_shown(held)}, "
        f"training loss {_shown(trained)}; a larger batch_size or a lower learning_rate would show one",
    )


def _still(loss: float, base_eval_loss: float, held: Change) -> Diagnosis:
    learned = (base_eval_loss - loss) / base_eval_loss if base_eval_loss > 0 else 0.0
    kind: Kind = "converged" if learned >= _LEARNED else "stalled"
    return Diagnosis(kind, f"held-out loss {_shown(held)} in the window, {learned:.0%} below the base's")


def _tiny(moved: Change, small: float) -> bool:
    return -2 * small < moved.low and moved.high < 2 * small and abs(moved.value) < small


def _shown(moved: Change) -> str:
    return f"{moved.value:+.4f} [{moved.low:+.4f}, {moved.high:+.4f}]"


def change(points: Sequence[Point], name: str) -> Change:
    """The Theil-Sen slope over the points, times the steps that they span."""
    steps = np.array([p.step for p in points], float)
    values = np.array([getattr(p, name) for p in points], float)
    first, second = np.triu_indices(len(points), 1)
    slopes = np.sort((values[second] - values[first]) / (steps[second] - steps[first]))
    n, span = len(points), steps[-1] - steps[0]
    reach = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # of Kendall's S
    low = max(0, math.floor((len(slopes) - reach) / 2))
    low_slope, high_slope = slopes[low], slopes[-1 - low]
    return Change(float(np.median(slopes) * span), float(low_slope * span), float(high_slope * span))


def _noise(points: Sequence[Point]) -> float:
    """Robust deviation of the held-out losses from a smooth course, by their second differences."""
    bends = np.diff([p.eval_loss for p in points], 2)
    return float(1.4826 * np.median(np.abs(bends)) / math.sqrt(6))


def points_of(curve: Sequence[Sequence[Any]]) -> list[Point]:
    """The points as a checkpoint keeps them: [step, training loss, held-out loss, steady]."""
    return [Point(int(step), float(trained), float(held), bool(steady)) for step, trained, held, steady in curve]


def diagnosis_of(job: AdapterJob, step: int, eval_loss: float, note: Callable[[str], None]) -> Diagnosis | None:
    """The diagnosis of the curve up to this evaluation, noted where it is news; None during the warmup."""
    config, progress = job.config.train, job.progress
    losses, progress.recent_losses = progress.recent_losses or [eval_loss], []
    if step <= warmup_steps(config, job.total_steps):
        return None
    steady = 2 * learning_rate(config, job.peak_learning_rate, step, job.total_steps) >= job.peak_learning_rate
    progress.curve = [*progress.curve, [step, statistics.median(losses), eval_loss, steady]][-WINDOW:]
    assert progress.base_eval_loss is not None
    found = diagnose(points_of(progress.curve), progress.base_eval_loss)
    known, progress.diagnosis = progress.diagnosis, found
    if found and (known is None or known.kind != found.kind):
        note(f"step {step}: {found.kind}: {found.reason}")
    return found


def respond(job: AdapterJob, step: int, found: Diagnosis, note: Callable[[str], None]) -> str:
    """Does what `train.on_overfitting` or `train.on_plateau` says; returns it as metrics.jsonl has it."""
    config, progress = job.config.train, job.progress
    setting = "on_overfitting" if found.kind == "overfitting" else "on_plateau"
    policy = getattr(config, setting)
    if policy == "stop":
        progress.stopped_early = True
        if step < job.total_steps:
            note(
                f"step {step}: early stop by train.{setting}, {count_shown(job.total_steps - step, 'step')} before the end"
            )
        return "the run was stopped"
    if policy == "escape" and progress.plateau is None and escape.end_step(step, job.save_every) < job.total_steps:
        back_to = escape.branch_step(step, job.save_every)
        progress.plateau = Plateau(step=step, back_to=back_to, kind=found.kind, reason=found.reason)
        done = f"after the run's end other ways go from step {back_to}"
        note(f"step {step}: {done}")
        return done
    return "noted"
