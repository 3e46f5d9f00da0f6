"""One trial of a sweep, from its proposal to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from inlay.config.load import in_yaml

Value: TypeAlias = Any
"""Of one setting, as YAML holds it."""
State: TypeAlias = Literal["running", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of settings and what became of it."""

    number: int
    """0 is the config as it is."""
    values: dict[str, Value] = field(default_factory=dict)
    """By setting; empty for trial 0."""
    state: State = "running"
    loss: float | None = None
    """Nats per trained token of the rows that choose."""
    reason: str = ""
    """Why it failed."""
    run: str = ""
    """Its run folder."""
    parameters: int | None = None
    """Trained."""
    steps: int | None = None
    time_s: float | None = None

    @property
    def title(self) -> str:
        """Its settings in one line."""
        return shown(self.values)


def shown(values: Mapping[str, Value]) -> str:
    """Settings in one line; floats with four digits."""
    if not values:
        return "the config as it is"
    texts = {path: f"{v:.4g}" if isinstance(v, float) else in_yaml(v) for path, v in values.items()}
    return ", ".join(f"{path} {text}" for path, text in texts.items())


def by_loss(trials: Sequence[Trial]) -> list[Trial]:
    """The finished trials, the least loss first."""
    return sorted((trial for trial in trials if trial.loss is not None), key=lambda one: (one.loss or 0.0, one.number))
