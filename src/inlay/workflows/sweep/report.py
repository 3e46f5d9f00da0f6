"""A sweep as a page: what won, every trial, and how each of them learned; and the trials as a table for other programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from inlay.config.load import in_yaml
from inlay.errors import InlayError
from inlay.evaluation.verdict import Difference
from inlay.reports.charts import Line, lines
from inlay.reports.html import Html, facts, note, page, section, table, tag
from inlay.runs.folder import Run
from inlay.runs.reporter import change_shown, duration_shown
from inlay.workflows.sweep.result import SweepResult
from inlay.workflows.sweep.trials import Trial, by_loss, shown


def sweep_page(found: SweepResult) -> str:
    """The report as one HTML file that needs no other."""
    winner, columns = found.winner, settings_of(found.trials)
    summary = {
        "winner": f"trial {winner.number}: {shown(winner.values)}",
        "judged on": found.judged_on,
        "winner against the base": _change(found.against_base),
        "the config as it is against the base": _change(found.baseline_against_base),
        "winner against the config as it is": _change(found.tuning),
        "not distinguishable from the least loss": ", ".join(f"trial {n}" for n in found.finalists),
        "the least loss flatters itself by": f"{found.optimism:.4f} nats per token",
    }
    rows = [_row(trial, found, columns) for trial in by_loss(found.trials)]
    failed = [note(f"trial {t.number} failed ({t.title}): {t.reason}") for t in found.trials if t.state == "failed"]
    head = ["trial", "loss", "trained", "steps", "time", *columns]
    parts = [
        section("Winner", facts(summary.items())),
        section("Trials", table(head, rows, numbers=range(1, 5)), *failed),
    ]
    parts += _curves(found)
    return page("Sweep", *parts, *(note(text) for text in found.notes))


def trials_csv(trials: Sequence[Trial]) -> str:
    """One line for each trial, one column for each setting."""
    columns = settings_of(trials)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "loss", "parameters", "steps", "time_s", "run", "reason", *columns])
    for one in trials:
        values = [in_yaml(one.values[path]) if path in one.values else "" for path in columns]
        figures = [one.loss, one.parameters, one.steps, one.time_s]
        shown_figures = ["" if figure is None else figure for figure in figures]
        writer.writerow([one.number, one.state, *shown_figures, one.run, one.reason, *values])
    return text.getvalue()


def settings_of(trials: Sequence[Trial]) -> list[str]:
    """The settings that any of the trials has a value for."""
    return list(dict.fromkeys(path for trial in trials for path in trial.values))


def _row(trial: Trial, found: SweepResult, columns: Sequence[str]) -> list[str]:
    mark = " (winner)" if trial.number == found.winner.number else ""
    settings = [shown({path: trial.values[path]}).removeprefix(f"{path} ") if trial.values else "" for path in columns]
    return [
        f"{trial.number}{mark}", f"{trial.loss:.4f}", f"{trial.parameters:,}", f"{trial.steps:,}",
        duration_shown(trial.time_s or 0.0), *settings,
    ]  # fmt: skip


def _change(one: Difference) -> str:
    return f"{change_shown(one, '{:+.4f}'.format)} {one.verdict}; {one.reason}"


def _curves(found: SweepResult) -> list[Html]:
    drawn = []
    for trial in by_loss(found.trials):
        if points := _held_out(trial):
            drawn.append(Line(f"trial {trial.number}", points, "" if trial.number == found.winner.number else "quiet"))
    if not drawn:
        return []
    drawn.sort(key=lambda line: line.kind == "")  # the winner lies on top
    legend = note("Held-out loss of every trial; with dots: the winner.")
    return [section("Held-out loss during training", tag("figure", lines(drawn, "step", "nats per token"), legend))]


def _held_out(trial: Trial) -> list[tuple[float, float]]:
    try:
        every = [(line["step"], line["eval_loss"]) for line in Run(Path(trial.run)).metrics if line.get("eval_loss")]
        found = [(float(step), float(loss)) for step, loss in every]
    except (InlayError, OSError, KeyError, TypeError, ValueError):
        return []  # a run that was deleted or damaged hides nothing else
    return [(step, loss) for step, loss in found if math.isfinite(loss)]
