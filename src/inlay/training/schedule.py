"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

import numpy as np

from inlay.config import Config
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import steps_per_epoch
from inlay.errors import ConfigError
from inlay.methods.table import method_of

_DECAY_SHARE = 0.2  # of the steps, for wsd


def length_of(train: TrainConfig, drawn: int) -> tuple[int, int, int]:
    """(steps in all, between evaluations, between checkpoints) of a run whose epochs draw so many rows."""
    per_epoch = steps_per_epoch(drawn, train.batch_size)
    total = train.max_steps or per_epoch * train.epochs
    eval_every = _every(train.eval_steps, max(1, math.ceil(total / 10)), per_epoch)
    return total, eval_every, _every(train.save_steps, eval_every, per_epoch)


def _every(setting: str | int, auto: int, per_epoch: int) -> int:
    return per_epoch if setting == "epoch" else auto if setting == "auto" else int(setting)


def require_warmup(train: TrainConfig, total: int) -> None:
    """Raises: ConfigError for a warmup that is longer than the run, whose learning rate would never reach its peak."""
    if train.warmup_steps is not None and train.warmup_steps > total:
        raise ConfigError(
            f"train.warmup_steps {train.warmup_steps}: the run has {total} steps, so that the learning rate would never "
            "reach train.learning_rate. Lower it, or leave it out for train.warmup_ratio."
        )


def warmup_steps(train: TrainConfig, total: int) -> int:
    by_ratio = math.ceil(train.warmup_ratio * total - 1e-9)  # 0.07 * 100 is a little above 7
    return min(by_ratio if train.warmup_steps is None else train.warmup_steps, total)


def learning_rate(train: TrainConfig, peak: float, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 1). The first step of a warmup gets peak/warmup, never 0."""
    return _scheduled(train, peak, step, total) * _factor(train, step)


def _factor(train: TrainConfig, step: int) -> float:
    steps = sorted(train.learning_rate_factors)
    return float(np.interp(step, steps, [train.learning_rate_factors[s] for s in steps])) if steps else 1.0


def _scheduled(train: TrainConfig, peak: float, step: int, total: int) -> float:
    warmup = warmup_steps(train, total)
    if step <= warmup:
        return peak * step / warmup
    left = (total - step + 1) / max(1, total - warmup)  # 1 at the first step after warmup, above 0 at the last
    if train.schedule == "linear":
        return peak * left
    if train.schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * left))
    if train.schedule == "wsd":
        return peak * min(1.0, (total - step + 1) / max(1, math.ceil(_DECAY_SHARE * total)))
    return peak


def auto_learning_rate(config: Config, hidden_size: int, model_type: str) -> tuple[float, str]:
    """(peak rate of the config's method for a base of this hidden size and family, reason)"""
    rate, reason = method_of(config).learning_rate(hidden_size, model_type)
    ratio = config.train.lora_plus_ratio
    if ratio != 1:
        rate, reason = rate / math.sqrt(ratio), f"{reason}, over the root of lora_plus_ratio"
    return float(f"{rate:.2g}"), reason
