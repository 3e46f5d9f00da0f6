"""After the last step: the adapter folder, the curves and the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import StorageError
from inlay.methods.adapter_files import CARD
from inlay.methods.adapter_state import AdapterState
from inlay.methods.full import write_model
from inlay.methods.table import method_of
from inlay.models.generation_settings import FILE, ends_of_base
from inlay.runs.folder import Run
from inlay.runs.guard_events import as_markdown, incidents
from inlay.runs.record import RunRecord
from inlay.runs.reporter import change_shown
from inlay.storage import replace_folder, write_file, write_json
from inlay.training import checkpoint as checkpoints
from inlay.training.job import AdapterJob
from inlay.typed_json import JsonObject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inlay.data.encoding.encoder import Encoder

_MARKS = {
    "skipped": "#7a1fa2", "rollback": "#d81b60", "spike": "#bdbdbd", "out of memory": "#f9a825", "overfitting": "#5d4037",
    "plateau": "#00897b", "escape": "#2e7d32", "failed": "#000000",
}  # fmt: skip


def export(job: AdapterJob) -> int:
    """Writes `adapter/`, or after full fine-tuning `model/`, from the best or the last step; the model then holds it.

    Returns that step.
    """
    progress, step = job.progress, job.progress.step
    if job.config.train.export == "best" and progress.best_step is not None:
        step = progress.best_step
    if step != progress.step:
        kept = checkpoints.Checkpoint(job.run.checkpoints / f"step-{step:06d}")
        try:
            checkpoints.load(kept)[0].load_into(job.model, job.name)
        except StorageError as error:
            aside = f", now {checkpoints.set_aside(kept).name}" if kept.path.exists() else ""
            raise StorageError(
                f"{error} It was the best step{aside}. To take the last one instead, set train.export to last in "
                f"{job.run.path / 'config.yaml'} and resume."
            ) from None
    whole = method_of(job.config).trains_base
    card: JsonObject = {
        **job.base.ref.card_entries(),
        **job.base_record,
        "chat_template": job.encoder.template_name,
        "chat_template_hash": job.encoder.template_hash,
        "template_kwargs": job.config.data.template_kwargs,
        "data_hash": job.data.data_hash,
        "run": job.run.name,
        "step": step,
        "metrics": {
            "base_eval_loss": progress.base_eval_loss,
            "eval_loss": progress.best_eval_loss if step == progress.best_step else progress.eval_loss,
        },
    }

    if job.base.named:
        card |= {
            "class": job.base.named.summary(),
            "opens_in": job.base.named.opened_in,
            "module_names": job.base.named.prefixes,
        }

    def fill(folder: Path) -> None:
        if whole:
            write_model(job.model, job.base.ref.folder, folder)
        else:
            AdapterState.of(job.model, job.name).exported().under(job.base.named).on(job.base.ref).write(folder)
        job.encoder.tokenizer.save_pretrained(str(folder))
        _write_ends(job.encoder, job.model, folder)
        write_json(folder / CARD, card)

    replace_folder(job.run.model if whole else job.run.adapter, fill, {"step": step})
    return step


def _write_ends(encoder: Encoder, model: Any, folder: Path) -> None:
    """Names the ids that end an answer for other programs, which else know only the tokenizer's end-of-sequence. What
    ended the base's answers still ends them."""
    path = folder / FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(
        path, kept | {"eos_token_id": sorted(encoder.stop_ids | ends_of_base(model)), "pad_token_id": encoder.pad_id}
    )


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
