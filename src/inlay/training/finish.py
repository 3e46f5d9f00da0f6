"""After the last step: the adapter folder and the curves."""

from __future__ import annotations

import io
from pathlib import Path

from inlay.errors import StorageError
from inlay.models.adapter import CARD, AdapterState
from inlay.run import Run
from inlay.storage import replace_folder, write_file, write_json
from inlay.training import checkpoint as checkpoints
from inlay.training.loop import Job
from inlay.training.setup import Setup


def export(setup: Setup, job: Job) -> int:
    """Writes `adapter/` from the best or the last step and returns that step, whose adapter the model holds then."""
    progress, step = job.progress, job.progress.step
    if setup.config.train.export == "best" and progress.best_step is not None:
        step = progress.best_step
    if step != progress.step:
        kept = checkpoints.Checkpoint(job.run.checkpoints / f"step-{step:06d}")
        try:
            checkpoints.load(kept)[0].load_into(job.model)
        except StorageError as error:
            aside = f", now {checkpoints.set_aside(kept).name}" if kept.path.exists() else ""
            raise StorageError(
                f"{error} It was the best step{aside}. To take the last one instead, set train.export to last in "
                f"{job.run.path / 'config.yaml'} and resume."
            ) from None
    state = AdapterState.of(job.model).exported()
    card = {
        "base_model": setup.config.model.base_model,
        "base_digest": setup.base_digest,
        "chat_template": setup.encoder.template_name,
        "chat_template_hash": setup.encoder.template_hash,
        "data_hash": setup.data.data_hash,
        "run": job.run.name,
        "step": step,
        "metrics": {
            "base_eval_loss": progress.base_eval_loss,
            "eval_loss": progress.best_eval_loss if step == progress.best_step else progress.eval_loss,
        },
    }

    def fill(folder: Path) -> None:
        state.write(folder)
        setup.encoder.tokenizer.save_pretrained(str(folder))
        write_json(folder / CARD, card)

    replace_folder(job.run.adapter, fill, {"step": step})
    return step


def draw_curves(run: Run) -> Path:
    """`reports/curves.png`: training and held-out loss, learning rate and gradient norm over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = run.metrics
    figure = Figure(figsize=(9, 6), dpi=110)
    canvas = FigureCanvasAgg(figure)
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
    loss.set_ylabel("loss, nats per trained token")
    loss.set_title(run.name)
    loss.legend()
    rate.plot(steps, [line["learning_rate"] for line in trained], color="#33658a", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    norm = rate.twinx()
    norm.plot(steps, [line["grad_norm"] for line in trained], color="#a0a0a0", linewidth=0.8)
    norm.set_ylabel("gradient norm")
    path = run.reports / "curves.png"
    drawn = io.BytesIO()
    canvas.print_png(drawn)
    write_file(path, drawn.getvalue())
    return path
