"""The findings of a sweep as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from inlay.evaluation.verdict import Difference
from inlay.typed_json import JsonObject
from inlay.workflows.sweep.trials import Trial


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The winner, what tuning gained, and every trial."""

    folder: str
    trials: Sequence[Trial]
    winner: Trial
    """Of the finalists the one with the fewest trained parameters."""
    finalists: list[int]
    """Numbers of the trials that cannot be told from the one of the least loss."""
    against_base: Difference
    """The winner minus the base, on the rows that judge."""
    baseline_against_base: Difference
    """The config as it is minus the base, on the same rows."""
    tuning: Difference
    """The winner minus the config as it is: whether the sweep was worth it."""
    least_gain: float | None
    """Gain over the config as it is, in nats per token, that a sweep of so many trials on such rows finds in 95 of 100; None
    where no two trials differ."""
    optimism: float
    """Nats per token by which the least loss of these trials flatters itself on the rows that chose it."""
    judged_on: str
    """Which rows judged."""
    notes: list[str]

    def to_json(self) -> JsonObject:
        """The JSON object of `--json` and sweep.json."""
        return {
            "folder": self.folder,
            "winner": _entry(self.winner, self.against_base),
            "baseline": _entry(self.trials[0], self.baseline_against_base),
            "tuning": self.tuning.to_json(),
            "least_gain": self.least_gain,
            "optimism": self.optimism,
            "finalists": self.finalists,
            "judged_on": self.judged_on,
            "trials": [asdict(trial) for trial in self.trials],
            "notes": self.notes,
        }


def _entry(trial: Trial, against_base: Difference) -> JsonObject:
    return {
        "number": trial.number, "run": trial.run, "values": trial.values, "parameters": trial.parameters,
        "loss": against_base.other, "base_loss": against_base.base, "difference": against_base.difference,
        "low": against_base.low, "high": against_base.high, "verdict": against_base.verdict,
        "reason": against_base.reason,
    }  # fmt: skip
