"""Events that the guards of a run answered, and what was done about each: for the report and the curves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.runs.folder import Run
from inlay.runs.record import FAILED, EscapeOutcome, RunRecord
from inlay.runs.reporter import change_shown
from inlay.typed_json import JsonObject

_STEP = re.compile(r"(?:before |after )?step (\d+)\b")
"""The beginning of a message about a step."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that a guard answered."""

    step: int
    kind: str
    """skipped, rollback, spike, out of memory, overfitting, plateau, escape or failed."""
    found: str
    done: str


def incidents(run: Run) -> list[Incident]:
    """All events in metrics.jsonl and run.json, by step."""
    lines = run.metrics
    found = [*_of_lines(lines), *_of_record(run.record, lines)]
    return sorted(found, key=lambda one: one.step)


def _of_lines(lines: Sequence[JsonObject]) -> Iterator[Incident]:
    before: tuple[Any, Any] | None = None
    for line in lines:
        step = int(line["step"])
        if line.get("event") == "skipped":
            yield Incident(step, "skipped", line["error"], "the step changed nothing")
        if line.get("event") == "rollback":
            first, last = line["batches_passed"]
            done = f"back to step {step}, past the batches {first} to {last}, {line['learning_rate_factor']:g} of the learning rate"
            yield Incident(int(line["failed_step"]), "rollback", line["error"], done)
        if "spike" in line:
            found = f"gradient norm {line['grad_norm']:.3g}, {line['spike']:g} deviations above the last ones"
            yield Incident(step, "spike", found, "clipped to train.max_grad_norm like any other")
        if "eval_loss" in line:
            now = (line.get("diagnosis"), line.get("done"))
            if now[0] and now != before:
                kind = "overfitting" if now[0] == "overfitting" else "plateau"
                yield Incident(step, kind, f"{now[0]}: {line.get('reason', '')}", line.get("done", "noted"))
            before = now


def _of_record(record: RunRecord, lines: Sequence[JsonObject]) -> Iterator[Incident]:
    for one in record.out_of_memory:
        done = f"the same rows again, {one.batch_size} at a time from there on"
        yield Incident(one.step, "out of memory", f"in {one.phase}: {one.error}", done)
    result = record.result
    if result and result.escape and result.plateau:
        yield Incident(result.plateau.step, "escape", result.plateau.kind, escape_summary(result.escape))
    if record.status == FAILED and record.error:
        step = record.failed_step
        if step is None and (named := _STEP.match(record.error)):  # a run of 0.1.0 has it in the message alone
            step = int(named[1])
        if step is None:  # no step is at fault: the last one that was logged
            step = max((int(line["step"]) for line in lines), default=0)
        yield Incident(step, "failed", record.error, "the run was stopped")


def escape_summary(outcome: EscapeOutcome) -> str:
    """The outcome of an escape in one line."""
    if outcome.against is None or outcome.eval_loss is None or outcome.best is None or outcome.steps is None:
        return f"the escape was not tried: {outcome.reason}"
    first, last = outcome.steps
    against = [
        f"{name} {outcome.eval_loss[name]:.4f} ({change_shown(d, '{:+.4f}'.format)} {d.verdict})"
        for name, d in outcome.against.items()
    ]
    best = [f"{name} {one.eval_loss:.4f} after step {one.step}" for name, one in outcome.best.items()]
    return (
        f"held-out loss after step {last} of three ways from step {first} on: "
        f"escape {outcome.eval_loss['escape']:.4f} against {', '.join(against)}; best on the way: {', '.join(best)}"
    )


def as_markdown(found: Sequence[Incident]) -> list[str]:
    """The lines of a table, or one that says there was nothing."""
    if not found:
        return ["No guard had anything to answer."]
    rows = [f"| {one.step} | {one.kind} | {_cell(one.found)} | {_cell(one.done)} |" for one in found]
    return ["| step | guard | found | done |", "|---|---|---|---|", *rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
