"""A run after training, and its proofs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from inlay.adapters.reference import name_here
from inlay.runs.reporter import duration_shown
from inlay.typed_json import JsonObject

if TYPE_CHECKING:
    from inlay.runs.folder import Run


def after_training(run: Run) -> str:
    """The files of a finished run, and the next command."""
    result = run.result
    best = f", best step {result.best_step}" if result.best_step is not None else ""
    stopped = ", stopped early" if result.stopped_early else ""
    made = run.trained.name
    opens = "transformers as it is" if made == "model" else "PEFT as it is"
    if result.opens_in:
        opens = f"PEFT on transformers' {result.opens_in}"
    escaped = result.escape is not None and result.escape.tried
    branches = "  branches/escape  branches/decay: runs of their own\n" if escaped else ""
    kept = f"\n      inlay adapters add {_argument(run)}" if made == "adapter" else ""
    return (
        f"\n{run.path}\n"
        f"  {made}/  from step {result.adapter_step} of {result.steps}{stopped}{best}; opens with {opens}\n"
        f"  reports/curves.png  config.yaml  run.json  metrics.jsonl  log.txt  checkpoints/\n"
        f"{branches}"
        f"  took {duration_shown(result.time_s)}\n"
        f"Next: inlay compare {_argument(run)}\n"
        f'      inlay generate "…" --run {_argument(run)}{kept}'
    )


def after_demo(run: Run) -> str:
    """Commands to try next."""
    return (
        f"\n\nNext: inlay chat {_argument(run)}\n"
        f'      inlay generate "My parcel is late." --run {_argument(run)}\n'
        f"      inlay adapters add {_argument(run)} --name support\n"
        "      inlay train YOUR_DATA.jsonl --model Qwen/Qwen2.5-0.5B-Instruct"
    )


def _argument(run: Run) -> str:
    """The run as an argument of a command that a shell takes as it is."""
    return shlex.quote(name_here(run))


def proofs_text(proved: JsonObject) -> str:
    """A line for each proof, then the number of those that hold."""
    words = {True: "pass", False: "FAIL", None: "?   "}
    lines = []
    for proof in proved["proofs"]:
        lines.append(f"{words[proof['passed']]}  {proof['name']:<18}  {proof['found']}")
        lines += [f"{'':26}{sample}" for sample in proof["samples"]]
    held = sum(proof["passed"] is True for proof in proved["proofs"])
    return "\n".join([*lines, "", f"{held} of {len(proved['proofs'])} proofs hold for {proved['run']}"])
