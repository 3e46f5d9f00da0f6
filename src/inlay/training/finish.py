"""After the last step: the adapter folder, the proof that it is what was trained, and the curves."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from inlay.data.batches import collate
from inlay.engine.loss import autocast, weighted_nll
from inlay.errors import StorageError, TrainingError
from inlay.models.adapter import CARD, AdapterState, detach
from inlay.run import Run
from inlay.storage import replace_folder, write_file, write_json
from inlay.training import checkpoint as checkpoints
from inlay.training.loop import Job
from inlay.training.setup import Setup


def export(setup: Setup, job: Job) -> int:
    """Writes `adapter/` from the best or the last step and returns that step. The model then holds that adapter."""
    progress, step = job.progress, job.progress.step
    if setup.config.train.export == "best" and progress.best_step is not None:
        step = progress.best_step
    if step != progress.step:
        kept = checkpoints.Checkpoint(job.run.checkpoints / f"step-{step:06d}")
        try:
            checkpoints.load(kept)[0].load_into(job.model)
        except StorageError as error:
            raise StorageError(
                f"{error} It was the best step. To take the last one instead, set train.export to last in "
                f"{job.run.path / 'config.yaml'} and resume."
            ) from None
    trained = AdapterState.of(job.model)
    state = trained.exported()
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
    _require_same(job, state, trained)
    return step


def _require_same(job: Job, exported: AdapterState, trained: AdapterState) -> None:
    """The folder, put on the bare base, gives the logits that were in memory: bit for bit, or within rounding where
    the export had to fold a frozen start into the adapter. The model then holds what the folder holds."""
    rows = range(min(2, len(job.heldout)))
    batch = collate(job.heldout, rows, job.pad_id).to(job.device)

    def loss() -> Tensor:
        with torch.inference_mode(), autocast(job.device, job.autocast_dtype):
            return weighted_nll(job.model.eval(), batch)[0].float()

    before_B = loss()
    job.model = AdapterState.read(job.run.adapter).attach_to(detach(job.model))
    after_B = loss()
    read_back = AdapterState.of(job.model).tensors
    same = all(torch.equal(tensor, read_back[name]) for name, tensor in exported.tensors.items())
    if exported is trained:
        same = same and torch.equal(before_B, after_B)
    else:
        rounding = 1e-4 if job.autocast_dtype is None else 3e-2
        same = same and torch.allclose(before_B, after_B, rtol=rounding, atol=rounding)
    if not same:
        raise TrainingError(
            f"{job.run.adapter}: the saved adapter does not give what was trained: loss {before_B.tolist()} before "
            f"saving, {after_B.tolist()} after. The disk is at fault."
        )


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
