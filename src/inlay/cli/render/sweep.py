"""The text that `inlay sweep` ends with."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from inlay.cli.render.terminal import aligned
from inlay.runs.reporter import change_shown, duration_shown
from inlay.workflows.sweep.trials import by_loss, shown

if TYPE_CHECKING:
    from inlay.workflows.sweep.result import SweepResult


def sweep_text(found: SweepResult, columns: int) -> str:
    """The trials from the best to the worst, the winner, and what tuning gained."""
    head = ["trial", "loss", "trained", "time", "settings"]
    rows = [head] + [
        [
            f"{trial.number}{'*' * (trial is found.winner)}", f"{trial.loss:.4f}", f"{trial.parameters:,}",
            duration_shown(trial.time_s or 0.0), trial.title,
        ]
        for trial in by_loss(found.trials)
    ]  # fmt: skip
    lines = aligned(rows)
    for trial in found.trials:
        if trial.state == "failed":
            lines += textwrap.wrap(f"trial {trial.number} failed ({trial.title}): {trial.reason}", columns)
    number = "{:+.4f}".format
    winner, tuning = found.winner, found.tuning
    preposition = "from" if tuning.verdict == "not distinguishable" else "than"
    texts = [f"* winner: trial {winner.number}, {shown(winner.values)}"]
    if len(found.finalists) > 1:
        others = ", ".join(str(n) for n in found.finalists if n != winner.number)
        texts.append(f"not distinguishable from it: trial {others}; the smallest adapter wins")
    texts += [
        f"judged on {found.judged_on}",
        f"winner against the base: {change_shown(found.against_base, number)} {found.against_base.verdict}",
        f"verdict: {tuning.verdict} {preposition} the config as it is: {change_shown(tuning, number)}; {tuning.reason}",
    ]
    if winner.number == 0:
        texts[-1] = "verdict: the config as it is wins; tuning gained nothing here"
    texts += [f"note: {note}" for note in found.notes]
    lines += ["", *(line for text in texts for line in textwrap.wrap(text, columns))]
    return "\n".join([*lines, f"a run for each trial, sweep.html, sweep.json and study.db: {found.folder}"])
