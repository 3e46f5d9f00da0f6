"""One trial of a sweep, from its proposal to its end, and what proposes and stops trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Value: TypeAlias = str | int | float | bool | list[str] | None
"""Of one setting in a trial."""
State: TypeAlias = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Rung:
    """The loss of a trial at the point where it was compared with others."""

    rows: int
    """Trained rows up to here."""
    loss: float
    """Held-out loss per token on the rows that select."""
    goes_on: bool
    rank: int | None = None
    """Among the trials at this rung, 1 is best."""
    of: int | None = None


@dataclass(frozen=True)
class Trial:
    """One combination of settings and what became of it."""

    number: int
    """0 is the config as it is."""
    values: dict[str, Value]
    """By path of the setting; empty for trial 0."""
    state: State = "running"
    rungs: list[Rung] = field(default_factory=list)
    loss: float | None = None
    """Held-out loss per token on the rows that select, at the end."""
    reason: str = ""
    """Why it was stopped or failed."""
    run: str = ""
    """Its run folder, relative to the folder of the sweep."""
    rank: int | None = None
    parameters: int | None = None
    steps: int = 0
    total_steps: int = 0
    seconds: float = 0.0


class Proposer(Protocol):
    """Says which settings to try next, and which trials are not worth their end."""

    def ask(self) -> Trial | None:
        """The next trial; None when all were proposed."""
        ...

    def report(self, number: int, rows: int, loss: float) -> Rung:
        """Records a loss at a rung, and whether the trial goes on. The decision is on the disk before it is returned."""
        ...

    def tell(self, trial: Trial) -> None:
        """Records the end of a trial."""
        ...

    @property
    def trials(self) -> list[Trial]:
        """All trials so far, by number; those of an interrupted sweep too."""
        ...
