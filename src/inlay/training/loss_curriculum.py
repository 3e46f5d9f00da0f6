"""The base's loss on every training row, by which `train.order: loss` orders them; kept in the run folder."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from inlay.data.curriculum import Curriculum, curriculum
from inlay.errors import StorageError, count_shown
from inlay.methods.adapter import adapter_disabled
from inlay.runs.folder import Run
from inlay.runs.reporter import LateBar
from inlay.storage import write_file
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop

FILE = "order.safetensors"


def by_loss(loop: TrainingLoop, job: AdapterJob) -> Curriculum:
    """The curriculum by the base's mean loss on each row, of this start of the run or of its first.

    Raises: StorageError when the losses of the first start are lost and come out otherwise now.
    """
    known, group, reporter = stored(job.run), loop.group, loop.reporter
    if group.any(known is None):
        reporter.stage(f"loss of the base on {count_shown(len(job.train), 'training row')}, for their order")
        with adapter_disabled(job.model), LateBar(reporter, -(-len(job.train) // group.size), "row") as bar:
            nll, weight = loop.nll_of(job, job.train, bar.reached)
        loop.raise_if_interrupted()
        known = nll / weight
        if group.is_first:
            _keep(job.run, known)
        group.barrier()
    assert known is not None
    return curriculum(job.config.train, known)


def stored(run: Run) -> np.ndarray | None:
    """(N,) what the run keeps; None when it keeps nothing, or not what it wrote."""
    try:
        content = (run.path / FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != run.record.order_sha256:
            return None
        return np.asarray(load(content)["loss"])
    except (OSError, KeyError, SafetensorError):
        return None


def _keep(run: Run, losses: np.ndarray) -> None:
    content = save({"loss": losses})
    digest = hashlib.sha256(content).hexdigest()
    record = run.record
    if record.order_sha256 not in (None, digest):
        raise StorageError(
            f"{run.path / FILE}: is not what the run wrote, and the losses of the base come out otherwise now, so the "
            "order of rows cannot be had again. Put the file back, or start anew with --fresh."
        )
    write_file(run.path / FILE, content)
    run.write_record(replace(record, order_sha256=digest))
