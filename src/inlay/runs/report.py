"""The report of a run that ended: what came out, its curves, and what the guards met."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.runs.folder import Run
from inlay.runs.guard_events import as_markdown, incidents
from inlay.runs.record import RunRecord
from inlay.runs.reporter import change_shown
from inlay.storage import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {
    "skipped": "#7a1fa2", "rollback": "#d81b60", "spike": "#bdbdbd", "out of memory": "#f9a825", "overfitting": "#5d4037",
    "plateau": "#00897b", "escape": "#2e7d32", "failed": "#000000",
}  # fmt: skip


def report(run: Run, record: RunRecord) -> None:
    """The curves and the report of a run that ended; `record` is what run.json holds, or is about to hold."""
    draw_curves(run)
    write_report(run, record)


def write_report(run: Run, record: RunRecord) -> Path:
    """`reports/report.md`: what came out, and what the guards met. `inlay compare` puts a longer one in its place.

    `record` is what run.json holds, or is about to hold.
    """
    result, lines = record.result, [f"# {run.name}: {record.status}"]
    if result:
        lines = [
            f"# {run.name}: {result.verdict} by held-out loss",
            "",
            f"{result.base_eval_loss:.4f} → {result.eval_loss:.4f}: {change_shown(result, '{:+.4f}'.format)}"
            f"{f'; {result.reason}' if result.reason else ''}; adapter of step {result.adapter_step} of {result.steps}.",
        ]
    lines += ["", "![training and held-out loss](curves.png)", "", "## What the guards met", ""]
    path = run.reports / "report.md"
    write_file(path, "\n".join([*lines, *as_markdown(incidents(run))]) + "\n")
    return path


def draw_curves(run: Run) -> Path:
    """`reports/curves.png`; see `curves`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path, drawn = run.reports / "curves.png", io.BytesIO()
    FigureCanvasAgg(curves(run)).print_png(drawn)
    write_file(path, drawn.getvalue())
    return path


def curves(run: Run) -> Figure:
    """Training and held-out loss, learning rate and gradient norm over the steps; a mark wherever a guard answered."""
    from matplotlib.figure import Figure

    lines = run.metrics
    figure = Figure(figsize=(9, 6), dpi=110)
    figure.subplots_adjust(left=0.08, right=0.9, bottom=0.08, top=0.94)  # laying out by measuring triples the time
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    trained = [line for line in lines if "loss" in line]
    steps = [line["step"] for line in trained]
    loss.plot(steps, [line["loss"] for line in trained], color="#9db4c8", linewidth=1, label="training loss")
    held = [line for line in lines if "eval_loss" in line]
    loss.plot([e["step"] for e in held], [e["eval_loss"] for e in held], "o-", color="#b3441e", label="held-out loss")
    if held:
        best = min(held, key=lambda e: e["eval_loss"])
        note = {"xytext": (6, -12), "textcoords": "offset points", "color": "#b3441e"}
        loss.annotate(f"{best['eval_loss']:.3f} at step {best['step']}", (best["step"], best["eval_loss"]), **note)
    named: set[str] = set()
    for one in incidents(run):
        label = None if one.kind in named else one.kind
        loss.axvline(one.step, color=_MARKS[one.kind], linewidth=0.9, linestyle="--", alpha=0.7, label=label)
        named.add(one.kind)
    loss.set_ylabel("loss, nats per trained token")
    loss.set_title(run.name, y=1.0)  # a place of its own is not looked for, which would lay out all ticks once more
    loss.legend()
    rate.plot(steps, [line["learning_rate"] for line in trained], color="#33658a", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    norm = rate.twinx()
    norm.plot(steps, [line["grad_norm"] for line in trained], color="#a0a0a0", linewidth=0.8)
    norm.set_ylabel("gradient norm")
    norm.xaxis.set_visible(False)  # it is that of the rate
    return figure
